"""One Video-LLM that compresses and answers for any number of policies, several requests at once.

    jobs -> encode, each alone -> score, those of one policy and token grid together -> select, each alone
         -> emit Compressed                    (requests without decoding)
         -> Started -> wait for room -> join the batch that is being written -> Delta ... Finished, each at its own end

Towers of cached clips are skipped. Answers are written together whatever their prompts' lengths; between two tokens
whole ones leave and further jobs join. A refusal or fault at any step is the last event of its jobs alone.
"""

import io
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from PIL import Image

from cacovid.errors import UserError
from cacovid.models.adapter import VideoLLM
from cacovid.policy.base import CompressionPolicy
from serving.config import EngineConfig
from serving.engine.batch import RunningBatch, of_one_length
from serving.engine.decoding import Answering
from serving.engine.embeddings import kept_embeddings, prompt_embeds
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

    def run(self, jobs: Sequence[Job], more: Callable[[], Sequence[Job]] = tuple) -> None:
        """Answer ``jobs`` and what joins them; every job's first Finished, Compressed or Failed is its last event.

        Args:
            jobs: to begin with.
            more: asked between two tokens for jobs that have come since.
        """
        batch = RunningBatch(self.video_llm)
        waiting = self._begun(jobs)
        while waiting or batch.answerings:
            joining, waiting = self._fitting(batch, waiting)
            for part in of_one_length(joining):
                with _refusals(*(answering.prompt.job for answering in part)):
                    batch.add(part)
            running = batch.answerings
            stepped = not running
            with _refusals(*(answering.prompt.job for answering in running)):
                if running:
                    batch.step()
                    stepped = True
            if not stepped:  # what it holds may be torn
                batch = RunningBatch(self.video_llm)
            waiting += self._begun(more())

    def _begun(self, jobs: Sequence[Job]) -> list[Answering]:
        """Encode, score and select; what is to be answered of it."""
        encoded: list[Prompt] = []
        for job in jobs:
            with _refusals(job):
                encoded.append(self._encoded(job))
        started = time.perf_counter()
        scored = _passing(_grouped(encoded, _scored_together), _score)
        selected = _passing([[each] for each in scored], lambda one: self._builder.select(one[0]))
        policy_s = time.perf_counter() - started
        answerings: list[Answering] = []
        for prompt in selected:
            prompt.policy_s = policy_s
            if prompt.request.decoding is None:
                with _refusals(prompt.job):
                    prompt.job.emit(self._compressed(prompt))
            else:
                prompt.job.emit(Started())
                answerings.append(Answering(prompt, self.video_llm.processor.tokenizer))
        return answerings

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

    def _fitting(self, batch: RunningBatch, waiting: Sequence[Answering]) -> tuple[list[Answering], list[Answering]]:
        """Those of ``waiting``, in their order, that fit ``max_batch_tokens`` with the batch, padding included.

        An empty batch takes one whatever its size.
        """
        running = batch.answerings
        widest, rows = max((each.width for each in running), default=0), sum(len(each.rows) for each in running)
        for place, answering in enumerate(waiting):
            widest, rows = max(widest, answering.width), rows + len(answering.rows)
            if widest * rows > self._config.max_batch_tokens and (place or running):
                return list(waiting[:place]), list(waiting[place:])
        return list(waiting), []

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


def _jpeg(frame: Any) -> bytes:  # noqa: ANN401  an image array
    buffer = io.BytesIO()
    picture = Image.fromarray(frame)
    picture.thumbnail((640, 640))
    picture.save(buffer, "JPEG", quality=88)
    return buffer.getvalue()
