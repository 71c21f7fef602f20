"""A plan for a configured run: what an actor and a learner hold and compute, and which GPUs they fit.

    TrainConfig ──shipped or local shapes──► model on ``meta``, token grid
    counts of both ──► ReplicaPlan (one actor's Video-LLM), PolicyCost ──ZeRO stage──► LearnerPlan
    their bytes ──GPUS──► one Fit each; their operations ──► those of a training step

Shape legend: G combinations, k retained tokens, N video tokens, Lt text columns, L = N + Lt.
"""

from dataclasses import dataclass

import torch

from cacovid.config import SamplingConfig, TrainConfig
from cacovid.models.spreading import device_map, parameters_by_device
from cacovid.planning.backbone import Model, VideoShape, known_backbones
from cacovid.planning.counts import (
    PolicyCost,
    cache_bytes_per_token,
    layer_bytes,
    parameter_counts,
    policy_cost,
    prefill_flops,
    tower_flops,
)
from cacovid.planning.gpus import CONTEXT_BYTES, GPUS, Fit, fit
from cacovid.planning.local import local_shapes
from cacovid.records import TokenGrid
from cacovid.sampling.rates import tokens_at

PROMPT_TEXT = 96  # columns of a question with options and chat markers, beside those of each step
MOST_LEARNERS = 64
MOST_GPUS = 8  # of one node, over which a replica is spread


@dataclass(frozen=True)
class ReplicaPlan:
    """One frozen Video-LLM for scoring."""

    parameters: dict[str, int]
    weight_bytes: int
    spread_bytes: tuple[int, ...]  # weights on the fullest of 2, 3, ... GPUs
    encode_flops: int  # one clip
    encode_bytes: int  # working memory of the tower
    full_flops: int  # answering one prompt with all video tokens, prefill
    kept_flops: int  # answering one combination of a rollout, prefill
    scoring_bytes: int  # working memory of one scoring batch with its logits
    cache_bytes: int  # keys and values while one batch of answers is generated
    item_bytes: int  # embeddings of one item

    @property
    def total_bytes(self) -> int:
        """Weights, the larger of both working sets, one item and the process."""
        return self.weight_bytes + self.other_bytes

    @property
    def other_bytes(self) -> int:
        """All but the weights; where a replica is spread over GPUs, at most this is on each of them."""
        return max(self.encode_bytes, self.scoring_bytes + self.cache_bytes) + self.item_bytes + CONTEXT_BYTES


@dataclass(frozen=True)
class LearnerPlan:
    """One learner process of a group."""

    state_bytes: tuple[int, ...]  # of one of 1, 2, ... learners: weights, gradients, optimiser
    activation_bytes: int  # one micro-batch
    prompts_per_micro_batch: int

    def total_bytes(self) -> list[int]:
        """Memory of one of 1, 2, ... learners."""
        return [state + self.activation_bytes + CONTEXT_BYTES for state in self.state_bytes]


@dataclass(frozen=True)
class Plan:
    """Everything about a run that its shapes decide."""

    grid: TokenGrid
    text: int  # Lt
    kept: int  # k of a rollout batch: the largest choice, or by the first rate where it adapts
    replica: ReplicaPlan
    policy: PolicyCost
    learner: LearnerPlan
    rollout_flops: int  # one training step, all actors
    learning_flops: int  # one training step, all learners
    answers: int  # combinations that the frozen model answers in the whole run: its price
    answer_flops: int  # prefill of one of them, mean over the numbers of tokens that are drawn
    replay_items: int  # questions that the replay buffer holds; 0: no replay
    fits: tuple[Fit, ...]

    @property
    def actors_per_learner(self) -> float:
        """Actors that keep one learner of the same GPU busy, by operations alone."""
        return self.rollout_flops / self.learning_flops


def make_plan(config: TrainConfig, width: int = 640, height: int = 360) -> Plan:
    """Plan ``config`` for clips of ``width`` x ``height`` pixels (families with a fixed grid ignore them).

    Raises:
        UserError: No shape of ``config.model.path`` is shipped, and nothing can be read from there.
    """
    known = known_backbones()
    if config.model.path in known:
        shipped = known[config.model.path]
        model, video = shipped.meta_model(), shipped.video
    else:
        model, video = local_shapes(config.model, width, height)
    grid = video.token_grid(config.model.num_frames, width, height)
    text = PROMPT_TEXT + grid.frames * video.text_per_step
    sampling = config.sampling
    kept = max(sampling.tokens_per_frame or (tokens_at(sampling.rate, grid),)) * grid.frames
    replica = _replica(config, video, model, grid, text, kept)
    learns_in = torch.float32 if config.learners.bf16 == "off" else torch.bfloat16
    policy = policy_cost(config.policy, model, grid, text, learns_in)
    learner = _learner(config, policy, grid.tokens + text)
    return Plan(
        grid=grid,
        text=text,
        kept=kept,
        replica=replica,
        policy=policy,
        learner=learner,
        rollout_flops=_rollout_flops(config, replica, policy),
        # A backward pass counts twice its forward.
        learning_flops=3 * config.updates_per_step() * config.questions_per_update() * policy.forward_flops,
        answers=config.run.steps * config.combinations_per_step(),
        answer_flops=_answer_flops(config.sampling, model, grid, text),
        replay_items=_replay_items(config, replica),
        fits=_fits(replica, policy, learner),
    )


