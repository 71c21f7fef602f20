"""MLVU, dev and test."""

import re

from cacovid.data.importers.options import letter_of, letter_of_text, stripped
from cacovid.data.importers.protocol import Importer
from cacovid.data.importers.raw import RawRow, Rejected
from cacovid.records import VideoQuestion


class MLVU(Importer):
    """Dev has a file a task (``1_plotQA.json``), whose videos lie in a folder of its name; test has one for all.

    The file's own folder comes first: many names occur in several folders.
    """

    kind = "mlvu"
    title = "MLVU"
    schemas = (("video", "question", "question_type"), ("video_name", "question", "question_type"))
    foreign = ("duration_group", "dim", "start")

    def convert(self, row: RawRow) -> VideoQuestion:
        """One row; without candidates (summaries) it is a free-form question."""
        options = stripped(row.texts("candidates"))
        if not row.optional("answer"):
            raise Rejected("no published answer")
        return VideoQuestion(
            id=row.optional("question_id") or f"{row.file.stem}-{row.number}",
            video=self._video(row),
            question=row.text("question"),
            options=options,
            answer=self._letter(row.text("answer"), options) if options else row.text("answer"),
            problem_type="multiple choice" if options else "free-form",
            source="MLVU",
            duration=row.seconds("duration"),
            question_type=row.text("question_type"),
        )

    def _video(self, row: RawRow) -> str:
        name, task = row.text("video_name" if "video_name" in row.values else "video"), row.file.stem
        inside = f"{task}/{name}"
        return self.video([inside, name] if re.match(r"\d+_", task) else [name, inside])

    @staticmethod
    def _letter(answer: str, options: tuple[str, ...]) -> str:
        """Dev gives the option's text, test the letter."""
        try:
            return letter_of_text(answer, options)
        except Rejected:
            if len(answer.strip("().")) == 1:
                return letter_of(answer, options)
            raise
