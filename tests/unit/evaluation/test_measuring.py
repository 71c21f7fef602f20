"""The evaluation loop on a tiny random model: what is counted, batched, skipped and reported."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cacovid.config import ModelConfig, PolicyConfig, SelectionConfig, TrainConfig
from cacovid.data.reader import ItemReader
from cacovid.data.skipped import SkippedItems
from cacovid.errors import BadItem, UserError
from cacovid.evaluation.measuring import evaluate, plan
from cacovid.evaluation.question import Answer
from cacovid.evaluation.reports.files import as_markdown, write_report
from cacovid.evaluation.result import EvaluationResult
from cacovid.evaluation.rows import FULL
from cacovid.methods.policy_method import PolicyMethod
from cacovid.methods.protocol import EvaluationCase
from cacovid.methods.registry import build_methods
from cacovid.methods.selection import budget
from cacovid.models.adapter import VideoLLM
from cacovid.models.loading import load_video_llm
from cacovid.policy.base import CompressionPolicy
from cacovid.policy.build import policy_for
from cacovid.records import VideoQuestion
from tests.support.answers_asked import sizes_asked
from tests.support.tiny_models import save_tiny_model
from tests.support.video_files import grey_levels, write_video

RATIOS = (1.0, 0.5, 0.1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model and three videos."""
    made = tmp_path_factory.mktemp("evaluation")
    save_tiny_model("llava_onevision", made / "model")
    for number in range(3):
        write_video(made / f"v{number}.mp4", grey_levels(6 + number), size=(64, 64))
    return made


@pytest.fixture(scope="module")
def llm(folder: Path) -> VideoLLM:
    return load_video_llm(ModelConfig(path=str(folder / "model"), num_frames=4, max_new_tokens=3, dtype="float32"))


@pytest.fixture(scope="module")
def policy(llm: VideoLLM) -> CompressionPolicy:
    return policy_for(llm, TrainConfig(model=llm.config)).eval()


def questions(folder: Path) -> list[VideoQuestion]:
    return [
        VideoQuestion(
            id=f"q{number}-{letter}",
            video=str(folder / f"v{number}.mp4"),
            question=f"what is frame {letter}?",
            options=("red", "blue", "green"),
            answer=letter,
            problem_type="multiple choice",
            source="made",
            evidence=(number, 20),
            other_objects=(5, 6, 30),
        )
        for number in range(3)
        for letter in "AB"
    ]


class Watched:
    """Keeps the first tokens and counts what it was asked."""

    def __init__(self, name: str = "first") -> None:
        self.name = name
        self.asked: list[tuple[str, float]] = []

    def select(self, case: EvaluationCase, retention: float) -> Tensor:
        self.asked.append((case.item.id, retention))
        return torch.arange(case.budget(retention))


def run(
    llm: VideoLLM, methods: Sequence[object], items: Sequence[VideoQuestion], **settings: object
) -> EvaluationResult:
    return evaluate(ItemReader(llm, 4), methods, items, RATIOS, **settings)  # type: ignore[arg-type]


def test_rows_hold_every_method_and_ratio_with_counts(folder: Path, llm: VideoLLM, policy: CompressionPolicy) -> None:
    names = ["policy", "untrained", "divprune", "text-cosine", "uniform", "random", "oracle"]
    methods = build_methods(names, {"policy": policy}, llm, seed=7)
    calls: list[tuple[int, int]] = []
    result = run(llm, methods, questions(folder), seed=3, progress=lambda done, total: calls.append((done, total)))
    assert result.methods == names
    assert result.retentions == [1.0, 0.5, 0.1]
    assert [(row.method, row.retention) for row in result.rows] == [(name, ratio) for name in names for ratio in RATIOS]
    assert {row.n for row in result.rows} == {6}
    assert (result.clips, result.questions, result.seed, result.skipped) == (3, 6, 3, 0)
    assert calls == [(number, 6) for number in range(1, 7)]
    assert all(row.accuracy == result.full_accuracy for row in result.rows if row.retention == 1.0)
    assert all(row.evidence_recall == 1.0 for row in result.rows if row.retention == 1.0 or row.method == "oracle")
    assert set(result.question_awareness) == {"policy", "untrained", "text-cosine"}
    assert result.question_awareness_auc == result.question_awareness["policy"]


