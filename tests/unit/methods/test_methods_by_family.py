"""Every method on every family of models: it keeps its budget or says why it is not defined."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from cacovid.errors import NotDefined
from cacovid.methods.baselines.fastv import FastV
from cacovid.methods.protocol import EvaluationCase, Method, reduction_by
from cacovid.methods.registry import BASELINES, build_methods
from cacovid.models.inside import answering_with
from cacovid.models.reduction import Reduction
from cacovid.records import VideoQuestion
from tests.support.reference_model import FLOAT32, FPS, PROMPT, Subject, greedy_without_cache, tiny_subject
from tests.support.tiny_models import BUILDERS

RATIOS = (0.8, 0.25, 0.05)
# Where a method's definition asks for more: a frame, a token a frame, or layers that see everything.
DEMANDING = {"fastv": 0.7, "framefusion": 0.7, "evs": 0.25, "fewer-frames": 0.25}
DEMANDING |= {"vidcom2": 0.12, "lower-resolution": 0.12}
BELOW = ("fewer-frames", "lower-resolution")  # whole frames and whole blocks seldom use the budget up
BEHIND = ("fastv-behind", "framefusion-behind")  # their budget is what is left in the end
MERGING = ("visionzip", "flashvid", "holitom", "prunevid", "lower-resolution")
INSIDE = ("flashvid", "holitom", "prunevid", "framefusion", "framefusion-behind", "fastv", "fastv-behind")


@dataclass
class Family:
    """A tiny model with a question about a clip that stands still half of the time."""

    subject: Subject
    case: EvaluationCase
    methods: dict[str, Method]


@pytest.fixture(scope="module", params=sorted(BUILDERS))
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    subject = tiny_subject(request.param, tmp_path_factory.mktemp(request.param))
    frames = subject.frames[[0, 0, 0, 0, 4, 5, 7, 7]]
    clip = subject.llm.watch(np.ascontiguousarray(frames), fps=FPS, tower_attention=True)
    item = VideoQuestion("q", "v.mp4", "what is the colour?", (), "red", "free-form", "made", evidence=(1, 5))
    methods = {method.name: method for method in build_methods(list(BASELINES), {}, subject.llm, seed=0)}
    return Family(subject, EvaluationCase(item, subject.llm.encode(clip, PROMPT), 0), methods)


def tokens_by_layer(family: Family, reduction: Reduction) -> list[int]:
    seen = reduction.applied(family.case.encoded)
    with answering_with(family.subject.llm, seen, reduction) as tokens:
        logits = family.subject.llm.first_logits(seen, reduction.keep[None])
    assert bool(logits.isfinite().all())
    return tokens


@pytest.mark.parametrize("name", list(BASELINES))
def test_methods_keep_the_budget_or_say_why_not(family: Family, name: str) -> None:
    merged = False
    for ratio in RATIOS:
        try:
            reduction = reduction_by(family.methods[name], family.case, ratio)
        except NotDefined:
            assert ratio < DEMANDING[name]
            continue
        again = reduction_by(family.methods[name], family.case, ratio)
        assert torch.equal(reduction.keep, again.keep)
        if reduction.rows is not None:
            assert again.rows is not None
            assert torch.equal(reduction.rows, again.rows)
        merged |= reduction.rows is not None
        tokens, budget = tokens_by_layer(family, reduction), family.case.budget(ratio)
        if name in BEHIND:
            assert tokens[-1] == budget
        elif name in BELOW:
            assert tokens[0] <= budget
        elif name in INSIDE:
            assert budget - 1 < sum(tokens) / len(tokens) <= budget
        else:
            assert tokens == [budget] * len(tokens)
    assert merged or name not in MERGING


@pytest.mark.parametrize("name", INSIDE)
def test_cached_answers_of_methods_inside_equal_uncached_ones(family: Family, name: str) -> None:
    reduction = reduction_by(family.methods[name], family.case, 0.8 if name in DEMANDING else 0.25)
    llm, seen = family.subject.llm, reduction.applied(family.case.encoded)
    with answering_with(llm, seen, reduction):
        (cached,) = llm.answer(seen, reduction.keep[None], 8).tokens
        (uncached,) = greedy_without_cache(llm, llm.pack(seen, reduction.keep[None]), 8)
    assert len(cached) == 8
    assert list(cached) == uncached


def test_fastv_keeps_what_the_layer_before_attends_to(family: Family) -> None:
    """Against the model's own eager attention weights, and against masks that hide what FastV drops."""
    llm, encoded = family.subject.llm, family.case.encoded
    reduction = family.methods["fastv-behind"].reduce(family.case, 0.25)  # type: ignore[union-attr]
    layer = reduction.inside.layer
    assert layer == (2 if llm.kind == "qwen3_vl" else 1)
    with answering_with(llm, encoded, reduction):
        logits = llm.first_logits(encoded, reduction.keep[None])[0]
    decoder, packed = llm.model.get_decoder(), llm.pack(encoded, reduction.keep[None])
    decoder.set_attn_implementation("eager")
    with torch.no_grad():
        weights = llm.model(**packed, output_attentions=True).attentions[layer - 1][0]
    decoder.set_attn_implementation("sdpa")
    attended = weights[:, -1, encoded.video_columns].mean(dim=0)
    top = attended.topk(family.case.budget(0.25)).indices
    visible = torch.ones(encoded.length, encoded.length, dtype=torch.bool).tril()
    dropped = torch.ones(encoded.grid.tokens, dtype=torch.bool).index_fill(0, top, False)
    visible[:, encoded.video_columns[dropped]] = False
    visible.fill_diagonal_(True)
    handles = [
        later.register_forward_pre_hook(
            lambda _layer, args, kwargs: (args, kwargs | {"attention_mask": visible[None, None]}), with_kwargs=True
        )
        for later in llm.decoder_layers[layer:]
    ]
    expected = llm.first_logits(encoded, reduction.keep[None])[0]
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(logits, expected, atol=FLOAT32, rtol=0)


def test_methods_that_read_the_tower_are_not_defined_without_it(family: Family) -> None:
    blind = EvaluationCase(family.case.item, family.subject.encoded, 0)
    for name, method in family.methods.items():
        if BASELINES[name].needs_tower_attention:
            with pytest.raises(NotDefined, match="not recorded"):
                reduction_by(method, blind, 0.25)
        else:
            reduction_by(method, blind, 0.8)


def test_depth_is_the_models(family: Family) -> None:
    fastv = family.methods["fastv"]
    assert isinstance(fastv, FastV)
    assert fastv.layers == 3
