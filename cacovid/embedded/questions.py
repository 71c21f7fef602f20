"""Questions about one clip's objects, with options from the same clip."""

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from cacovid.answering.prompting import option_letters
from cacovid.embedded.clips import Clip, SceneObject
from cacovid.embedded.glyphs import COLOUR_NAMES, SHAPES
from cacovid.seeding import derive_seed

Asked = Literal["color", "shape"]
LETTERS: Final = option_letters(4)
QUESTIONS_PER_CLIP: Final = 2
_NEEDLE_SHARE = 0.45


@dataclass(frozen=True)
class ClipQuestion:
    """A multiple-choice question about one object of a clip."""

    asked: int  # index into clip.objects
    about: Asked  # the attribute that is asked for; the object is named by the other one
    options: tuple[int, ...]  # (4,) class indices of the asked attribute
    correct: int  # index into options

    @property
    def letter(self) -> str:
        """The right answer."""
        return LETTERS[self.correct]

    def text(self, clip: Clip) -> str:
        """The question without its options."""
        return f"what {self.about} is the {named_by(clip.objects[self.asked], self.about)} object?"

    def option_texts(self) -> tuple[str, ...]:
        """The options without letters."""
        names = COLOUR_NAMES if self.about == "color" else SHAPES
        return tuple(names[option] for option in self.options)


def named_by(scene_object: SceneObject, about: Asked) -> str:
    """The word that singles an object out when ``about`` is asked for."""
    return SHAPES[scene_object.shape] if about == "color" else COLOUR_NAMES[scene_object.colour]


def make_question(random: np.random.Generator, clip: Clip, asked: int, about: Asked) -> ClipQuestion:
    """A question about ``clip.objects[asked]``; three distractors are other objects' classes, shuffled."""
    others = [index for index in range(len(clip.objects)) if index != asked]
    chosen = [asked, *random.permutation(others)[: len(LETTERS) - 1]]
    order = random.permutation(len(LETTERS))
    shown = [clip.objects[chosen[position]] for position in order]
    options = tuple(scene_object.colour if about == "color" else scene_object.shape for scene_object in shown)
    return ClipQuestion(asked, about, options, int(np.flatnonzero(order == 0)[0]))


def clip_questions(clip: Clip, count: int = QUESTIONS_PER_CLIP) -> tuple[ClipQuestion, ...]:
    """The clip's questions, fixed by its seed: each asks a needle with probability 0.45; no two are the same."""
    random = np.random.default_rng(derive_seed("embedded questions", clip.seed))
    needles = [index for index, scene_object in enumerate(clip.objects) if scene_object.is_needle]
    others = [index for index in range(len(clip.objects)) if index not in needles]
    chosen: dict[tuple[int, Asked], ClipQuestion] = {}
    while len(chosen) < count:
        pool = needles if random.random() < _NEEDLE_SHARE else others
        asked = int(pool[int(random.random() * len(pool))])
        about: Asked = "color" if random.random() < 0.5 else "shape"
        if (asked, about) not in chosen:
            chosen[asked, about] = make_question(random, clip, asked, about)
    return tuple(chosen.values())
