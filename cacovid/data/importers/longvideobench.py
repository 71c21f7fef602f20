"""LongVideoBench."""

from cacovid.answering.prompting import option_letters
from cacovid.data.importers.options import stripped
from cacovid.data.importers.protocol import Importer
from cacovid.data.importers.raw import RawRow, Rejected
from cacovid.records import VideoQuestion


class LongVideoBench(Importer):
    """Three to five options; the right one is given by its number from 0 (validation alone)."""

    kind = "longvideobench"
    title = "LongVideoBench"
    schemas = (
        ("video_path", "question", "candidates", "duration_group"),
        ("video_path", "question", "option0", "duration_group"),
    )

    def convert(self, row: RawRow) -> VideoQuestion:
        """One row; its options stand in a list (JSON) or in fields of their own, ``N/A`` where there are fewer."""
        named = [row.optional(f"option{number}") for number in range(5)]
        options = stripped(row.texts("candidates") or [text for text in named if text not in ("", "N/A")])
        choice = row.seconds("correct_choice")
        if choice is None or choice < 0:
            raise Rejected("no published answer")
        if choice not in range(len(options)):
            raise Rejected("correct_choice is the number of no option", f"{choice:g} of {len(options)}")
        return VideoQuestion(
            id=row.optional("id") or f"{row.file.stem}-{row.number}",
            video=self.video([row.text("video_path")]),
            question=row.text("question"),
            options=options,
            answer=option_letters(len(options))[int(choice)],
            problem_type="multiple choice",
            source="LongVideoBench",
            duration=row.seconds("duration"),
            group=row.text("duration_group"),
            question_type=row.optional("question_category"),
        )
