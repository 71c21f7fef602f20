"""Five questions a scene, one of each problem type, whose answers need two to four pieces of evidence."""

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from cacovid.answering.prompting import option_letters
from cacovid.embedded import glyphs
from cacovid.embedded.second.scenes import DIRECTIONS, FIRST_MOVED, GLIMPSED, OBJECTS, Scene, hour_of
from cacovid.records import ProblemType, VideoQuestion
from cacovid.seeding import derive_seed

Kind = Literal["order", "count", "where", "sign", "hours"]
PROBLEM_TYPES: Final[dict[Kind, ProblemType]] = {
    "order": "multiple choice",
    "count": "numerical",
    "where": "free-form",
    "sign": "OCR",
    "hours": "regression",
}
OPTIONS: Final = 3
Pieces = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class SceneQuestion:
    """A question with its answer and the evidence that the answer needs."""

    kind: Kind
    text: str
    answer: str
    pieces: Pieces  # video tokens of each piece; one token of each is enough
    options: tuple[str, ...] = ()


def order(scene: Scene, asked: tuple[int, ...]) -> SceneQuestion:
    """Which of three glimpsed objects is seen first."""
    pieces = tuple(scene.objects[index].tokens for index in asked)
    first = min(range(OPTIONS), key=lambda place: pieces[place])
    options = tuple(_shape(scene, index) for index in asked)
    return SceneQuestion("order", "which object appears first?", option_letters(OPTIONS)[first], pieces, options)


def count(scene: Scene) -> SceneQuestion:
    """How many objects have the colour that some share."""
    color = glyphs.COLOUR_NAMES[scene.objects[scene.alike[0]].colour]
    pieces = tuple(scene.objects[index].tokens for index in scene.alike)
    return SceneQuestion("count", f"how many {color} objects are there?", str(len(scene.alike)), pieces)


def where(scene: Scene, moved: int) -> SceneQuestion:
    """Which colour an object has and in which direction it went: ROUGE-2 gives an answer of one word 2/3 at most."""
    direction = DIRECTIONS[scene.directions[moved - FIRST_MOVED]]
    color = glyphs.COLOUR_NAMES[scene.objects[moved].colour]
    text = f"what color is the {_shape(scene, moved)} and where did it go?"
    return SceneQuestion("where", text, f"{color} {direction}", scene.halves(moved))


def sign(scene: Scene) -> SceneQuestion:
    """What the sign says, from left to right."""
    text = " ".join(glyphs.SYLLABLES[syllable] for syllable in scene.sign)
    return SceneQuestion("sign", "what does the sign say?", text, scene.sign_tokens)


def hours(scene: Scene, earlier: int, later: int) -> SceneQuestion:
    """How many hours lie between two glimpsed objects."""
    pieces = tuple(scene.objects[index].tokens for index in (earlier, later))
    first, second = (hour_of(tokens[0]) for tokens in pieces)
    text = f"how many hours from the {_shape(scene, earlier)} to the {_shape(scene, later)}?"
    return SceneQuestion("hours", text, str(second - first), pieces)


def scene_questions(scene: Scene) -> tuple[SceneQuestion, ...]:
    """One question of each kind, fixed by the scene's seed."""
    random = np.random.default_rng(derive_seed("embedded scene questions", scene.seed))
    options = tuple(random.permutation(GLIMPSED)[:OPTIONS].tolist())
    pair = sorted(random.permutation(GLIMPSED)[:2].tolist(), key=lambda index: scene.objects[index].tokens)
    moved = int(random.integers(FIRST_MOVED, OBJECTS))
    return order(scene, options), count(scene), where(scene, moved), sign(scene), hours(scene, pair[0], pair[1])


def scene_records(scene: Scene, video: str) -> list[VideoQuestion]:
    """The scene's questions as rows of the table."""
    shown = {token for one in scene.objects for token in one.tokens} | {
        token for tokens in scene.sign_tokens for token in tokens
    }
    records = []
    for question in scene_questions(scene):
        evidence = {token for piece in question.pieces for token in piece}
        records.append(
            VideoQuestion(
                id=f"scene-{scene.seed}-{question.kind}",
                video=video,
                question=question.text,
                options=question.options,
                answer=question.answer,
                problem_type=PROBLEM_TYPES[question.kind],
                source="embedded-2",
                evidence=tuple(sorted(evidence)),
                other_objects=tuple(sorted(shown - evidence)),
                question_type=question.kind,
            )
        )
    return records


def _shape(scene: Scene, index: int) -> str:
    return glyphs.SHAPES[scene.objects[index].shape]
