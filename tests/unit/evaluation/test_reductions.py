"""Merged rows, steps within the LLM and rows that are not defined, in the evaluation loop."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cacovid.config import ModelConfig
from cacovid.data.cache import EmbeddingCache
from cacovid.data.reader import ItemReader
from cacovid.errors import NotDefined
from cacovid.evaluation.measuring import evaluate
from cacovid.evaluation.reports.files import as_markdown, write_report
from cacovid.evaluation.result import EvaluationResult, Row, Undefined
from cacovid.methods.protocol import Baseline, EvaluationCase
from cacovid.models.adapter import VideoLLM
from cacovid.models.layer_view import LayerView
from cacovid.models.loading import load_video_llm
from cacovid.models.reduction import Merge, Reduction
from cacovid.records import VideoQuestion
from tests.support.tiny_models import save_tiny_model
from tests.support.video_files import grey_levels, write_video


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("reductions")
    save_tiny_model("llava_onevision", made / "model")
    write_video(made / "v.mp4", grey_levels(6), size=(64, 64))
    return made


@pytest.fixture(scope="module")
def llm(folder: Path) -> VideoLLM:
    return load_video_llm(ModelConfig(path=str(folder / "model"), num_frames=4, dtype="float32"))


def questions(folder: Path) -> list[VideoQuestion]:
    return [
        VideoQuestion(
            letter, str(folder / "v.mp4"), f"what is {letter}?", ("red", "blue"), letter, "multiple choice", ""
        )
        for letter in "AB"
    ]


def run(llm: VideoLLM, methods: Sequence[object], items: Sequence[VideoQuestion]) -> EvaluationResult:
    return evaluate(ItemReader(llm, 4), methods, items, (1.0, 0.5, 0.1))  # type: ignore[arg-type]


class First:
    name = "first"

    def select(self, case: EvaluationCase, retention: float) -> Tensor:
        return torch.arange(case.budget(retention))


class Pairs:
    """Means of neighbours; more is not defined."""

    name = "pairs"

    def reduce(self, case: EvaluationCase, retention: float) -> Reduction:
        if retention < 0.5:
            raise NotDefined(f"pairs halve: {retention} is less")
        return Reduction.merged(case.encoded, Merge.averaging(torch.arange(36) // 2 * 2))


class HalfInside:
    """All of the first tokens, half of them from layer 2 of 3 on."""

    name = "half inside"

    def reduce(self, case: EvaluationCase, retention: float) -> Reduction:
        return Reduction(torch.arange(case.budget(retention)), inside=self)

    def step(self, view: LayerView) -> Merge | None:
        if len(view.tokens) < 4:
            raise NotDefined("too few to halve")
        return Merge.keeping(torch.arange(0, len(view.tokens), 2), len(view.tokens)) if view.layer == 2 else None


def test_shares_are_counted_at_the_input_and_over_the_layers(folder: Path, llm: VideoLLM) -> None:
    result = run(llm, [First(), Pairs(), HalfInside()], questions(folder))
    assert (result.row("first", 0.1).input_share, result.row("first", 0.1).mean_share) == (3 / 36, 3 / 36)
    assert (result.row("pairs", 0.5).input_share, result.row("pairs", 0.5).mean_share) == (0.5, 0.5)
    assert result.row("half inside", 0.5).input_share == 0.5
    assert result.row("half inside", 0.5).mean_share == pytest.approx((18 + 18 + 9) / 3 / 36)
    assert result.row("half inside", 1.0).mean_share == 1.0  # nothing to reduce
    assert all(each.compress_ms > 0 for each in result.times if each.retention < 1)


def test_what_a_definition_does_not_cover_is_a_row_with_its_reason(tmp_path: Path, folder: Path, llm: VideoLLM) -> None:
    result = run(llm, [First(), Pairs(), HalfInside()], questions(folder))
    assert result.undefined == (
        Undefined("pairs", 0.1, "pairs halve: 0.1 is less", 2),
        Undefined("half inside", 0.1, "too few to halve", 2),
    )
    assert result.methods == ["first", "pairs", "half inside"]
    assert isinstance(result.cell("pairs", 0.5), Row)
    with pytest.raises(KeyError, match="halve"):
        result.row("pairs", 0.1)
    content = json.loads(write_report(result, tmp_path)["results.json"].read_text())
    assert content["undefined"][1] == {
        "method": "half inside",
        "retention": 0.1,
        "reason": "too few to halve",
        "questions": 2,
    }
    text = as_markdown(result)
    assert "- pairs at 10 %: pairs halve: 0.1 is less (2 questions)" in text
    assert "| n. d. |" in text


def test_answers_are_those_of_the_reduced_prompt(folder: Path, llm: VideoLLM) -> None:
    items = questions(folder)
    encoded = ItemReader(llm, 4).encode(items[0])
    means = encoded.features.view(18, 2, -1).mean(dim=1)
    right = 0.0
    for item in items:
        seen = ItemReader(llm, 4).encode(item)
        seen.features[::2] = means
        logits = llm.first_logits(seen, torch.arange(0, 36, 2)[None])[0]
        right += "AB"[int(logits[llm.option_tokens("AB")].argmax())] == item.answer
    assert run(llm, [Pairs()], items).row("pairs", 0.5).accuracy == right / 2


def test_the_towers_attention_is_recorded_for_methods_that_need_it(tmp_path: Path, folder: Path, llm: VideoLLM) -> None:
    class Looked(Baseline):
        name = "looked"
        needs_tower_attention = True

        def select(self, case: EvaluationCase, retention: float) -> Tensor:
            assert case.encoded.tower is not None
            return case.encoded.tower.received.topk(case.budget(retention)).indices.sort().values

    reader = ItemReader(llm, 4, cache=EmbeddingCache(tmp_path, 10**7))
    plain = evaluate(reader, [First()], questions(folder), (0.5,))
    assert not reader.tower_attention
    both = evaluate(reader, [First(), Looked()], questions(folder), (0.5,))  # what is cached lacks the attention
    assert both.row("first", 0.5) == plain.row("first", 0.5)
    assert len(list(tmp_path.glob("*.arrow"))) == 2
    assert evaluate(reader, [First(), Looked()], questions(folder), (0.5,)) == both


def test_the_documented_method_of_ones_own_works(folder: Path, llm: VideoLLM) -> None:
    text = (Path(__file__).parents[3] / "docs" / "methods.md").read_text()
    scope: dict[str, type] = {}
    exec(compile(text.split("```python")[1].split("```")[0], "docs/methods.md", "exec"), scope)
    result = run(llm, [scope["Brightest"]()], questions(folder))
    assert result.row("brightest", 0.1).mean_share == 3 / 36


def test_a_method_that_is_nowhere_defined_still_has_its_place_in_reports(
    tmp_path: Path, folder: Path, llm: VideoLLM
) -> None:
    class Never:
        name = "never"

        def reduce(self, case: EvaluationCase, retention: float) -> Reduction:
            raise NotDefined("for no model")

    result = evaluate(ItemReader(llm, 4), [First(), Never()], questions(folder), (0.5, 0.1))
    assert result.methods == ["first", "never"]
    write_report(result, tmp_path)
    assert "| never | n. d. | n. d. |" in (tmp_path / "results.md").read_text()
