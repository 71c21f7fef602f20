"""Both policies learn from, and are saved for, the prompts of every family of Video-LLMs."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cacovid.config import ModelConfig, PolicyConfig
from cacovid.models.adapter import VideoLLM
from cacovid.models.loading import load_video_llm
from cacovid.policy.base import CompressionPolicy
from cacovid.policy.batch import collate
from cacovid.policy.build import build_policy
from cacovid.policy.decoder_layer import FirstLayer
from cacovid.policy.paper import PaperPolicy
from cacovid.records import PolicyInput
from tests.support.tiny_models import BUILDERS, save_tiny_model

QUESTIONS = ("what is the colour of the circle?", "where is the red square before the blue one?")


@pytest.fixture(scope="module", params=sorted(BUILDERS))
def llm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> VideoLLM:
    folder = save_tiny_model(request.param, tmp_path_factory.mktemp(request.param))
    return load_video_llm(ModelConfig(path=str(folder), device="cpu"))


def inputs(llm: VideoLLM) -> list[PolicyInput]:
    """Two prompts of different length about one clip."""
    frames = np.random.default_rng(0).integers(0, 256, (4, 48, 48, 3), dtype=np.uint8)
    clip = llm.watch(frames)
    return [llm.encode(clip, question).policy_input() for question in QUESTIONS]


def policy_of(kind: str, llm: VideoLLM, **settings: object) -> CompressionPolicy:
    layer = FirstLayer.from_language_model(llm.model.get_decoder())
    return build_policy(PolicyConfig(kind=kind, **settings), llm.hidden_size, layer, seed=0)


@pytest.mark.parametrize("kind", ["late", "paper"])
def test_every_parameter_learns_from_a_padded_batch(llm: VideoLLM, kind: str) -> None:
    policy = policy_of(kind, llm).train()
    output = policy(collate(inputs(llm)))
    assert output.token_scores.isfinite().all()
    assert output.token_scores.std() > 0
    (output.token_logits.square().sum() + output.frame_logits.square().sum()).backward()
    for name, parameter in policy.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("kind", ["late", "paper"])
def test_a_saved_policy_comes_back_without_the_model(llm: VideoLLM, kind: str, tmp_path: Path) -> None:
    policy, items = policy_of(kind, llm), inputs(llm)
    policy.save_pretrained(tmp_path)
    again = CompressionPolicy.from_pretrained(tmp_path)
    for ours, theirs in zip(policy.eval().logits(items), again.logits(items), strict=True):
        assert torch.equal(ours, theirs)


def test_the_paper_policy_starts_from_the_models_own_first_layer(llm: VideoLLM) -> None:
    policy = policy_of("paper", llm)
    assert isinstance(policy, PaperPolicy)
    own = llm.model.get_decoder().layers[0].state_dict()
    copied = policy.layer.layer.state_dict()
    assert own.keys() == copied.keys()
    assert all(torch.equal(own[name], copied[name]) for name in own)


def with_other_text(item: PolicyInput, columns: Tensor) -> PolicyInput:
    """The prompt with other text in some of its text columns, (Lt,) bool."""
    return dataclasses.replace(item, text=torch.where(columns[:, None], item.text.flip(1), item.text))


@torch.no_grad()
def test_video_logits_depend_on_the_text_that_the_policy_may_see_and_on_no_other(llm: VideoLLM) -> None:
    """Full attention sees the question behind the video; causal attention does not, and a blind policy no text."""
    item, _ = inputs(llm)
    first, last = int(item.video_columns.min()), int(item.video_columns.max())
    before, after = item.text_columns < first, item.text_columns > last
    assert int(after.sum()) >= 10  # the question and what follows it
    policies = {
        "full": policy_of("paper", llm),
        "causal": policy_of("paper", llm, attention="causal"),
        "late": policy_of("late", llm),
        "blind": policy_of("late", llm, question_aware=False),
    }
    sees = {"full": (True, True), "causal": (True, False), "late": (True, True), "blind": (False, False)}
    for name, policy in policies.items():
        same = policy.eval().logits([item])
        for columns, seen in zip((before, after), sees[name], strict=True):
            if not columns.any():
                continue
            other = policy.logits([with_other_text(item, columns)])
            for ours, theirs in zip(same, other, strict=True):
                changed = (ours - theirs).abs().amax(dim=-1)[0]
                assert bool((changed > 0).all()) if seen else bool((changed == 0).all()), (name, seen)


@torch.no_grad()
def test_the_paper_policy_sees_the_question_and_the_positions(llm: VideoLLM) -> None:
    policy, (item, other) = policy_of("paper", llm).eval(), inputs(llm)
    assert not torch.equal(policy.logits([item]).token_logits, policy.logits([other]).token_logits)
    batch = collate([item])
    batch.position_ids[:] = batch.position_ids.flip(-1)
    assert not torch.allclose(policy.logits([item]).token_logits, policy(batch).token_logits)
