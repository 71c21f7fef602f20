"""Files that appear in one piece."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Where to write the new contents of ``path``: its readers see the old file or the whole new one.

    The file is written beside ``path`` (one file system, so that renaming is atomic) and removed if the block
    fails. One process writes a path at a time.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
