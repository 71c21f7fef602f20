"""TempCompass: multiple choice, yes or no, and caption matching. Options stand inside the question."""

from collections.abc import Iterator
from pathlib import Path

from cacovid.data.importers.options import letter_of, split_off
from cacovid.data.importers.protocol import Importer
from cacovid.data.importers.raw import RawRow, Rejected, load_json, raw_rows
from cacovid.records import VideoQuestion


class TempCompass(Importer):
    """A list of rows, or the authors' own nesting: video, then dimension, then questions."""

    kind = "tempcompass"
    title = "TempCompass"
    schemas = (("video_id", "dim", "question", "answer"), ("video_id", "dim", "mc_question", "mc_answer"))

    def raw(self, file: Path) -> Iterator[RawRow]:
        """The rows of either form."""
        if file.suffix == ".json" and isinstance(nested := load_json(file), dict):
            found = (
                {"video_id": video, "dim": dim, **question}
                for video, by_dim in nested.items()
                for dim, questions in (by_dim.items() if isinstance(by_dim, dict) else [])
                for question in questions
            )
            return (RawRow(file, number, values) for number, values in enumerate(found))
        return raw_rows(file)

    def convert(self, row: RawRow) -> VideoQuestion:
        """One row; captions to be written are judged by another model and listed as rejected."""
        if "mc_question" in row.values:
            raise Rejected("a caption to be written, which another model judges")
        question, options = split_off(row.text("question"))
        answer = row.text("answer")
        if not options and answer.casefold().rstrip(".") in ("yes", "no"):
            options = ("yes", "no")
        if not options:
            raise Rejected("the question holds no options")
        return VideoQuestion(
            id=f"{row.file.stem}-{row.number}",
            video=self.video([f"{row.text('video_id')}.mp4"]),
            question=question,
            options=options,
            answer=letter_of(answer, options),
            problem_type="multiple choice",
            source="TempCompass",
            question_type=row.text("dim"),
        )
