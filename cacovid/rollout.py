"""One item's rollout: sample combinations from the old policy, let the Video-LLM answer, reward.

    Encoded -> old policy -> logits --+--> sample_combinations -> score -> ScoredCombinations --+
                                      +<------------- next inner iteration, its rate adapted ---+
    all inner iterations -> RolloutRecord, for the learner

A rollout is a pure function of (seed, step, item, policy weights): the same on any actor. So several actors may each
draw all its combinations and score a part of them.

Shape legend: G combinations per inner iteration, N video tokens, T frames.
"""

from dataclasses import dataclass

import torch

from cacovid.answering.scoring import score
from cacovid.config import SamplingConfig
from cacovid.models.adapter import VideoLLM
from cacovid.models.encoded import Encoded
from cacovid.policy.base import CompressionPolicy
from cacovid.records import RolloutInput, RolloutRecord, ScoredCombinations, VideoQuestion
from cacovid.sampling.adaptive_rate import adapt_rate
from cacovid.sampling.ocss import sample_combinations
from cacovid.sampling.rates import rate_of
from cacovid.seeding import generator


@dataclass(frozen=True)
class Part:
    """Which of an item's combinations are scored: part ``number``, from 0, of ``of`` nearly equal ones."""

    number: int = 0
    of: int = 1

    def rows(self, group: int) -> slice:
        """Its rows of ``group`` combinations."""
        return slice(group * self.number // self.of, group * (self.number + 1) // self.of)


WHOLE = Part()


@dataclass(frozen=True)
class RolloutRequest:
    """What a rollout depends on beside the item and the weights."""

    seed: int  # the run's
    step: int  # training step that the record is for
    policy_version: int  # finished training steps of the weights in use
    tokens_per_frame: int | None  # k of every frame; None starts from the adaptive rate
    part: Part = WHOLE  # all combinations
    explore: float = 0.0  # share of the drawn combinations that follow no policy


@torch.inference_mode()
def roll_out(
    video_llm: VideoLLM,
    policy: CompressionPolicy,
    encoded: Encoded,
    item: VideoQuestion,
    sampling: SamplingConfig,
    request: RolloutRequest,
) -> RolloutRecord:
    """All inner iterations of one item, drawn from the same old logits (paper, OCSS); of each ``request.part`` alone.

    Raises:
        BadItem: The item's answer cannot be rewarded.
    """
    inputs = encoded.policy_input()
    output = policy.logits([inputs])
    token_logits, frame_logits = output.token_logits[0].float(), output.frame_logits[0].float()
    fixed = request.tokens_per_frame
    rate = sampling.rate if fixed is None else rate_of(fixed, inputs.grid)
    iterations: list[ScoredCombinations] = []
    for iteration in range(sampling.inner_iterations):
        if fixed is None:
            rate = adapt_rate(rate, iterations, sampling)
        combinations = sample_combinations(
            token_logits.cpu(),
            frame_logits.cpu(),
            inputs.features,
            inputs.grid,
            sampling,
            rate,
            generator(request.seed, "rollout", request.step, item.id, iteration),
            request.explore,
        ).rows(request.part.rows(sampling.group))
        keep = combinations.kept.long().to(video_llm.device)
        scores = score(video_llm, encoded, item, keep)
        iterations.append(ScoredCombinations(combinations, scores.reward, scores.likelihood))
    return RolloutRecord(
        item_id=item.id,
        step=request.step,
        policy_version=request.policy_version,
        input=inputs.cpu(),
        old_token_logits=token_logits.cpu(),
        old_frame_logits=frame_logits.cpu(),
        iterations=tuple(iterations),
    )


@torch.inference_mode()
def look_again(encoded: Encoded, policy: CompressionPolicy | None) -> RolloutInput:
    """The input of an item that was rolled out before, when the first one is gone.

    Args:
        policy: The one that drew the rollout; None leaves its logits out.
    """
    inputs = encoded.policy_input()
    if policy is None:
        return RolloutInput(inputs.cpu(), torch.empty(0, 2), torch.empty(0, 2))
    output = policy.logits([inputs])
    return RolloutInput(inputs.cpu(), output.token_logits[0].float().cpu(), output.frame_logits[0].float().cpu())
