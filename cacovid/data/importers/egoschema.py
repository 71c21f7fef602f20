"""EgoSchema: questions.json, with the published answers in subset_answers.json beside it."""

from functools import cached_property
from pathlib import Path
from typing import Any

from cacovid.answering.prompting import option_letters
from cacovid.data.importers.options import stripped
from cacovid.data.importers.protocol import Importer
from cacovid.data.importers.raw import RawRow, Rejected, load_json
from cacovid.errors import UserError
from cacovid.records import VideoQuestion

ANSWERS = "subset_answers.json"


class EgoSchema(Importer):
    """Five options; answers are published for 500 of the questions, as numbers from 0."""

    kind = "egoschema"
    title = "EgoSchema"
    schemas = (
        ("q_uid", "question", *(f"option {number}" for number in range(5))),
        ("video_idx", "question", "option", "answer"),
    )

    def files(self) -> list[Path]:
        """All but the answers."""
        return [file for file in super().files() if file.name != ANSWERS]

    def convert(self, row: RawRow) -> VideoQuestion:
        """One row of questions.json, or of the Parquet tables that hold the answers too."""
        own = "q_uid" in row.values
        video = row.text("q_uid" if own else "video_idx")
        options = stripped([row.text(f"option {number}") for number in range(5)] if own else row.texts("option"))
        answer = self._answers.get(video) if own else row.seconds("answer")
        if answer is None:
            raise Rejected("no published answer")
        if answer not in range(len(options)):
            raise Rejected("the answer is the number of no option", repr(answer))
        return VideoQuestion(
            id=video if own else f"{video}-{row.optional('question_idx') or row.number}",
            video=self.video([f"{video}.mp4"]),
            question=row.text("question"),
            options=options,
            answer=option_letters(len(options))[int(answer)],
            problem_type="multiple choice",
            source="EgoSchema",
        )

    @cached_property
    def _answers(self) -> dict[str, Any]:
        folder = self.path if self.path.is_dir() else self.path.parent
        if not (folder / ANSWERS).is_file():
            raise UserError(f"EgoSchema's answers are not in {folder}: put its {ANSWERS} there")
        answers = load_json(folder / ANSWERS)
        if not isinstance(answers, dict):
            raise UserError(f"{folder / ANSWERS} holds no answers by question: fetch EgoSchema's {ANSWERS} again")
        return answers