def _replica(
    config: TrainConfig,
    video: VideoShape,
    model: Model,
    grid: TokenGrid,
    text: int,
    kept: int,
) -> ReplicaPlan:
    parameters = parameter_counts(model)
    size = 4 if config.model.dtype == "float32" else 2  # a GPU's 'auto' is bfloat16
    decoder, vision = model.get_decoder().config, model.config.vision_config
    length = text + _most_kept(config.sampling, grid, kept)
    rows = max(length, min(config.model.max_batch_tokens, config.sampling.group * length))
    prompts = rows // length
    tower_rows = video.patches(grid) * grid.frames
    generating = max(1, config.model.max_batch_tokens // (length + config.model.max_new_tokens))
    generating = min(generating, config.sampling.group)
    per_token = cache_bytes_per_token(decoder, size)
    return ReplicaPlan(
        parameters=parameters,
        weight_bytes=sum(parameters.values()) * size,
        spread_bytes=tuple(
            max(parameters_by_device(model, device_map(model, count))) * size for count in range(2, MOST_GPUS + 1)
        ),
        encode_flops=tower_flops(model, video, grid),
        encode_bytes=layer_bytes(tower_rows, vision.hidden_size, vision.intermediate_size, size),
        full_flops=prefill_flops(model, grid.tokens + text),
        kept_flops=prefill_flops(model, text + kept),
        scoring_bytes=layer_bytes(rows, decoder.hidden_size, decoder.intermediate_size, size)
        + 2 * prompts * decoder.vocab_size * 4,
        cache_bytes=generating * (length + config.model.max_new_tokens) * per_token,
        item_bytes=(grid.tokens + text) * decoder.hidden_size * size,
    )


def _most_kept(sampling: SamplingConfig, grid: TokenGrid, kept: int) -> int:
    """k after as many doublings as the adaptive rate may make (paper): what memory must be there for."""
    if sampling.tokens_per_frame:
        return kept
    rate = min(sampling.rate * 2 ** (sampling.inner_iterations - 1), max(sampling.rate, sampling.rate_max))
    return tokens_at(rate, grid) * grid.frames


def _learner(config: TrainConfig, policy: PolicyCost, length: int) -> LearnerPlan:
    size = 4 if config.learners.bf16 == "off" else 2
    # DeepSpeed keeps float32 masters and two moments beside bfloat16 weights, two moments beside float32 ones.
    optimiser = 8 if size == 4 else 12
    stage = config.learners.zero_stage
    states = []
    for count in range(1, MOST_LEARNERS + 1):
        weights = size / (count if stage >= 3 else 1)
        gradients = size / (count if stage >= 2 else 1)
        states.append(int(policy.parameters * (weights + gradients + optimiser / (count if stage >= 1 else 1))))
    prompts = max(1, config.learners.micro_batch_tokens // length)
    return LearnerPlan(tuple(states), prompts * policy.saved_bytes, prompts)


def _rollout_flops(config: TrainConfig, replica: ReplicaPlan, policy: PolicyCost) -> int:
    combinations = config.sampling.group * config.sampling.inner_iterations
    item = replica.encode_flops + policy.forward_flops + combinations * replica.kept_flops
    return config.run.items_per_step * item


def _answer_flops(sampling: SamplingConfig, model: Model, grid: TokenGrid, text: int) -> int:
    choices = sampling.tokens_per_frame or (tokens_at(sampling.rate, grid),)
    return sum(prefill_flops(model, text + each * grid.frames) for each in choices) // len(choices)


def _replay_items(config: TrainConfig, replica: ReplicaPlan) -> int:
    objective = config.objective
    if not objective.replays():
        return 0
    return min(objective.replay_items, objective.replay_bytes // replica.item_bytes)


def _fits(replica: ReplicaPlan, policy: PolicyCost, learner: LearnerPlan) -> tuple[Fit, ...]:
    """What each GPU holds. A replica has its own copy of the policy, which runs without keeping activations."""
    beside = replica.other_bytes + 4 * policy.parameters
    spread = [weights + beside for weights in replica.spread_bytes]
    return tuple(fit(gpu, replica.weight_bytes + beside, learner.total_bytes(), spread) for gpu in GPUS)
