"""The stages of training and inference, each timed alone on one device.

Shape legend: B prompts of one optimiser step, G combinations, k retained of N video tokens, Lt text columns.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from benchmarks.real_shape.mixed_precision import MixedPrecisionAdamW
from benchmarks.timing import Spread, Work, seconds
from cacovid.answering.prompting import format_prompt
from cacovid.config import TrainConfig
from cacovid.methods.selection import select_tokens
from cacovid.models.adapter import VideoLLM
from cacovid.models.encoded import Encoded
from cacovid.objective.loss import batch_loss
from cacovid.policy.base import CompressionPolicy, PolicyOutput
from cacovid.policy.batch import collate
from cacovid.records import RolloutRecord, VideoQuestion
from cacovid.rollout import RolloutRequest, roll_out
from cacovid.sampling.ocss import sample_combinations
from cacovid.sampling.rates import rate_of
from cacovid.seeding import generator

FRAME_SIDE = 384  # pixels of the made-up frames; the processor resizes them
OPTIONS = ("red", "blue", "green", "white")
ITEM = VideoQuestion("random", "", "what color is the ring object? " * 8, OPTIONS, "A", "multiple choice", "random")


@dataclass(frozen=True)
class Stage:
    """One stage's cost."""

    name: str
    seconds: float  # median over the repeats
    tokens: int  # columns that the stage's network reads in that time, text and video
    peak_bytes: int | None  # most memory in use on the device meanwhile; None where it does not say

    @property
    def tokens_per_second(self) -> float:
        """Columns read per second."""
        return self.tokens / self.seconds


class Stopwatch:
    """Runs work repeatedly on a device, waiting for the device to finish."""

    def __init__(self, device: torch.device, repeats: int) -> None:
        self.device = device
        self.repeats = repeats

    def stage(self, name: str, tokens: int, work: Work) -> Stage:
        """Median seconds and peak memory of ``work()``, after one run that warms up."""
        work()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        times = [self._seconds(work) for _ in range(self.repeats)]
        peak = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else None
        return Stage(name, Spread.of(times).median, tokens, peak)

    def _seconds(self, work: Work) -> float:
        def until_done() -> None:
            work()
            self._wait()

        self._wait()
        return seconds(until_done)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def replica_stages(
    video_llm: VideoLLM,
    policy: CompressionPolicy,
    config: TrainConfig,
    retentions: Sequence[float],
    watch: Stopwatch,
) -> tuple[list[Stage], RolloutRecord]:
    """What a rollout actor or a server does with one clip and one question, and the record of a rollout.

    Args:
        policy: On the replica's device, in evaluation mode.
        retentions: Shares of video tokens for compression and prefill, each in (0, 1].
    """
    shape = (config.model.num_frames, FRAME_SIDE, FRAME_SIDE, 3)
    frames = np.random.default_rng(config.run.seed).integers(0, 256, shape, dtype=np.uint8)
    clip = video_llm.watch(frames)
    encoded = video_llm.encode(clip, format_prompt(ITEM, config.data.instruction))
    tokens = encoded.grid.tokens
    stages = [watch.stage("encode one clip (processor and tower)", tokens, lambda: video_llm.watch(frames))]
    stages += _compression(policy, encoded, config, min(retentions), watch)
    for retention in retentions:
        keep = torch.arange(max(1, int(retention * tokens)), device=video_llm.device)[None]
        stages.append(
            watch.stage(
                f"prefill, {retention:.0%} of the video tokens",
                encoded.text_length + keep.shape[1],
                partial(video_llm.first_logits, encoded, keep),
            )
        )
    rollout, record = _rollout(video_llm, policy, encoded, config, watch)
    return [*stages, *rollout], record


