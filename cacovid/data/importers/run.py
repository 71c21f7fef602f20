"""From a collection's files to our table: every row is imported, or listed with its reason."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TextIO

from cacovid.atomic import writing
from cacovid.data.importers.protocol import Importer
from cacovid.data.importers.raw import RawRow, Rejected
from cacovid.data.importers.registry import importer_of
from cacovid.data.question import check_question
from cacovid.data.table import write_questions
from cacovid.errors import BadItem, UserError
from cacovid.records import VideoQuestion


@dataclass
class Imported:
    """What became of a collection's rows."""

    questions: int = 0
    rejected: Counter[str] = field(default_factory=Counter)  # by reason
    videos: int = 0  # different ones
    missing_videos: int = 0  # of those, not found


def rejected_file(out: Path) -> Path:
    """Where the rows that are not imported are listed."""
    return out.with_name(f"{out.name.removesuffix('.parquet')}.rejected.jsonl")


def import_questions(kind: str, path: Path, out: Path, videos: Path | None) -> Imported:
    """Write the questions of a collection to the table ``out``, and its other rows beside it.

    Args:
        kind: name of an importer.
        path: the collection's file, or a folder of them.
        out: the table.
        videos: folder that the collection's own video paths begin at; None: that of ``path``.

    Raises:
        UserError: an unknown kind, files that are not the collection's or cannot be read, no question at all; nothing
            is written then.
    """
    importer = importer_of(kind)(path, (videos or (path if path.is_dir() else path.parent)).absolute())
    imported = Imported()
    listed = rejected_file(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with writing(listed) as part, part.open("w", encoding="utf-8") as aside:
        write_questions(out, _questions(importer, imported, aside))
    return imported


def _questions(importer: Importer, imported: Imported, aside: TextIO) -> Iterator[VideoQuestion]:
    ids: set[str] = set()
    videos: set[str] = set()
    for row in importer.rows():
        try:
            item = _checked(importer, row, ids)
        except Rejected as rejected:
            imported.rejected[rejected.reason] += 1
            aside.write(_line(row, rejected))
        else:
            ids.add(item.id)
            videos.add(item.video)
            imported.questions += 1
            yield item
    if not imported.questions:
        reasons = ", ".join(f"{reason} ({count})" for reason, count in imported.rejected.most_common(3))
        raise UserError(f"{importer.path} holds no question that can be imported: {reasons or 'it has no rows'}")
    imported.videos = len(videos)
    imported.missing_videos = sum(not Path(video).exists() for video in videos)


def _checked(importer: Importer, row: RawRow, ids: set[str]) -> VideoQuestion:
    try:
        item = importer.convert(row)
        check_question(item)
    except BadItem as error:
        raise Rejected("not as our table needs it", str(error)) from None
    if item.id in ids:
        item = replace(item, id=f"{item.id} ({row.file.stem} {row.number})")  # ids are unique within a table
    return item


def _line(row: RawRow, rejected: Rejected) -> str:
    listed = {
        "file": row.file.name,
        "row": row.number,
        "reason": rejected.reason,
        "detail": rejected.detail,
        "values": row.values,
    }
    return json.dumps(listed, ensure_ascii=False, default=str) + "\n"
