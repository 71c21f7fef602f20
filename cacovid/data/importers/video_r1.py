"""Video-R1-260k, and the list that the paper filtered it to."""

from typing import cast

from cacovid.answering.reward import final_answer
from cacovid.data.importers.options import letter_of, split_off, stripped
from cacovid.data.importers.protocol import Importer
from cacovid.data.importers.raw import RawRow, Rejected
from cacovid.data.question import PROBLEM_TYPES
from cacovid.records import ProblemType, VideoQuestion


class VideoR1(Importer):
    """Both schemas; rows about single images are listed as rejected."""

    kind = "video-r1"
    title = "Video-R1"
    schemas = (
        ("problem", "data_type", "problem_type", "solution", "path"),
        ("problem", "modality_type", "problem_type", "solution", "video"),
    )

    def convert(self, row: RawRow) -> VideoQuestion:
        """One row of either schema."""
        filtered = "modality_type" in row.values
        medium = row.text("modality_type" if filtered else "data_type")
        if medium != "video":
            raise Rejected(f"about an {medium}, not a video" if medium == "image" else "about no video", repr(medium))
        problem_type = row.text("problem_type")
        if problem_type not in PROBLEM_TYPES:
            raise Rejected("unknown problem_type", repr(problem_type))
        question, answer = row.text("problem"), final_answer(row.text("solution"))
        options: tuple[str, ...] = ()
        if problem_type == "multiple choice":
            options = stripped(row.texts("options"))
            if not options:
                question, options = split_off(question)
            if not options:
                raise Rejected("multiple choice without options")
            answer = letter_of(answer, options)
        return VideoQuestion(
            id=row.optional("problem_id") or f"{row.file.stem}-{row.number}",
            video=self.video([row.text("video" if filtered else "path")]),
            question=question,
            options=options,
            answer=answer,
            problem_type=cast(ProblemType, problem_type),
            source=row.optional("data_source") or "Video-R1",
        )