def test_answers_from_all_tokens_are_asked_for_once(
    folder: Path, llm: VideoLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    items, asked = questions(folder), sizes_asked(monkeypatch)
    known: dict[str, Answer] = {}
    first, second = (run(llm, [Watched()], items, full=known) for _ in range(2))
    whole = max(asked)
    assert asked.count(whole) == len(items) == len(known)
    assert asked.count(budget(0.1, whole)) == 2 * len(items)
    assert second.rows == first.rows
    assert second.full_accuracy == first.full_accuracy


def test_the_same_seed_gives_the_same_result(folder: Path, llm: VideoLLM, policy: CompressionPolicy) -> None:
    def once() -> EvaluationResult:
        return run(llm, build_methods(["policy", "random"], {"policy": policy}, llm, seed=0), questions(folder))

    assert once() == once()


def test_accuracy_is_that_of_answering_each_selection_alone(folder: Path, llm: VideoLLM) -> None:
    items = questions(folder)
    result = run(llm, [Watched("first"), *build_methods(["uniform"], {}, llm, seed=0)], items)
    right = 0
    for item in items:
        encoded = ItemReader(llm, 4).encode(item)
        logits = llm.first_logits(encoded, torch.arange(18)[None])[0]
        right += "ABC"[int(logits[llm.option_tokens("ABC")].argmax())] == item.answer
    assert result.row("first", 0.5).accuracy == pytest.approx(right / len(items))
    recall = sum(len({number, 20} & set(range(18))) / 2 for number in (0, 0, 1, 1, 2, 2)) / 6
    assert result.row("first", 0.5).evidence_recall == pytest.approx(recall)


def test_equal_selections_are_answered_once_in_one_batch(
    folder: Path, llm: VideoLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[tuple[int, ...]] = []
    original = llm.first_logits

    def counting(encoded: object, keep: Tensor) -> Tensor:
        sizes.append(tuple(keep.shape))
        return original(encoded, keep)  # type: ignore[arg-type]

    monkeypatch.setattr(llm, "first_logits", counting)
    methods = [Watched("first"), Watched("again"), *build_methods(["uniform"], {}, llm, seed=0)]
    run(llm, methods, questions(folder)[:1])
    assert sizes == [(1, 36), (2, 18), (2, 3)]


def test_questions_about_one_video_are_decoded_and_encoded_once(
    folder: Path, llm: VideoLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = 0
    original = llm.watch

    def counting(*args: object, **kwargs: object) -> object:
        nonlocal watched
        watched += 1
        return original(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(llm, "watch", counting)
    run(llm, [Watched()], questions(folder))
    assert watched == 3


def test_generated_answers_are_scored_by_their_problem_type(folder: Path, llm: VideoLLM) -> None:
    spoken = [replace(item, problem_type="free-form", options=(), answer="red blue") for item in questions(folder)[:2]]
    result = run(llm, [Watched()], spoken)
    assert 0 <= result.row("first", 0.1).accuracy <= 1


def test_unusable_items_are_set_aside_and_the_rest_is_measured(tmp_path: Path, folder: Path, llm: VideoLLM) -> None:
    items = questions(folder)
    items[2] = replace(items[2], video=str(folder / "none.mp4"))
    items[4] = replace(items[4], answer="Z")
    with pytest.raises(BadItem, match=r"none\.mp4"):
        run(llm, [Watched()], items)
    skipped = SkippedItems(tmp_path / "skipped.jsonl", max_share=0.5)
    result = run(llm, [Watched()], items, skipped=skipped)
    assert (result.questions, result.skipped, result.clips) == (4, 2, 3)
    ids = [json.loads(line)["id"] for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert ids == [items[2].id, items[4].id]
    with pytest.raises(UserError, match="unusable"):
        run(llm, [Watched()], items, skipped=SkippedItems(tmp_path / "strict.jsonl", max_share=0.1))


def test_bad_arguments_are_refused_before_any_work(folder: Path, llm: VideoLLM, policy: CompressionPolicy) -> None:
    method = Watched()
    for ratios in ((0.0,), (0.5, 1.5), (), (float("nan"),)):
        with pytest.raises(UserError, match="retention"):
            evaluate(ItemReader(llm, 4), [method], questions(folder), ratios)
    assert not method.asked
    for names, message in (
        (["fastest"], "unknown method 'fastest': choose of policy, untrained, divprune"),
        (["random", "random"], "given twice"),
        ([], "no method"),
        (["policy"], "needs a trained policy"),
    ):
        with pytest.raises(UserError, match=message):
            build_methods(names, {}, llm, seed=0)
    with pytest.raises(UserError, match="two methods are called 'random'"):
        build_methods(["random", "policy"], {"random": policy}, llm, seed=0)


def test_a_policy_of_another_model_is_refused(llm: VideoLLM, policy: CompressionPolicy) -> None:
    other = policy_for(llm, TrainConfig(model=llm.config))
    other.metadata = other.metadata.model_copy(update={"model_fingerprint": "0" * 16})
    with pytest.raises(UserError, match="trained for the model"):
        build_methods(["policy"], {"policy": other}, llm, seed=0)


def test_evidence_is_optional_but_the_oracle_needs_it(
    folder: Path, llm: VideoLLM, policy: CompressionPolicy, tmp_path: Path
) -> None:
    blind = [replace(item, evidence=(), other_objects=()) for item in questions(folder)[:2]]
    result = run(llm, build_methods(["policy", "random"], {"mine": policy}, llm, seed=0), blind)
    assert result.question_awareness_auc is None
    assert all(row.evidence_recall is None for row in result.rows)
    written = json.loads(write_report(result, tmp_path)["results.json"].read_text())
    assert written["question_awareness_auc"] is None
    assert "Evidence recall" not in as_markdown(result)
    with pytest.raises(UserError, match="needs evidence"):
        run(llm, build_methods(["oracle"], {}, llm, seed=0), blind)


def test_the_policy_runs_afresh_at_each_ratio_so_that_its_time_is_whole(folder: Path, llm: VideoLLM) -> None:
    class Counting(torch.nn.Module):
        calls = 0

        def logits(self, inputs: Sequence[object]) -> object:
            Counting.calls += 1
            return real.logits(inputs)  # type: ignore[arg-type]

    real = policy_for(llm, TrainConfig(model=llm.config))
    method = PolicyMethod("policy", Counting(), SelectionConfig())  # type: ignore[arg-type]
    run(llm, [method], questions(folder)[:2])
    assert Counting.calls == 2 * (2 + 1)  # two ratios with something to choose, and the awareness


def test_several_policies_and_kinds_share_one_table(folder: Path, llm: VideoLLM, policy: CompressionPolicy) -> None:
    paper = policy_for(llm, TrainConfig(model=llm.config, policy=PolicyConfig(kind="paper"))).eval()
    methods = build_methods(["policy", "untrained"], {"late": policy, "paper": paper}, llm, seed=0)
    result = run(llm, methods, questions(folder)[:2])
    assert result.methods == ["late", "paper", "untrained"]
    assert result.question_awareness_auc == result.question_awareness["late"] != result.question_awareness["paper"]


def test_results_json_has_the_agreed_form(
    tmp_path: Path, folder: Path, llm: VideoLLM, policy: CompressionPolicy
) -> None:
    result = run(llm, build_methods(["policy", "random"], {"policy": policy}, llm, seed=0), questions(folder))
    paths = write_report(result, tmp_path / "report")
    content = json.loads(paths["results.json"].read_text())
    agreed = ["model", "clips", "questions", "seed", "full_accuracy", "question_awareness_auc", "rows"]
    assert list(content)[: len(agreed)] == agreed
    further = {"full_stderr", "question_awareness", "skipped", "undefined", "slices", "swapped"}
    assert set(content) - set(agreed) == further
    known = ["method", "retention", "accuracy", "stderr", "evidence_recall", "n", "input_share", "mean_share"]
    for row in content["rows"]:
        assert list(row) == [*known, "share_of_full", "agreement", "versus"]
    assert content["rows"][0]["accuracy"] == result.rows[0].accuracy
    markdown = paths["results.md"].read_text()
    assert "| method | 100 % | 50 % | 10 % | AUC |" in markdown
    assert paths["results.png"].read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == [
        "results.json",
        "results.md",
        "results.png",
        "times.json",
    ]


def test_clustered_errors_see_videos_not_questions(folder: Path, llm: VideoLLM) -> None:
    """Every question asked twice tells nothing new."""
    items = questions(folder)
    once = run(llm, [Watched()], items)
    twice = run(llm, [Watched()], [*items, *(replace(item, id=f"{item.id} again") for item in items)])
    assert once.full_stderr > 0
    assert twice.full_stderr == pytest.approx(once.full_stderr, abs=1e-9)
    for row, doubled in zip(once.rows, twice.rows, strict=True):
        assert (doubled.n, doubled.accuracy) == (2 * row.n, row.accuracy)
        assert doubled.stderr == pytest.approx(row.stderr, abs=1e-9)


def test_the_swapped_control_asks_this_question_from_what_was_kept_for_another(folder: Path, llm: VideoLLM) -> None:
    class Asking:
        """Keeps the first tokens for questions about A, the last ones for B."""

        name = "asking"

        def select(self, case: EvaluationCase, retention: float) -> Tensor:
            kept, whole = case.budget(retention), case.input.grid.tokens
            return torch.arange(kept) if "A?" in case.item.question else torch.arange(whole - kept, whole)

    items = [replace(item, evidence=(), other_objects=()) for item in questions(folder)]
    result = run(llm, [Asking(), *build_methods(["uniform", "random"], {}, llm, seed=0)], items, swapped=True)
    found = {(each.method, each.retention): each for each in result.swapped}
    last = torch.arange(36 - 3, 36)
    right = 0
    for item in items:
        keep = last if "A?" in item.question else torch.arange(3)
        logits = llm.first_logits(ItemReader(llm, 4).encode(item), keep[None])[0]
        right += "ABC"[int(logits[llm.option_tokens("ABC")].argmax())] == item.answer
    assert found["asking", 0.1].accuracy == pytest.approx(right / 6)
    for name in ("uniform", "random"):
        assert found[name, 0.1].change == found[name, 0.1].change_stderr == 0.0
    assert found["asking", 0.1].n == 6


def test_another_question_is_one_about_the_same_clip_that_asks_something_else(folder: Path) -> None:
    assert not any(each.other for each in plan(questions(folder), swapped=True))  # the same evidence serves both
    items = [replace(item, evidence=(place,)) for place, item in enumerate(questions(folder))]
    same = replace(items[0], id="same words")
    other_part = replace(items[0], id="other part", start=1.0, question="what else?")
    asked = {each.item.id: each for each in plan([*items, same, other_part], swapped=True, timed=2)}
    assert [asked[id].other for id in ("q0-A", "q0-B", "same words")] == [items[1], same, items[1]]
    assert asked["other part"].other is None
    assert [each.item.id for each in asked.values() if each.timed] == ["q0-A", "q1-A"]
    assert not any(each.other or each.timed for each in plan(items))


def test_a_few_questions_are_timed_with_and_without_the_tower(folder: Path, llm: VideoLLM, tmp_path: Path) -> None:
    methods = [Watched(), *build_methods(["visionzip", "fastv"], {}, llm, seed=0)]
    result = run(llm, methods, questions(folder), timed=2)
    assert result.times[0].method == FULL
    for each in result.times:
        assert each.prefill_ms is not None
        assert each.tower_ms is not None
        assert each.first_token_ms == pytest.approx(each.compress_ms + each.prefill_ms)
        assert each.first_token_with_tower_ms == pytest.approx(each.first_token_ms + each.tower_ms)
        assert each.memory_bytes is not None
        assert each.memory_bytes > 10**6
    paths = write_report(result, tmp_path)
    times = json.loads(paths["times.json"].read_text())
    assert times["memory_bytes"]["CPU"].startswith("resident")
    assert {row["device"] for row in times["rows"]} == {"CPU"}
    assert paths["accuracy-over-time.png"].read_bytes().startswith(b"\x89PNG")
