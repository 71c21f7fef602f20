"""Embedded clips as files: MP4 videos and a question table."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from cacovid.data.table import write_questions
from cacovid.embedded.clips import Clip, draw_clip
from cacovid.embedded.parallel import map_threads
from cacovid.embedded.questions import QUESTIONS_PER_CLIP, ClipQuestion, clip_questions
from cacovid.embedded.second.questions import scene_records
from cacovid.embedded.second.scenes import draw_scene
from cacovid.embedded.video_writer import write_mp4
from cacovid.errors import UserError
from cacovid.records import VideoQuestion

TABLE: Final = "questions.parquet"
VIDEOS: Final = "videos"
SOURCE: Final = "embedded"


def write_dataset(
    folder: Path, seeds: Sequence[int], *, world: str = SOURCE, questions: int = QUESTIONS_PER_CLIP, workers: int = 1
) -> list[VideoQuestion]:
    """Write ``videos/clip-SEED.mp4`` for every clip seed, and ``questions.parquet``.

    Args:
        world: one of ``WORLDS``.
        questions: questions a clip, 1 to 16; the second world has five.
        workers: threads that draw and encode; the files do not depend on it.

    Returns:
        The questions in the table's order; their videos are relative to ``folder``.

    Raises:
        UserError: if the folder already holds a table or cannot be made.
    """
    if (folder / TABLE).exists():
        raise UserError(f"{folder} already holds {TABLE}: choose another folder or delete it")
    try:
        (folder / VIDEOS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {error.strerror}") from error
    rows = list(map_threads(partial(WORLDS[world], folder, questions), list(seeds), workers))
    items = [item for of_clip in rows for item in of_clip]
    write_questions(folder / TABLE, items)
    return items


def question_record(clip: Clip, question: ClipQuestion, place: int, video: str) -> VideoQuestion:
    """A clip's ``place``-th question as a row of the table."""
    asked = clip.objects[question.asked]
    others = [token for one in clip.objects if one is not asked for token in one.tokens]
    return VideoQuestion(
        id=f"clip-{clip.seed}-{place}",
        video=video,
        question=question.text(clip),
        options=question.option_texts(),
        answer=question.letter,
        problem_type="multiple choice",
        source=SOURCE,
        evidence=asked.tokens,
        other_objects=tuple(sorted(others)),
    )


def _write_clip(folder: Path, questions: int, seed: int) -> list[VideoQuestion]:
    clip = draw_clip(seed)
    video = f"{VIDEOS}/clip-{seed}.mp4"
    write_mp4(folder / video, clip.frames)
    return [
        question_record(clip, question, place, video) for place, question in enumerate(clip_questions(clip, questions))
    ]


def _write_scene(folder: Path, questions: int, seed: int) -> list[VideoQuestion]:
    scene = draw_scene(seed)
    video = f"{VIDEOS}/clip-{seed}.mp4"
    write_mp4(folder / video, scene.frames)
    return scene_records(scene, video)


WORLDS: Final[dict[str, Callable[[Path, int, int], list[VideoQuestion]]]] = {
    SOURCE: _write_clip,
    "embedded-2": _write_scene,
}
