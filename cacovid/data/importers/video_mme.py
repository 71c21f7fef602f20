"""VideoMME."""

from cacovid.data.importers.options import letter_of, stripped
from cacovid.data.importers.protocol import Importer
from cacovid.data.importers.raw import RawRow
from cacovid.records import VideoQuestion


class VideoMME(Importer):
    """Videos are named by their YouTube id; ``duration`` is short, medium or long."""

    kind = "video-mme"
    title = "VideoMME"
    schemas = (("videoID", "question_id", "duration", "question", "options", "answer"),)

    def convert(self, row: RawRow) -> VideoQuestion:
        """One row."""
        options = stripped(row.texts("options"))
        name = row.text("videoID")
        return VideoQuestion(
            id=row.text("question_id"),
            video=self.video([f"{name}{suffix}" for suffix in (".mp4", ".mkv", ".webm")]),
            question=row.text("question"),
            options=options,
            answer=letter_of(row.text("answer"), options),
            problem_type="multiple choice",
            source="VideoMME",
            group=row.text("duration"),
            question_type=row.optional("task_type") or row.optional("sub_category"),
        )
