"""The configuration of a training run: each field's default and meaning stand beside it."""

import math
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cacovid.limits import MAX_FRAMES, MAX_PIXELS

Fraction = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Numbering = Literal["original", "contiguous"]
Positions = Literal["auto", "original", "contiguous"]
Frames = Annotated[int, Field(ge=1, le=MAX_FRAMES)]


class Section(BaseModel):
    """A frozen group of fields; unknown names are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class ModelConfig(Section):
    """The frozen Video-LLM and how it reads a clip."""

    path: str = Field("embedded", description="'embedded', 'embedded-2', a local directory or a hub id")
    revision: str | None = Field(None, description="hub revision to pin; None takes the default branch")
    num_frames: Frames = Field(8, description="frames sampled evenly from each video")
    positions: Positions = Field(
        "auto",
        description="position ids of retained tokens: original (the paper's), contiguous (renumbered), or auto: "
        "contiguous where the original ones leave trained_length",
    )
    trained_length: Positive | None = Field(
        None,
        description="positions that the model was trained on; None takes its configuration's max_position_embeddings, "
        "320 for 'embedded'",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="weights' type; auto is bfloat16 on a GPU that has it, else float32"
    )
    device: str = Field(
        "auto", description="torch device; auto takes the GPU where there is one, spread uses all GPUs for one model"
    )
    attention: Literal["sdpa", "eager", "flash_attention_2"] = Field(
        "sdpa", description="attention kernel of the Video-LLM"
    )
    max_batch_tokens: Positive = Field(16_384, description="prompt tokens in one scoring forward")
    max_new_tokens: Positive = Field(32, description="longest generated answer (not multiple choice)")


class DataConfig(Section):
    """The video questions."""

    train: str = Field(
        "embedded", description="Parquet table of questions, or 'embedded' or 'embedded-2' to draw our own clips"
    )
    train_clips: Positive = Field(
        1_000, description="clips to draw of 'embedded' (2 questions each) or 'embedded-2' (5)"
    )
    clip_seed: Count = Field(0, description="first clip seed of the embedded training clips")
    instruction: str = Field("", description="line appended to every multiple-choice prompt")
    max_skipped: Annotated[float, Field(ge=0, le=1)] = Field(
        0.2, description="stop when more than this share of the items met so far was unusable"
    )
    max_pixels: Positive = Field(MAX_PIXELS, description="largest frame accepted, in pixels (8K UHD)")
    cache_dir: str | None = Field(None, description="folder of the embedding cache; None puts it in the run's")
    cache_bytes: Count = Field(2_000_000_000, description="bound of the embedding cache on disk; 0 turns it off")


class PolicyConfig(Section):
    """The compression policy network."""

    kind: Literal["late", "paper"] = Field(
        "late", description="late interaction (ours) or the paper's decoder layer from the LLM"
    )
    attention: Literal["full", "causal"] = Field(
        "full",
        description="paper: every token sees the whole prompt (its text), or what precedes it alone (its code in "
        "practice), which hides a question that follows the video",
    )
    frame_scores: Literal["head", "tokens"] = Field(
        "head",
        description="paper: frames are scored by a head of their own, which learns from frame samples alone "
        "(sampling.modes='mixed'), or by their best tokens, as by 'late'",
    )
    question_aware: bool = Field(True, description="False hides the text from 'late' (ablation)")
    heads: Positive = Field(4, description="late: similarity heads")
    width: Positive = Field(64, description="late: width of a similarity head")
    context_width: Positive = Field(16, description="late: width of the linear token feature")
    hidden: Positive = Field(32, description="late: hidden width of the scoring network")
    text_positions: Positive = Field(64, description="late: learned text position biases, from the prompt's end")


class SamplingConfig(Section):
    """Online combination space sampling (OCSS)."""

    group: Annotated[int, Field(ge=4)] = Field(8, description="combinations per item and inner iteration, G")
    modes: Literal["token", "mixed"] = Field(
        "token", description="token samples only, or the paper's mix (1 content, 3G/4-1 token, G/4 frame)"
    )
    tokens_per_frame: tuple[Positive, ...] = Field(
        (1, 2, 3), description="k per frame, drawn once a step; empty uses `rate` with the adaptive rule"
    )
    rate: Fraction = Field(0.02, description="first sampling rate r, k = round(r*H*W), where adaptive")
    rate_min: Fraction = Field(0.01, description="adaptive rate's lower bound")
    rate_max: Fraction = Field(0.12, description="adaptive rate's upper bound")
    halve_above: Fraction = Field(0.875, description="mean token reward from which the rate is halved")
    double_below: Fraction = Field(0.125, description="mean token reward up to which the rate is doubled")
    group_size: Positive = Field(2, description="k of one score group: groups n = max(int(1/(r*group_size)), 1)")
    max_group_prob: Annotated[float, Field(gt=0)] = Field(2.0, description="cap of a group's probability, times 1/n")
    frame_ratio: Fraction = Field(0.125, description="share of frames that a frame sample draws")
    max_frame_prob: Annotated[float, Field(gt=0)] = Field(3.0, description="cap of a frame's probability, times 1/T")
    temperature: Annotated[float, Field(gt=0)] = Field(1.0, description="divides the scores that draws follow")
    explore: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="share of the drawn combinations that follow no policy: all tokens and frames are alike"
    )
    explore_until: Fraction = Field(
        1.0, description="share of the run up to which `explore` holds; from there it falls linearly to 0"
    )
    inner_iterations: Positive = Field(1, description="combination batches per item (the paper: 5)")


class ObjectiveConfig(Section):
    """What the learner minimises."""

    kind: Literal["evidence", "credit", "clipped"] = Field(
        "evidence",
        description="evidence likelihood (ours), credit regression (ours), both with replay, or the paper's clipped "
        "objective",
    )
    reward: Literal["answer", "probability"] = Field(
        "answer",
        description="what a combination earns: its answer's reward, or the right option's probability (where there are "
        "options)",
    )
    eps_low: Fraction = Field(0.2, description="clipped: lower clip range")
    eps_high: Annotated[float, Field(gt=0)] = Field(0.28, description="clipped: upper clip range")
    ratio: Literal["drawing", "current"] = Field(
        "drawing",
        description="clipped: probabilities are compared with those of the policy that drew (the paper; no replay), or "
        "with the newest one's own: nothing is clipped, and replayed combinations go on teaching",
    )
    uniform_kl: Annotated[float, Field(ge=0)] = Field(
        0.0, description="clipped: weight of the KL to the uniform policy, which keeps the scores small"
    )
    kl: Literal["exact", "k3"] = Field(
        "exact", description="clipped: that KL's value, or its estimate from the decisions taken, which has no bound"
    )
    frame_weight: Annotated[float, Field(ge=0)] = Field(1.0, description="weight of the frame loss")
    credit_scale: float = Field(2.0, description="credit: target of the score is this times the credit")
    score_decay: Annotated[float, Field(ge=0)] = Field(
        1e-4, description="evidence and credit: weight of the mean squared score"
    )
    replay_bytes: Count = Field(2_000_000_000, description="bound of the replay buffer in bytes; 0: no replay")
    replay_items: Count = Field(3_000, description="bound of the replay buffer in questions")
    replay_updates: Positive = Field(
        8, description="optimiser steps per training step; those of ratio='drawing' are the inner iterations"
    )
    replay_batch: Positive = Field(48, description="questions per optimiser step with replay")

    def replays(self) -> bool:
        """Whether updates draw from a replay buffer."""
        return self.replay_bytes > 0 and not self.by_drawing_policy()

    def by_drawing_policy(self) -> bool:
        """Whether the loss reads the logits that a record was drawn by. The weights behind them are soon gone."""
        return self.kind == "clipped" and self.ratio == "drawing"


class OptimizerConfig(Section):
    """AdamW, its schedule and its parameter groups."""

    lr: Annotated[float, Field(gt=0)] = Field(5e-3, description="peak learning rate of the heads")
    backbone_scale: Annotated[float, Field(ge=0)] = Field(
        0.1, description="the pretrained layer's share of the rate (policy 'paper')"
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(1e-4, description="AdamW weight decay")
    eps: Annotated[float, Field(gt=0)] = Field(
        1e-6, description="AdamW's term below the quotient; above what sums of gradients round"
    )
    grad_norm: Annotated[float, Field(gt=0)] = Field(1.0, description="gradient norm clip")
    schedule: Literal["cosine", "flat-linear"] = Field(
        "flat-linear", description="cosine to 0, or flat for half the run then linear to 5 %"
    )
    warmup_steps: Count = Field(10, description="optimiser steps of linear warm-up")


class ActorsConfig(Section):
    """Rollout actors: each holds one frozen Video-LLM replica."""

    count: Count = Field(2, description="remote rollout actors of a fixed pool; 0 scores in the driver")
    min: Count = Field(0, description="actors that an elastic pool keeps when it has little to do")
    max: Count = Field(0, description="most actors of an elastic pool, as the cluster has room; 0: a fixed pool")
    idle_s: Annotated[float, Field(ge=0)] = Field(
        60.0, description="elastic pool: seconds without a task until an actor leaves, so that its node can go"
    )
    labels: tuple[Annotated[str, Field(pattern="^[^=]+=.")], ...] = Field(
        (), description="Ray labels (key=value) of the nodes that actors may run on; empty: any"
    )
    cpus: Annotated[float, Field(ge=0)] = Field(0.5, description="CPUs that Ray reserves for one actor")
    gpus: Annotated[float, Field(ge=0)] = Field(
        0.0, description="GPUs of one actor: a share of one, or 2, 3, ... of one node over which its model is spread"
    )
    threads: Positive = Field(1, description="torch threads of one actor on CPU")
    items_per_task: Positive = Field(2, description="items sent to an actor at once")
    parts_per_item: Positive = Field(
        1, description="tasks that share an item's combinations, each after encoding it: more work than items"
    )
    staleness: Count = Field(1, description="training steps that rollouts run ahead of the learner")
    max_retries: Count = Field(3, description="failures of one item, dead actors included, until it is set aside")
    task_timeout_s: Annotated[float, Field(gt=0)] = Field(
        1_800.0, description="seconds until an actor that hangs on one task is killed and restarted"
    )

    @property
    def places(self) -> int:
        """Most remote actors at a time; 0: the driver scores."""
        return self.max or self.count

    @property
    def fewest(self) -> int:
        """Actors without which nothing goes on."""
        return max(self.min, 1) if self.max else self.count

    @property
    def bounds(self) -> str:
        """How many actors there should be: ``2`` of a fixed pool, ``2..8`` of an elastic one."""
        return f"{self.min}..{self.max}" if self.max else str(self.count)

    @property
    def label_selector(self) -> dict[str, str]:
        """``labels`` by key."""
        return dict(label.split("=", 1) for label in self.labels)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"actors.min={self.min} exceeds actors.max={self.max}: an elastic pool needs both")
        if self.gpus > 1 and self.gpus % 1:
            raise ValueError(
                f"actors.gpus={self.gpus:g} is no whole number: give a share of one GPU (at most 1), or 2, 3, ... over "
                "which the model is spread"
            )
        return self


class LearnersConfig(Section):
    """Learner processes under DeepSpeed."""

    count: Count = Field(1, description="remote learner processes; 0 learns in the driver")
    cpus: Annotated[float, Field(ge=0)] = Field(0.5, description="CPUs that Ray reserves for one learner")
    gpus: Annotated[float, Field(ge=0)] = Field(0.0, description="GPUs of one learner")
    threads: Positive = Field(1, description="torch threads of one learner on CPU")
    zero_stage: Annotated[int, Field(ge=0, le=3)] = Field(0, description="DeepSpeed ZeRO stage")
    bf16: Literal["auto", "on", "off"] = Field("auto", description="bfloat16 weights with fp32 masters; auto: on a GPU")
    micro_batch_tokens: Positive = Field(65_536, description="video and text tokens in one micro-batch")
    record_cache_bytes: Count = Field(
        1_000_000_000, description="host memory of one learner for replayed records already fetched"
    )
    timeout_s: Annotated[float, Field(gt=0)] = Field(
        1_800.0, description="seconds of one update or checkpoint until the learners count as hanging and are restarted"
    )
    max_restarts: Count = Field(2, description="times a dead learner group is restarted from the last checkpoint")


class SelectionConfig(Section):
    """Which tokens are retained at inference; always exactly floor(retention * N), at least 1."""

    rule: Literal["global", "half-uniform", "frame-budgets"] = Field(
        "global", description="top scores, half scores half even spread, or the paper's frame budgets"
    )
    scored_share: Fraction = Field(0.5, description="share given out by score (the paper's imp_ratio); not for global")
    max_frame_share: Annotated[float, Field(gt=0)] = Field(
        1.5, description="frame-budgets: c = this * retention, the cap c/(T*retention) of a frame's share"
    )


class EvaluationConfig(Section):
    """What ``CPO.evaluate()`` measures the policy on, between or after training steps."""

    every: Count = Field(
        0, description="training steps between evaluations of the newest policy, and after the last one; 0: none"
    )
    data: str = Field("embedded", description="Parquet table of questions, or 'embedded': our development clips")
    clips: Positive = Field(50, description="videos to use, the first ones of the table")
    retentions: tuple[Fraction, ...] = Field((0.1, 0.05, 0.02), description="shares of video tokens retained")
    target_accuracy: Fraction = Field(
        0.98, description="accuracy, relative to all tokens, until which a run's price is counted in combinations"
    )
    target_retention: Fraction = Field(0.05, description="the one of `retentions` at which the target holds")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.every and self.target_retention not in self.retentions:
            raise ValueError(
                f"evaluation.target_retention={self.target_retention:g} is none of evaluation.retentions "
                f"({', '.join(f'{each:g}' for each in self.retentions)}): name one of them"
            )
        return self


class RunConfig(Section):
    """The run as a whole."""

    seed: Count = Field(0, description="seed of initialisation, item order and every sample")
    steps: Positive = Field(24, description="training steps")
    items_per_step: Positive = Field(32, description="questions rolled out per training step")
    checkpoint_every: Positive = Field(20, description="training steps between checkpoints")
    keep_checkpoints: Positive = Field(2, description="newest checkpoints kept, beside the best one")
    reuse_bytes: Count = Field(
        2_000_000_000,
        description="bound, over the cluster, of rollouts since the last checkpoint that restarted learners use again",
    )
    stop_grace_s: Annotated[float, Field(ge=0)] = Field(
        15.0,
        description="seconds after SIGTERM until the step under way is given up and the last finished one saved; its "
        "upload to a store then takes the time that it takes",
    )
    store_timeout_s: Annotated[float, Field(gt=0)] = Field(
        300.0, description="seconds that a store (--out URI) which does not answer is waited for"
    )
    start_timeout_s: Annotated[float, Field(gt=0)] = Field(
        1_800.0, description="seconds that actors and learners may wait for their places in the cluster and start"
    )
    tracking: tuple[Literal["mlflow", "wandb"], ...] = Field(
        (), description="experiment trackers that get every step's figures, beside TensorBoard"
    )
    tracking_project: Annotated[str, Field(min_length=1)] = Field(
        "cacovid", description="MLflow's experiment and the project of Weights & Biases"
    )
    mlflow_uri: str | None = Field(
        None, description="MLflow's server (http://host:5000) or database; None puts mlflow.db into the run's folder"
    )
    wandb_mode: Literal["online", "offline"] = Field(
        "online", description="Weights & Biases: send the run, or keep it for `wandb sync`"
    )


class TrainConfig(Section):
    """A whole run. TOML files and ``--set section.field=value`` fill it."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    policy: PolicyConfig = PolicyConfig()
    sampling: SamplingConfig = SamplingConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    actors: ActorsConfig = ActorsConfig()
    learners: LearnersConfig = LearnersConfig()
    selection: SelectionConfig = SelectionConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    run: RunConfig = RunConfig()

    def by_name(self) -> dict[str, object]:
        """Every field's value by ``section.name``."""
        return {f"{section}.{name}": value for section, fields in self for name, value in fields}

    def replica_model(self) -> ModelConfig:
        """The model as a rollout actor loads it: over all of its GPUs."""
        return self.model.model_copy(update={"device": "spread"}) if self.actors.gpus > 1 else self.model

    def updates_per_step(self) -> int:
        """Optimiser steps of one training step."""
        return self.sampling.inner_iterations if self.objective.by_drawing_policy() else self.objective.replay_updates

    def combinations_per_step(self) -> int:
        """Combinations that the frozen model answers in one training step."""
        return self.run.items_per_step * self.sampling.group * self.sampling.inner_iterations

    def questions_per_update(self) -> int:
        """Questions of one optimiser step: drawn from the replay buffer, or all of the training step."""
        return self.objective.replay_batch if self.objective.replays() else self.run.items_per_step

    def busy_actors(self) -> int:
        """Most rollout actors that have a task at the same time: those of the steps given out at once."""
        tasks = math.ceil(self.run.items_per_step / self.actors.items_per_task) * self.actors.parts_per_item
        return (self.actors.staleness + 1) * tasks

    def total_updates(self) -> int:
        """Optimiser steps of the whole run, over which the schedule is laid."""
        return self.run.steps * self.updates_per_step()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (
            self.objective.kind == "credit"
            and self.sampling.inner_iterations > 1
            and not self.sampling.tokens_per_frame
        ):
            raise ValueError(
                "objective.kind='credit' compares rewards of one rate: set sampling.tokens_per_frame "
                "or sampling.inner_iterations=1"
            )
        sampling, parts = self.sampling, self.actors.parts_per_item
        if parts > sampling.group:
            raise ValueError(f"actors.parts_per_item={parts} exceeds sampling.group={sampling.group}: lower it")
        if parts > 1 and sampling.inner_iterations > 1 and not sampling.tokens_per_frame:
            raise ValueError(
                f"actors.parts_per_item={parts}, but an adaptive rate follows the rewards of all an item's "
                "combinations: set parts_per_item=1 or sampling.tokens_per_frame"
            )
        by_untrained = self.policy.kind == "paper" and self.policy.frame_scores == "head" and sampling.modes == "token"
        if self.selection.rule == "frame-budgets" and by_untrained:
            raise ValueError(
                "selection.rule='frame-budgets' goes by the paper's frame head, which sampling.modes='token' does not "
                "train: set sampling.modes='mixed' or policy.frame_scores='tokens'"
            )
        if sampling.rate_min > sampling.rate_max:
            raise ValueError(f"sampling.rate_min={sampling.rate_min} exceeds rate_max={sampling.rate_max}: swap them")
        if not sampling.tokens_per_frame and not sampling.rate_min <= sampling.rate <= sampling.rate_max:
            raise ValueError(
                f"sampling.rate={sampling.rate} lies outside the adaptive range "
                f"{sampling.rate_min} to {sampling.rate_max}: change it, rate_min or rate_max"
            )
        return self

    @model_validator(mode="after")
    def _devices(self) -> Self:
        if self.actors.gpus > 1 and self.model.device not in ("auto", "spread"):
            raise ValueError(
                f"model.device={self.model.device!r} is one device, not actors.gpus={self.actors.gpus:g}: "
                "set model.device to 'auto', or actors.gpus to 1 or less"
            )
        return self
