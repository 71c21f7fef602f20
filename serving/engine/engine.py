"""One Video-LLM that compresses and answers for any number of policies, several requests at once.

    jobs -> encode, each alone -> score, those of one policy and token grid together -> select, each alone
         -> emit Compressed                    (requests without decoding)
         -> Started, generate, those that keep equally many tokens together -> Delta ... Finished, each at its own end

Towers of cached clips are skipped. Prompts that are answered together may differ in length: they are padded on
the left. A refusal or fault at any step is the last event of its jobs alone; the batch goes on without them.

Shape legend: B requests, k retained tokens.
"""

import io
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from PIL import Image
from transformers import LogitsProcessorList, StoppingCriteriaList

from cacovid.errors import UserError
from cacovid.models.adapter import VideoLLM
from cacovid.policy.base import CompressionPolicy
from serving.config import EngineConfig
from serving.engine.decoding import Row, RowSampler, RowWatcher
from serving.engine.embeddings import kept_embeddings, prompt_embeds
from serving.engine.join import join
from serving.engine.prompts import Job, Prompt, PromptBuilder, methods_of, run_policy
from serving.engine.records import (
    POLICY,
    Compressed,
    Failed,
    ModelCard,
    Started,
)
from serving.errors import ApiError, internal_error, invalid, overloaded

logger = logging.getLogger("cacovid.serving.engine")

Member = TypeVar("Member")


