"""Builds the second world's Video-LLM.

world 1's tower learns the hours and the syllables -> features of all scenes -> the language model learns
each kind of question, from few tokens to all -> save -> measure on held-out scenes what was saved
"""

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Final

import torch
from transformers import LlavaOnevisionForConditionalGeneration

from cacovid.config import ModelConfig
from cacovid.embedded.build import REPORT, check_free, timed
from cacovid.embedded.model import LanguageShape, new_model, save_model
from cacovid.embedded.progress import Progress, silent
from cacovid.embedded.second.corpus import SHORT_GLIMPSE, SceneCache, cache_scenes, scene_frames
from cacovid.embedded.second.lookup import start_with_lookup
from cacovid.embedded.second.measure import rewards
from cacovid.embedded.second.scenes import FRAMES, HOURS, NO_COLOUR, NO_KIND
from cacovid.embedded.second.train import Stage, train_stage
from cacovid.embedded.splits import HELD_OUT, split_seeds
from cacovid.embedded.tokenizer import SECOND_VOCABULARY
from cacovid.embedded.train_tower import Classes, TowerTraining, train_tower
from cacovid.models.loading import load_video_llm, resolve_path

CLASSES: Final = Classes(NO_KIND + 1, NO_COLOUR + 1, HOURS)
# World 1's theta of 1e4 turns all but a few of a head's dimensions several times within 2,304 positions.
SHAPE: Final = LanguageShape(len(SECOND_VOCABULARY), rope_theta=1e9, heads=14, inner=384)

TOWER: Final = TowerTraining(steps=600, place_weight=0.5, smoothing=0.1)
_DENSE = Stage("dense", steps=2_000, scenes=16, fewest=0.015, most=0.05, sure=0.85)
# Throwaway losses start anew in every stage: what they would teach at first undoes what is learned.
_ANSWERS_ALONE = replace(_DENSE, found_weight=0.0, step_weight=0.0, letter_weight=0.0)
CURRICULUM: Final = (
    _DENSE,
    replace(_ANSWERS_ALONE, name="longer", steps=300, scenes=8, most=0.4, lr=5e-4, flat=0.2),
    replace(
        _ANSWERS_ALONE,
        name="whole",
        steps=80,
        scenes=4,
        fewest=0.1,
        most=1.0,
        sure=0.9,
        everything=0.5,
        lr=2e-4,
        flat=0.0,
    ),
    # What a policy retains: objects and what looks like them, hardly any empty cell.
    replace(
        _ANSWERS_ALONE,
        name="chosen",
        steps=300,
        scenes=8,
        most=0.2,
        sure=0.95,
        objects=0.0,
        most_objects=4.0,
        most_filled=6.0,
        everything=0.05,
        lr=4e-4,
        flat=0.2,
    ),
)


@dataclass(frozen=True)
class SecondBuild:
    """How much is drawn, trained and measured."""

    tower_scenes: int = 120
    tower: TowerTraining = TOWER
    scenes: int = 2_000
    curriculum: tuple[Stage, ...] = CURRICULUM
    held_out_scenes: int = 50  # five questions each


@dataclass(frozen=True)
class SecondReport:
    """What came out; written beside the model as ``build.json``."""

    seed: int
    held_out_scenes: int
    drawn: dict[str, float]  # mean reward with all tokens by kind of question, frames as drawn
    decoded: dict[str, float]  # frames read back from H.264
    seconds: dict[str, float]  # of each stage


def build_second(
    output: Path,
    seed: int = 0,
    config: SecondBuild | None = None,
    *,
    workers: int = 1,
    progress: Progress = silent,
) -> SecondReport:
    """Train the model into ``output`` in Hugging Face's layout, and measure it on held-out scenes.

    An interrupted build goes on after the tower's features if called again with the same arguments.

    Args:
        workers: processes that draw scenes.

    Raises:
        UserError: if ``output`` already holds a model.
    """
    config = config or SecondBuild()
    check_free(output)
    seconds: dict[str, float] = {}
    model = first_model(seed)
    cache = _features(model, config, seed, output / _FEATURES, workers, seconds, progress)
    with timed("lookup", seconds):
        start_with_lookup(model, cache, seed)
    for stage in config.curriculum:
        with timed(stage.name, seconds):
            train_stage(model, cache, stage, seed, progress)
    save_model(model, output, SECOND_VOCABULARY)
    with timed("measure", seconds):
        video_llm = load_video_llm(ModelConfig(path=str(output), num_frames=FRAMES, max_new_tokens=8, device="cpu"))
        held_out = HELD_OUT[: config.held_out_scenes]
        drawn, decoded = (rewards(video_llm, held_out, decoded=decoded) for decoded in (False, True))
    report = SecondReport(seed, len(held_out), drawn, decoded, seconds)
    (output / REPORT).write_text(json.dumps(asdict(report), indent=2) + "\n")
    (output / _FEATURES).unlink()
    return report


def _features(
    model: LlavaOnevisionForConditionalGeneration,
    config: SecondBuild,
    seed: int,
    checkpoint: Path,
    workers: int,
    seconds: dict[str, float],
    progress: Progress,
) -> SceneCache:
    """Train the tower and keep with its weights what it sees in the scenes, or load both from the same build's file."""
    kinds = [each.name for each in fields(SceneCache)]  # a file of an earlier release may lack some
    built_by = repr((seed, config.tower_scenes, config.tower, config.scenes, SHORT_GLIMPSE, kinds))
    seen = (model.model.vision_tower, model.model.multi_modal_projector)
    if checkpoint.exists():
        kept = torch.load(checkpoint, weights_only=True)
        if kept["built_by"] == built_by:
            for part, weights in zip(seen, kept["weights"], strict=True):
                part.load_state_dict(weights)
            seconds.update(kept["seconds"])
            return SceneCache(**kept["cache"])
    with timed("tower", seconds):
        frames = scene_frames(split_seeds("model", config.tower_scenes, _FIRST_SCENE), workers)
        train_tower(model, frames, config.tower, seed, progress, CLASSES)
    with timed("features", seconds):
        seeds = split_seeds("model", config.scenes, _FIRST_SCENE + config.tower_scenes)
        cache = cache_scenes(model, seeds, workers)
    kept = {"weights": [part.state_dict() for part in seen], "cache": vars(cache), "seconds": {**seconds}}
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"built_by": built_by, **kept}, checkpoint)
    return cache


_FEATURES = "features.pt"
_FIRST_SCENE = 500_000  # of the split that the tiny models are trained on


def first_model(seed: int) -> LlavaOnevisionForConditionalGeneration:
    """World 1's tower before a new language model with more words and slower rotary positions."""
    model = new_model(seed, SHAPE)
    first = LlavaOnevisionForConditionalGeneration.from_pretrained(resolve_path("embedded")).model
    model.model.vision_tower.load_state_dict(first.vision_tower.state_dict())
    model.model.multi_modal_projector.load_state_dict(first.multi_modal_projector.state_dict())
    return model
