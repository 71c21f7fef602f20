"""Dropping and merging within the LLM, for every family: against masks, and with and without a cache."""

import pytest
import torch
from torch import Tensor

from cacovid.errors import NotDefined
from cacovid.models.inside import answering_with
from cacovid.models.layer_view import LayerView
from cacovid.models.reduction import Merge, Reduction
from tests.support.reference_model import FLOAT32, Subject, greedy_without_cache, tiny_subject
from tests.support.tiny_models import BUILDERS

LAYER = 2  # of 3; Qwen3-VL adds deepstack levels behind the two before


@pytest.fixture(scope="module", params=sorted(BUILDERS))
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return tiny_subject(request.param, tmp_path_factory.mktemp(request.param))


class Third:
    """A third of the tokens by the last query's attention; the others are dropped or averaged into them."""

    def __init__(self, merges: bool = False) -> None:
        self.merges = merges
        self.kept: Tensor | None = None
        self.layers: list[int] = []

    def step(self, view: LayerView) -> Merge | None:
        self.layers.append(view.layer)
        if view.layer != LAYER:
            return None
        count = len(view.tokens)
        top = view.last_query().topk(count // 3).indices.sort().values
        self.kept = view.tokens[top]
        if not self.merges:
            return Merge.keeping(top, count)
        target = top[torch.arange(count) % len(top)]
        target[top] = top
        return Merge.averaging(target)


def every_second(subject: Subject) -> Tensor:
    return torch.arange(0, subject.tokens, 2)


@pytest.mark.parametrize("merges", [False, True])
def test_cached_answers_equal_uncached_ones(subject: Subject, merges: bool) -> None:
    step = Third(merges)
    reduction = Reduction(every_second(subject), inside=step)
    with answering_with(subject.llm, subject.encoded, reduction) as tokens:
        (cached,) = subject.llm.answer(subject.encoded, reduction.keep[None], 12).tokens
        prompt = subject.llm.pack(subject.encoded, reduction.keep[None])
        (uncached,) = greedy_without_cache(subject.llm, prompt, 12)
    assert len(cached) == 12
    assert list(cached) == uncached
    half = len(reduction.keep)
    assert tokens == [half, half, half // 3]
    assert step.layers == ([2] if subject.llm.kind == "qwen3_vl" else [1, 2])  # asked once, whatever passes follow


def test_dropped_columns_are_seen_by_nobody_from_their_layer_on(subject: Subject) -> None:
    """The slow reference keeps all columns and hides the dropped ones by a mask, in the layers from there on."""
    llm, step = subject.llm, Third()
    reduction = Reduction(torch.arange(subject.tokens), inside=step)
    with answering_with(llm, subject.encoded, reduction):
        logits = llm.first_logits(subject.encoded, reduction.keep[None])[0]
    assert step.kept is not None
    hidden = torch.ones(subject.tokens, dtype=torch.bool)
    hidden[step.kept] = False
    length = subject.encoded.length
    visible = torch.ones(length, length, dtype=torch.bool).tril()
    visible[:, subject.encoded.video_columns[hidden]] = False
    visible.fill_diagonal_(True)

    def masked(_layer: object, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        return args, kwargs | {"attention_mask": visible[None, None]}

    handle = llm.decoder_layers[LAYER].register_forward_pre_hook(masked, with_kwargs=True)
    expected = llm.first_logits(subject.encoded, reduction.keep[None])[0]
    handle.remove()
    torch.testing.assert_close(logits, expected, atol=FLOAT32, rtol=0)
    whole = llm.first_logits(subject.encoded, reduction.keep[None])[0]
    assert (logits - whole).abs().max() > 100 * FLOAT32
    assert llm.model.get_decoder().config._attn_implementation == "sdpa"


@pytest.mark.parametrize("merges", [False, True])
def test_equal_rows_of_a_batch_are_cut_alike(subject: Subject, merges: bool) -> None:
    """Flash attention is given a lone prompt twice."""
    keep = every_second(subject)[None]
    with answering_with(subject.llm, subject.encoded, Reduction(keep[0], inside=Third(merges))):
        alone = subject.llm.first_logits(subject.encoded, keep)
        twice = subject.llm.first_logits(subject.encoded, keep.expand(2, -1))
    torch.testing.assert_close(twice, alone.expand(2, -1), atol=FLOAT32, rtol=0)


def test_steps_that_change_nothing_change_nothing(subject: Subject) -> None:
    class Idle:
        def step(self, view: LayerView) -> Merge | None:
            return None if view.layer == 1 else Merge.keeping(torch.arange(len(view.tokens)), len(view.tokens))

    keep = every_second(subject)
    with answering_with(subject.llm, subject.encoded, Reduction(keep, inside=Idle())):
        logits = subject.llm.first_logits(subject.encoded, keep[None])
        answer = subject.llm.answer(subject.encoded, keep[None], 8)
    assert torch.equal(logits, subject.llm.first_logits(subject.encoded, keep[None]))
    assert answer == subject.llm.answer(subject.encoded, keep[None], 8)


def test_a_view_shows_the_attention_of_the_layer_before(subject: Subject) -> None:
    seen: list[LayerView] = []
    maps: list[tuple[Tensor, Tensor]] = []

    class Look:
        def step(self, view: LayerView) -> Merge | None:
            seen.append(view)
            maps.append((view.last_query(), view.text_queries()))
            return None

    keep = every_second(subject)
    with answering_with(subject.llm, subject.encoded, Reduction(keep, inside=Look())):
        subject.llm.first_logits(subject.encoded, keep[None])
    decoder = subject.llm.model.get_decoder()
    decoder.set_attn_implementation("eager")
    packed = subject.llm.pack(subject.encoded, keep[None])
    with torch.no_grad():
        weights = subject.llm.model(**packed, output_attentions=True).attentions
    decoder.set_attn_implementation("sdpa")
    dropped = torch.ones(subject.tokens, dtype=torch.bool).index_fill(0, keep, False)
    columns = torch.ones(subject.encoded.length, dtype=torch.bool)
    columns[subject.encoded.video_columns[dropped]] = False
    is_video = torch.zeros(subject.encoded.length, dtype=torch.bool)
    is_video[subject.encoded.video_columns] = True
    video = is_video[columns].nonzero().squeeze(1)
    for view, (last, text) in zip(seen, maps, strict=True):
        layer = weights[view.layer - 1][0]  # (H, S, S)
        torch.testing.assert_close(last, layer[:, -1, video].mean(dim=0), atol=1e-6, rtol=0)
        torch.testing.assert_close(text, layer[:, int(video[-1]) + 1 :, video].amax(dim=(0, 1)), atol=1e-6, rtol=0)
        assert torch.equal(view.tokens, keep)
        assert view.counts == (len(keep),) * view.layer


def test_layers_of_sliding_attention_are_not_defined(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    config = subject.llm.model.get_decoder().config
    monkeypatch.setattr(config, "layer_types", ["sliding_attention"] * 3, raising=False)
    keep = every_second(subject)
    with (
        pytest.raises(NotDefined, match="sliding"),
        answering_with(subject.llm, subject.encoded, Reduction(keep, inside=Third())),
    ):
        pass


def test_merges_are_linear_and_compose() -> None:
    tokens = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 8.0], [9.0, 9.0]])
    first = Merge.averaging(torch.tensor([0, 0, 2, -1]))
    assert first.kept.tolist() == [0, 2]
    assert first.rows(tokens).tolist() == [[2.0, 0.0], [0.0, 8.0]]
    second = Merge(torch.tensor([0, -1, 0, -1]), torch.tensor([0.75, 0.0, 0.25, 0.0]))
    assert first.then(second).kept.tolist() == [0]
    assert first.then(second).rows(tokens).tolist() == [[1.5, 2.0]]
    assert Merge.keeping(torch.tensor([1, 3]), 4).only_drops
    assert not first.only_drops
    assert torch.equal(Merge.keeping(torch.tensor([1, 3]), 4).rows(tokens), tokens[[1, 3]])
