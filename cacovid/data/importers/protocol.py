"""What one importer is: which rows it knows, and what question each of them is."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from cacovid.data.importers.raw import RawRow, files_of, raw_rows
from cacovid.errors import UserError
from cacovid.records import VideoQuestion


class Importer(ABC):
    """Base of all importers.

    Args:
        path: The collection's file, or a folder of such files.
        videos: Folder that the collection's own video paths begin at.
    """

    kind: ClassVar[str]  # as on the command line
    title: ClassVar[str]
    schemas: ClassVar[tuple[tuple[str, ...], ...]]  # fields that tell its rows, any one set of them
    foreign: ClassVar[tuple[str, ...]] = ()  # fields that tell another collection's

    def __init__(self, path: Path, videos: Path) -> None:
        self.path = path
        self.videos = videos

    def files(self) -> list[Path]:
        """The files that hold its rows; raises UserError where there are none."""
        return files_of(self.path)

    def raw(self, file: Path) -> Iterator[RawRow]:
        """The rows of one file; raises UserError where it cannot be read."""
        return raw_rows(file)

    def rows(self) -> Iterator[RawRow]:
        """All rows.

        Raises:
            UserError: A file that cannot be read, or whose first row is not this collection's.
        """
        for file in self.files():
            for row in self.raw(file):
                if row.number == 0 and not self.knows(row):
                    needed = " or ".join(", ".join(fields) for fields in self.schemas)
                    raise UserError(
                        f"{file} is not {self.title}: its rows hold {', '.join(list(row.values)[:8]) or 'nothing'}; "
                        f"needed are {needed}"
                    )
                yield row

    def knows(self, row: RawRow) -> bool:
        """Whether the row has the fields of this collection."""
        held = row.values.keys()
        return any(held >= set(fields) for fields in self.schemas) and not held & set(self.foreign)

    @abstractmethod
    def convert(self, row: RawRow) -> VideoQuestion:
        """The row as a question of ours; raises Rejected where it is none."""

    def video(self, names: Sequence[str]) -> str:
        """The first of ``names`` that is there, else the first: a missing video is found by ``data check``."""
        paths = [self.videos / name for name in names]
        return str(next((path for path in paths if path.exists()), paths[0]))
