"""What compression saves: times of one question alone, and the memory it takes.

    frames ──tower──► features ──compress──► reduction ──prefill──► first token

Everything has run before: measuring comes first. Decoding the file is in none of them.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import psutil
import torch

from cacovid.data.reader import ItemReader
from cacovid.evaluation.rows import QuestionRow
from cacovid.methods.protocol import EvaluationCase, Method, needs_tower_attention, reduction_by
from cacovid.models.adapter import VideoLLM
from cacovid.models.inside import answering_with
from cacovid.models.reduction import Reduction

MEMORY = {"CPU": "resident memory of the process afterwards", "GPU": "peak of CUDA memory meanwhile"}  # what is counted


@dataclass(frozen=True)
class Taken:
    """One reduction of one question."""

    compress_ms: float
    prefill_ms: float
    memory_bytes: int


def timed_rows(
    reader: ItemReader, methods: Sequence[Method], case: EvaluationCase, rows: Sequence[QuestionRow]
) -> list[QuestionRow]:
    """The rows of one question with their times and memory."""
    by_name = {method.name: method for method in methods}
    listening = {method.name for method in methods if needs_tower_attention([method])}
    device = _name(reader.video_llm.device)
    towers = {attention: _tower_ms(reader, case, attention) for attention in {False, bool(listening)}}
    timed = []
    for row in rows:
        if row.undefined is None:
            taken = _taken(reader.video_llm, by_name.get(row.method), case, row.retention)
            row = replace(row, **vars(taken), tower_ms=towers[row.method in listening], device=device)
        timed.append(row)
    return timed


def _taken(video_llm: VideoLLM, method: Method | None, case: EvaluationCase, retention: float) -> Taken:
    """Of one reduction; ``method`` None: with all tokens."""
    device, whole = video_llm.device, case.input.grid.tokens
    fresh = replace(case)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    started = _now(device)
    if method is None or case.budget(retention) == whole:
        reduction = Reduction(torch.arange(whole))
    else:
        reduction = reduction_by(method, fresh, retention)
    compressed = _now(device)
    seen = reduction.applied(case.encoded)
    with answering_with(video_llm, seen, reduction):
        video_llm.first_logits(seen, reduction.keep[None].to(device))
    prefilled = _now(device)
    return Taken(1000 * (compressed - started), 1000 * (prefilled - compressed), _memory(device))


def _tower_ms(reader: ItemReader, case: EvaluationCase, attention: bool) -> float:
    video, device = reader.frames(case.item.clip), reader.video_llm.device
    seconds = 0.0
    for _ in range(2):  # the first time warms up: the cache may have had the clip
        started = _now(device)
        reader.video_llm.watch(video.frames, fps=video.fps, tower_attention=attention)
        seconds = _now(device) - started
    return 1000 * seconds


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def _memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return int(psutil.Process().memory_info().rss)


def _now(device: torch.device) -> float:
    """Seconds, with all work queued on a GPU finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
