"""Builds the tiny Video-LLM from nothing.

draw clips -> train the tower (kept on disk) -> its features of all clips -> train the language model
-> finish on new clips -> save -> measure on held-out clips what was saved
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_model, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaOnevisionForConditionalGeneration

from cacovid.embedded.corpus import Corpus, draw_corpus
from cacovid.embedded.measure import full_accuracy
from cacovid.embedded.model import new_model, save_model
from cacovid.embedded.progress import Progress, silent
from cacovid.embedded.splits import HELD_OUT, split_seeds
from cacovid.embedded.train_language import (
    FINISH,
    LEARN,
    LanguageTraining,
    cache_features,
    place_word_embeddings,
    train_language,
)
from cacovid.embedded.train_tower import TowerTraining, train_tower
from cacovid.errors import UserError

REPORT = "build.json"
_TOWER = "tower.safetensors"


@dataclass(frozen=True)
class BuildConfig:
    """How much is drawn, trained and measured."""

    clips: int = 6_000  # for the tower and most of the language model's training
    finish_clips: int = 3_000  # new ones for its last steps
    tower: TowerTraining = field(default_factory=TowerTraining)
    language: LanguageTraining = LEARN
    finish: LanguageTraining = FINISH
    held_out_clips: int = 250  # two questions each


@dataclass(frozen=True)
class BuildReport:
    """What came out; written beside the model as ``build.json``."""

    seed: int
    held_out_clips: int
    held_out_questions: int
    accuracy_drawn: float  # all tokens, frames as drawn
    accuracy_decoded: float  # all tokens, frames read back from H.264
    seconds: dict[str, float]  # of each stage


def build(
    output: Path,
    seed: int = 0,
    config: BuildConfig | None = None,
    *,
    workers: int = 1,
    progress: Progress = silent,
) -> BuildReport:
    """Train the model from nothing into ``output`` in Hugging Face's layout, and measure it on held-out clips.

    An interrupted build goes on after the tower if called again with the same arguments.

    Args:
        workers: processes that draw clips.

    Raises:
        UserError: if ``output`` already holds a model.
    """
    config = config or BuildConfig()
    check_free(output)
    output.mkdir(parents=True, exist_ok=True)
    seconds: dict[str, float] = {}
    with timed("draw", seconds):
        corpus = draw_corpus(split_seeds("model", config.clips), workers)
        new_corpus = draw_corpus(split_seeds("model", config.finish_clips, config.clips), workers)
    model = new_model(seed)
    with timed("tower", seconds):
        _tower_stage(model, corpus, config, seed, output / _TOWER, progress)
        cache, new_cache = cache_features(model, corpus), cache_features(model, new_corpus)
    del corpus, new_corpus  # 2 GB of frames, which only the tower reads
    with timed("language", seconds):
        place_word_embeddings(model, cache, seed)
        train_language(model, cache, config.language, seed, progress)
    with timed("finish", seconds):
        train_language(model, new_cache, config.finish, seed, progress, stage="finish")
    save_model(model, output)
    with timed("measure", seconds):
        drawn, decoded = _measure(output, config.held_out_clips)
    report = BuildReport(seed, config.held_out_clips, 2 * config.held_out_clips, drawn, decoded, seconds)
    (output / REPORT).write_text(json.dumps(asdict(report), indent=2) + "\n")
    (output / _TOWER).unlink()
    return report


def check_free(output: Path) -> None:
    """Raises UserError if ``output`` already holds a model."""
    if (output / "config.json").exists():
        raise UserError(f"{output} already holds a model: choose another folder or delete it")


@contextmanager
def timed(stage: str, seconds: dict[str, float]) -> Iterator[None]:
    """Note in ``seconds`` how long ``stage`` took."""
    start = time.perf_counter()
    yield
    seconds[stage] = round(time.perf_counter() - start, 1)


def _tower_stage(
    model: LlavaOnevisionForConditionalGeneration,
    corpus: Corpus,
    config: BuildConfig,
    seed: int,
    checkpoint: Path,
    progress: Progress,
) -> None:
    """Train the tower, or load it from the checkpoint of the same build."""
    built_by = repr((seed, config.clips, config.tower))
    if checkpoint.exists():
        with safe_open(checkpoint, "pt") as file:
            metadata = file.metadata()
        if metadata == {"built_by": built_by}:
            load_model(model, checkpoint)
            return
    train_tower(model, corpus, config.tower, seed, progress)
    weights = {name: weight for name, weight in model.state_dict().items() if name != "lm_head.weight"}
    save_file(weights, checkpoint, metadata={"built_by": built_by})


def _measure(folder: Path, clips: int) -> tuple[float, float]:
    """Held-out accuracy with drawn and with decoded frames, of the model as saved."""
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    seeds = HELD_OUT[:clips]
    drawn, decoded = (full_accuracy(model, processor, seeds, decoded=decoded) for decoded in (False, True))
    return drawn, decoded
