"""The working directory of a job: which of its files go to the cluster, and how large they are together."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

from cacovid.errors import UserError

# Beside what .gitignore and .rayignore files name, which Ray reads by itself.
EXCLUDES = (
    ".git",
    ".venv",
    "venv",
    "runs",
    "__pycache__",
    "*.egg-info",
    ".pytest_cache",
    ".mypy_cache",
    ".ruff_cache",
    ".hypothesis",
    ".import_linter_cache",
)
MAX_BYTES = 100_000_000  # every machine of the job gets it, through the head's memory
NAMED = 3  # entries in the message that it is too much


def packed_files(folder: Path, excludes: Sequence[str] = EXCLUDES) -> dict[str, int]:
    """Bytes of each file that a job with this working directory takes along, by its path in it.

    Found by Ray's own reading of ignore files, as it packs them.

    Raises:
        UserError: There is no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"no folder {folder} to upload: choose another with --working-dir")
    sizes: dict[str, int] = {}

    def note(path: Path) -> None:
        if path.is_file():
            sizes[path.relative_to(root).as_posix()] = path.stat().st_size

    root = folder.absolute()
    _dir_travel(root, [_get_excludes(root, list(excludes))], note, include_gitignore=True)
    return sizes


def check_size(folder: Path, sizes: dict[str, int], limit: int = MAX_BYTES) -> None:
    """See that the files are small enough to upload.

    Raises:
        UserError: They are not; the largest entries of the folder are named.
    """
    total = sum(sizes.values())
    if total <= limit:
        return
    entries: Counter[str] = Counter()
    for path, size in sizes.items():
        entries[path.partition("/")[0]] += size
    largest = ", ".join(f"{name} {size / 1e6:.0f} MB" for name, size in entries.most_common(NAMED))
    raise UserError(
        f"{folder} has {total / 1e6:.0f} MB to upload, more than {limit / 1e6:.0f} (largest: {largest}): name what the "
        "job does not need in a file .rayignore there, or choose another folder with --working-dir"
    )
