"""One Video-LLM that compresses and answers for any number of policies, several requests at once.

    jobs -> encode, each alone -> score, those of one policy and token grid together -> select, each alone
         -> emit Compressed                    (requests without decoding)
         -> the answerer's: Started, Delta ... Finished, each at its own end

A long video, whose frames come in chunks, is encoded alone; between its chunks the other requests go on for as long as
the last chunk took. Towers of cached clips are skipped. A refusal or fault at any step is the last event of its jobs
alone; the batch goes on without them.

Shape legend: B requests, k retained tokens.
"""

import io
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from PIL import Image

from cacovid.models.adapter import VideoLLM
from cacovid.policy.base import CompressionPolicy
from serving.config import EngineConfig
from serving.engine.answerer import Answerer
from serving.engine.decoding import Answering, Row
from serving.engine.embeddings import kept_embeddings, prompt_embeds
from serving.engine.prompts import Job, Prompt, PromptBuilder, methods_of, run_policy
from serving.engine.records import POLICY, Compressed, ModelCard
from serving.engine.refusals import refusals
from serving.errors import ApiError, invalid, overloaded

Member = TypeVar("Member")


class Engine:
    """Runs batches of jobs one after the other; ``run`` belongs to one thread.

    Args:
        video_llm: the frozen Video-LLM, shared by all policies.
        config: limits and sizes.
        base_id: model id that stands for the model without a policy.
        answerer: draws the answers.
    """

    def __init__(self, video_llm: VideoLLM, config: EngineConfig, base_id: str, answerer: Answerer) -> None:
        self.video_llm = video_llm
        self.answerer = answerer
        self._base_id = base_id
        self._policies: dict[str, CompressionPolicy] = {}
        self._builder = PromptBuilder(video_llm, config)
        self._long: deque[Job] = deque()  # taken, not begun

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
        """Answer ``jobs`` and what joins them; a job's first Finished, Compressed or Failed is its last event.

        Where the answerer draws elsewhere, it returns as soon as the answers have begun.

        Args:
            jobs: to begin with.
            more: asked between two tokens for jobs that have come since.
        """
        try:
            self._begin(self._short(jobs), more)
            while self.answerer.advance() or self._long:
                if self._long:
                    self._begin([self._long.popleft()], more)
                self._begin(self._short(more()), more)
        finally:
            self._long.clear()  # after a fault whoever gave the jobs tells them

    def _short(self, jobs: Sequence[Job]) -> list[Job]:
        """Those that begin at once; one with a long video waits for its turn, or until nobody waits for it."""
        waiting = [*self._long, *jobs]
        self._long = deque(job for job in waiting if job.long is not None and not job.cancelled.is_set())
        return [job for job in waiting if job not in self._long]

    def _turns(self, job: Job, more: Callable[[], Sequence[Job]]) -> Callable[[], None]:
        """What is called between two chunks of a long video: the others go on for as long as the chunk took."""
        begun = time.perf_counter()

        def others() -> None:
            nonlocal begun
            if job.cancelled.is_set():
                raise overloaded("nobody waits for the answer", 1)
            paused = time.perf_counter()
            until = 2 * paused - begun
            self._begin(self._short(more()), more)
            while self.answerer.advance() and time.perf_counter() < until:
                self._begin(self._short(more()), more)
            begun = time.perf_counter()
            job.others_s += begun - paused

        return others

    def _begin(self, jobs: Sequence[Job], more: Callable[[], Sequence[Job]]) -> None:
        """Encode, score and select; begin the answers to what is to be answered."""
        encoded: list[Prompt] = []
        for job in jobs:
            with refusals(job):
                encoded.append(self._encoded(job, more))
        started = time.perf_counter()
        scored = _passing(_grouped(encoded, _scored_together), _score)
        selected = _passing([[each] for each in scored], lambda one: self._builder.select(one[0]))
        policy_s = time.perf_counter() - started
        rows: list[Row] = []
        for prompt in selected:
            prompt.policy_s = policy_s
            if prompt.request.decoding is None:
                with refusals(prompt.job):
                    prompt.job.emit(self._compressed(prompt))
            else:
                rows += Answering(prompt, self.video_llm.processor.tokenizer).rows
        self.answerer.begin(rows)

    def _encoded(self, job: Job, more: Callable[[], Sequence[Job]]) -> Prompt:
        job.started = time.perf_counter()
        if job.cancelled.is_set() or job.started - job.submitted > job.request.time_left_s:
            raise overloaded("the request waited too long", 1)
        if job.request.decoding is not None:
            self.answerer.check(job.request.decoding)
        return self._builder.encode(job, self._policy(job.request.model), self._turns(job, more))

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

    def _card(self, name: str, policy: CompressionPolicy | None) -> ModelCard:
        model = self.video_llm.config
        return ModelCard(
            id=name,
            policy=None if policy is None else policy.kind,
            trained_steps=0 if policy is None else policy.metadata.trained_steps,
            methods=methods_of(policy),
            num_frames=model.num_frames,
            positions=self._builder.positions(policy),
        )


def _passing(groups: Sequence[list[Prompt]], step: Callable[[list[Prompt]], None]) -> list[Prompt]:
    """Those of the groups that ``step`` did not refuse."""
    passed: list[Prompt] = []
    for group in groups:
        with refusals(*(prompt.job for prompt in group)):
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
    return prompt.method == POLICY, id(prompt.policy), prompt.encoded.grid, prompt.steps


def _jpeg(frame: Any) -> bytes:  # noqa: ANN401  an image array
    buffer = io.BytesIO()
    picture = Image.fromarray(frame)
    picture.thumbnail((640, 640))
    picture.save(buffer, "JPEG", quality=88)
    return buffer.getvalue()