def _compression(
    policy: CompressionPolicy, encoded: Encoded, config: TrainConfig, retention: float, watch: Stopwatch
) -> list[Stage]:
    """The policy with the choice of tokens, in its own float32 and in the model's type."""
    inputs = encoded.policy_input()

    def compress(network: CompressionPolicy) -> None:
        output = network.logits([inputs])
        select_tokens(output.token_scores[0], output.frame_scores[0], encoded.grid, retention, config.selection)

    dtypes = dict.fromkeys((torch.float32, encoded.features.dtype))
    networks = [(dtype, copy.deepcopy(policy).to(dtype)) for dtype in dtypes]
    return [
        watch.stage(
            f"compress, policy '{policy.kind}' in {str(dtype).removeprefix('torch.')}",
            encoded.length,
            partial(compress, network),
        )
        for dtype, network in networks
    ]


def _rollout(
    video_llm: VideoLLM, policy: CompressionPolicy, encoded: Encoded, config: TrainConfig, watch: Stopwatch
) -> tuple[list[Stage], RolloutRecord]:
    """Sampling alone, and a whole rollout: policy, sampling, answers to all combinations."""
    per_frame = max(config.sampling.tokens_per_frame) if config.sampling.tokens_per_frame else None
    request = RolloutRequest(config.run.seed, 0, 0, per_frame)
    records: list[RolloutRecord] = []

    def rollout() -> None:
        records[:] = [roll_out(video_llm, policy, encoded, ITEM, config.sampling, request)]

    rollout()
    record = records[0]
    masks = [scored.combinations.kept for scored in record.iterations]
    read = sum(len(kept) * (encoded.text_length + kept.shape[1]) for kept in masks)
    combinations = sum(len(kept) for kept in masks)
    rate = config.sampling.rate if per_frame is None else rate_of(per_frame, encoded.grid)

    def sample() -> None:
        draw = generator(config.run.seed, "benchmark")
        logits, features = (record.old_token_logits, record.old_frame_logits), record.input.features
        sample_combinations(*logits, features, encoded.grid, config.sampling, rate, draw)

    return [
        watch.stage(f"draw {config.sampling.group} combinations", 0, sample),
        watch.stage(f"rollout, {combinations} combinations of {len(record.iterations)} iterations", read, rollout),
    ], record


def learner_stage(
    policy: CompressionPolicy, record: RolloutRecord, config: TrainConfig, questions: int, watch: Stopwatch
) -> Stage:
    """One optimiser step on ``questions`` copies of ``record``, in micro-batches as the learner cuts them.

    Plain PyTorch on one device: what DeepSpeed adds (communication, partitions) is not in it. The record's
    rewards are replaced by random ones, so that there is something to learn.
    """
    policy.to(watch.device).train()
    half = config.learners.bf16 == "on" or (config.learners.bf16 == "auto" and watch.device.type == "cuda")
    if half:
        policy.bfloat16()
    optimizer = MixedPrecisionAdamW(policy, config.optimizer)
    batch = [_with_random_rewards(record)] * questions
    length = record.input.position_ids.shape[-1]
    size = max(1, config.learners.micro_batch_tokens // length)
    micro_batches = [batch[start : start + size] for start in range(0, questions, size)]

    def step() -> None:
        for records in micro_batches:
            output = policy(collate([each.input for each in records]).to(watch.device))
            floats = PolicyOutput(output.token_logits.float(), output.frame_logits.float())
            loss = batch_loss(floats, records, len(record.iterations), config.objective).loss
            (loss / questions).backward()
        optimizer.step()

    kind = "bfloat16" if half else "float32"
    name = f"learner step, {questions} questions in {len(micro_batches)} micro-batches, {kind}"
    return watch.stage(name, questions * length, step)


def _with_random_rewards(record: RolloutRecord) -> RolloutRecord:
    draw = generator("benchmark", "rewards")
    iterations = [
        replace(scored, reward=torch.rand(scored.reward.shape, generator=draw).round()) for scored in record.iterations
    ]
    return replace(record, iterations=tuple(iterations))