class Engine:
    """Runs batches of jobs one after the other; ``run`` belongs to one thread.

    Args:
        video_llm: the frozen Video-LLM, shared by all policies.
        config: limits and sizes.
        base_id: model id that stands for the model without a policy.
    """

    def __init__(self, video_llm: VideoLLM, config: EngineConfig, base_id: str) -> None:
        self.video_llm = video_llm
        self._config = config
        self._base_id = base_id
        self._policies: dict[str, CompressionPolicy] = {}
        self._builder = PromptBuilder(video_llm, config)

    def load_policies(self, folders: Mapping[str, str]) -> None:
        """Serve the policies of ``folders`` (model id -> folder) from the next batch on, and no others.

        The Video-LLM stays as it is. On an error the policies served so far stay too.

        Raises:
            UserError: a folder without a policy, or a policy for another model.
        """
        loaded: dict[str, CompressionPolicy] = {}
        for name, folder in folders.items():
            policy = CompressionPolicy.from_pretrained(folder)
            policy.check_model(self.video_llm.fingerprint, self.video_llm.hidden_size)
            loaded[name] = policy.to(self.video_llm.device).eval()
        self._policies = loaded  # one assignment: a running batch keeps the policies it looked up

    def models(self) -> list[ModelCard]:
        """Every model id: the policies in their order, then the model alone."""
        cards = [self._card(name, policy) for name, policy in self._policies.items()]
        return [*cards, self._card(self._base_id, None)]

    def run(self, jobs: Sequence[Job]) -> None:
        """Answer ``jobs`` together; every job gets its events; its first Finished, Compressed or Failed is the last."""
        encoded: list[Prompt] = []
        for job in jobs:
            with _refusals(job):
                encoded.append(self._encoded(job))
        started = time.perf_counter()
        scored = _passing(_grouped(encoded, _scored_together), _score)
        selected = _passing([[each] for each in scored], lambda one: self._builder.select(one[0]))
        policy_s = time.perf_counter() - started
        rows: list[Row] = []
        for prompt in selected:
            prompt.policy_s = policy_s
            if prompt.request.decoding is None:
                with _refusals(prompt.job):
                    prompt.job.emit(self._compressed(prompt))
            else:
                prompt.job.emit(Started())
                rows.append(Row(prompt, self.video_llm.processor.tokenizer))
        for group in _grouped(rows, lambda row: _answered_together(row.prompt)):
            for part in self._parts(group):
                with _refusals(*(row.prompt.job for row in part)):
                    self._generate(part)

    def _encoded(self, job: Job) -> Prompt:
        job.started = time.perf_counter()
        if job.cancelled.is_set() or job.started - job.submitted > job.request.time_left_s:
            raise overloaded("the request waited too long", 1)
        return self._builder.encode(job, self._policy(job.request.model))

    def _policy(self, model: str) -> CompressionPolicy | None:
        if model == self._base_id:
            return None
        if model not in self._policies:
            raise ApiError(404, "model_not_found", "there is no such model here: GET /v1/models lists them", "model")
        return self._policies[model]

    def _compressed(self, prompt: Prompt) -> Compressed:
        """The outcome of a request without decoding; raises ApiError for extras that cannot be had."""
        encoded, extras, clips = prompt.encoded, prompt.request.extras, prompt.job.clips
        if not clips:
            raise invalid("messages", "there is no video to compress: add a video_url part")
        kept = prompt.kept.to(self.video_llm.device)
        return Compressed(
            report=prompt.report(),
            kept=prompt.kept.tolist(),
            frame_budgets=torch.bincount(prompt.kept // encoded.grid.per_frame, minlength=encoded.grid.frames).tolist(),
            token_scores=None if prompt.token_scores is None else prompt.token_scores.tolist(),
            frame_scores=None if prompt.frame_scores is None else prompt.frame_scores.tolist(),
            timestamps=[seconds for clip in clips for seconds in clip.timestamps],
            frames_per_step=sum(len(clip.frames) for clip in clips) / encoded.grid.frames,
            embeddings=kept_embeddings(self.video_llm, encoded, kept) if "embeddings" in extras else None,
            prompt_embeds=prompt_embeds(self.video_llm, encoded, kept, prompt.positions)
            if "prompt_embeds" in extras
            else None,
            frames=[_jpeg(frame) for clip in clips for frame in clip.frames] if "frames" in extras else [],
        )

    def _parts(self, group: list[Row]) -> list[list[Row]]:
        """Batches of at most ``max_batch_tokens`` tokens (but at least one request), padding included."""
        parts: list[list[Row]] = []
        longest = 0
        for row in group:
            length = row.prompt.length + row.decoding.max_tokens
            longest = max(longest, length)
            if parts and longest * (len(parts[-1]) + 1) <= self._config.max_batch_tokens:
                parts[-1].append(row)
            else:
                parts.append([row])
                longest = length
        return parts

    @torch.inference_mode()
    def _generate(self, rows: Sequence[Row]) -> None:
        """Draw tokens until every answer is whole."""
        prompts = [row.prompt for row in rows]
        llm = self.video_llm
        packed = [llm.pack(prompt.encoded, prompt.kept[None].to(llm.device), prompt.positions) for prompt in prompts]
        arguments: dict[str, Any] = join(packed, pad_token=int(llm.model.generation_config.pad_token_id))
        llm.model.generate(
            **arguments,
            max_new_tokens=max(row.decoding.max_tokens for row in rows),
            use_cache=True,
            logits_processor=LogitsProcessorList([RowSampler([row.decoding for row in rows])]),
            stopping_criteria=StoppingCriteriaList([RowWatcher(rows, llm.end_tokens)]),
        )

    def _card(self, name: str, policy: CompressionPolicy | None) -> ModelCard:
        model = self.video_llm.config
        return ModelCard(
            id=name,
            policy=None if policy is None else policy.kind,
            trained_steps=0 if policy is None else policy.metadata.trained_steps,
            methods=methods_of(policy),
            num_frames=model.num_frames,
            positions=model.positions if policy is None else policy.metadata.positions,
        )


@contextmanager
def _refusals(*jobs: Job) -> Iterator[None]:
    """A refusal inside is the jobs' last event, if they have not had it; the batch goes on without them."""
    try:
        yield
        return
    except ApiError as error:
        refusal = error
    except UserError:  # scores that are not finite: the policy is broken, not the request
        logger.exception("the policy of model %r cannot select", jobs[0].request.model)
        refusal = ApiError(500, "policy_broken", "this model's policy gives no usable scores", "model")
    except torch.OutOfMemoryError:
        logger.warning("out of memory with %d requests: lower engine.max_batch_tokens", len(jobs))
        refusal = overloaded("the model has no memory left for this request", 5)
    except torch.AcceleratorError:
        raise  # the device answers nobody any more
    except Exception:
        logger.exception("%d requests failed inside", len(jobs))
        refusal = internal_error()
    for job in jobs:
        job.emit(Failed(refusal))


def _passing(groups: Sequence[list[Prompt]], step: Callable[[list[Prompt]], None]) -> list[Prompt]:
    """Those of the groups that ``step`` did not refuse."""
    passed: list[Prompt] = []
    for group in groups:
        with _refusals(*(prompt.job for prompt in group)):
            step(group)
            passed += group
    return passed


def _score(group: list[Prompt]) -> None:
    if group[0].method == POLICY:
        run_policy(group)


def _grouped(members: Sequence[Member], key: Callable[[Member], object]) -> list[list[Member]]:
    """Those with equal keys together, in order of first appearance."""
    groups: dict[object, list[Member]] = {}
    for member in members:
        groups.setdefault(key(member), []).append(member)
    return list(groups.values())


def _scored_together(prompt: Prompt) -> object:
    return prompt.method == POLICY, id(prompt.policy), prompt.encoded.grid


def _answered_together(prompt: Prompt) -> object:
    """Equally many injected rows, and equally many rows of positions."""
    rows = len(prompt.kept) + prompt.encoded.pinned.shape[0]
    return rows, prompt.encoded.position_ids.shape[0]


def _jpeg(frame: Any) -> bytes:  # noqa: ANN401  an image array
    buffer = io.BytesIO()
    picture = Image.fromarray(frame)
    picture.thumbnail((640, 640))
    picture.save(buffer, "JPEG", quality=88)
    return buffer.getvalue()
