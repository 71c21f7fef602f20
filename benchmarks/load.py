"""A closed-loop load on a running service: a few clients, each with its next request as soon as it has an answer."""

import base64
import io
import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import urllib3
from urllib3.exceptions import HTTPError

from benchmarks.timing import seconds
from cacovid.answering.prompting import lettered
from cacovid.embedded.clips import draw_clip
from cacovid.embedded.questions import clip_questions
from cacovid.embedded.video_writer import write_mp4

LOST = 0  # in place of a status: the connection broke without an answer

Body = Mapping[str, Any]

Send = Callable[[str, Body, "Outcomes", urllib3.PoolManager], None]


@dataclass
class Outcomes:
    """What became of the requests of one load."""

    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)  # of answered requests
    answered_at: list[float] = field(default_factory=list)  # perf_counter of every answer with status 200
    elapsed_s: float = 0.0
    first_s: list[float] = field(default_factory=list)  # to the first text, of streamed answers
    tokens: int = 0  # of streamed answers

    @property
    def throughput(self) -> float:
        """Answers per second."""
        return self.statuses[200] / self.elapsed_s

    def percentile(self, share: float) -> float:
        """Seconds within which ``share`` of the requests were answered."""
        return percentile(self.seconds, share)

    def longest_gap(self) -> float:
        """Longest time without any answer."""
        return max((later - earlier for earlier, later in itertools.pairwise(sorted(self.answered_at))), default=0.0)

    def others(self) -> str:
        """Statuses other than 200, for a table."""
        shown = {("lost" if status == LOST else str(status)): count for status, count in self.statuses.items()}
        shown.pop("200", None)
        return ", ".join(f"{count} x {status}" for status, count in sorted(shown.items())) or "none"


def percentile(seconds: Sequence[float], share: float) -> float:
    """The value that ``share`` of ``seconds`` do not exceed."""
    ordered = sorted(seconds)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def send(url: str, body: Body, outcomes: Outcomes, pool: urllib3.PoolManager) -> None:
    """One request; its status, time and moment go into ``outcomes``."""
    _request(url, body, outcomes, pool, 120.0, lambda answer: answer.read())


def send_streamed(url: str, body: Body, outcomes: Outcomes, pool: urllib3.PoolManager) -> None:
    """One request whose answer is streamed: its first text and its tokens go into ``outcomes`` as well."""
    started, first = time.perf_counter(), 0.0

    def read(answer: urllib3.BaseHTTPResponse) -> None:
        nonlocal first
        for line in answer:
            event = json.loads(line[6:]) if line.startswith(b"data: {") else {}
            if not first and any(choice["delta"].get("content") for choice in event.get("choices", [])):
                first = time.perf_counter() - started
            if event.get("usage"):
                outcomes.tokens += event["usage"]["completion_tokens"]

    streamed = dict(body) | {"stream": True, "stream_options": {"include_usage": True}}
    took = _request(url, streamed, outcomes, pool, 600.0, read)
    if took is not None:
        outcomes.first_s.append(first or took)


def _request(
    url: str,
    body: Body,
    outcomes: Outcomes,
    pool: urllib3.PoolManager,
    timeout_s: float,
    read: Callable[[urllib3.BaseHTTPResponse], object],
) -> float | None:
    """Send ``body``, ``read`` the whole answer and note it; the seconds it took, None where it was none."""
    started = time.perf_counter()
    try:
        answer = pool.request(
            "POST",
            f"{url}/v1/chat/completions",
            body=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
            retries=False,
            timeout=timeout_s,
            preload_content=False,
        )
        read(answer)
    except HTTPError:
        outcomes.statuses[LOST] += 1
        return None
    now = time.perf_counter()
    outcomes.statuses[answer.status] += 1
    if answer.status != 200:
        return None
    outcomes.seconds.append(now - started)
    outcomes.answered_at.append(now)
    return now - started


def bounded_load(url: str, bodies: Sequence[Body], clients: int, one: Send = send) -> Outcomes:
    """Send ``bodies`` once each from ``clients`` connections, each by ``one``."""
    outcomes = Outcomes()
    waiting = iter(bodies)
    lock = threading.Lock()

    def work() -> None:
        with urllib3.PoolManager(1) as pool:
            while True:
                with lock:
                    body = next(waiting, None)
                if body is None:
                    return
                one(url, body, outcomes, pool)

    def whole() -> None:
        with ThreadPoolExecutor(clients) as threads:
            for done in [threads.submit(work) for _ in range(clients)]:
                done.result()

    outcomes.elapsed_s = seconds(whole)
    return outcomes


@contextmanager
def steady_load(url: str, next_body: Callable[[], Body], clients: int) -> Iterator[Outcomes]:
    """Requests from ``clients`` connections for as long as the block lasts; those under way are waited for."""
    outcomes = Outcomes()
    stop = threading.Event()

    def work() -> None:
        with urllib3.PoolManager(1) as pool:
            while not stop.is_set():
                send(url, next_body(), outcomes, pool)

    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as threads:
        running: list[Future[None]] = [threads.submit(work) for _ in range(clients)]
        try:
            yield outcomes
        finally:
            stop.set()
            for done in running:
                done.result()
            outcomes.elapsed_s = time.perf_counter() - started


@dataclass(frozen=True)
class LoadClip:
    """An embedded clip as clients send it."""

    content: bytes  # MP4
    question: str  # with lettered options

    @classmethod
    def draw(cls, seed: int) -> "LoadClip":
        """The clip of ``seed`` with its first question."""
        clip = draw_clip(seed)
        buffer = io.BytesIO()
        write_mp4(buffer, clip.frames)
        question = clip_questions(clip)[0]
        options = lettered(question.option_texts())
        return cls(buffer.getvalue(), "\n".join([question.text(clip), *options]))

    def body(self, model: str, retention: float, frames: int = 8) -> dict[str, Any]:
        """A chat request about it."""
        url = f"data:video/mp4;base64,{base64.b64encode(self.content).decode()}"
        content = [{"type": "video_url", "video_url": {"url": url}}, {"type": "text", "text": self.question}]
        return {
            "model": model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": 4,
            "media_io_kwargs": {"video": {"num_frames": frames}},
            "compression": {"retention": retention},
        }
