"""What a job takes along, and that it is not too much."""

from pathlib import Path

import pytest
from ray._private.runtime_env.packaging import create_package

from cacovid.errors import UserError
from cluster.jobs.package import EXCLUDES, check_size, packed_files

ROOT = Path(__file__).parents[3]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working directory with what stays behind."""
    kept = {"train.toml": 10, "tables/questions.parquet": 3_000_000}
    left = {
        ".git/objects/pack": 9_000_000,
        ".venv/bin/python": 9_000_000,
        "runs/mine/policy": 9_000_000,
        "__pycache__/a.pyc": 9_000_000,
        "videos/a.mp4": 9_000_000,
        "notes.txt": 9_000_000,
    }
    for name, size in {**kept, **left}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        with (tmp_path / name).open("wb") as file:
            file.truncate(size)
    (tmp_path / ".gitignore").write_text("notes.txt\n")
    (tmp_path / ".rayignore").write_text("videos/\n")
    return tmp_path


def test_environments_runs_history_and_ignored_files_stay_behind(folder: Path) -> None:
    files = packed_files(folder)
    assert set(files) == {"train.toml", "tables/questions.parquet", ".gitignore", ".rayignore"}
    assert files["tables/questions.parquet"] == 3_000_000


def test_the_size_is_that_of_the_package_that_ray_makes(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    package = tmp_path_factory.mktemp("package") / "package.zip"
    create_package(str(folder), package, include_gitignore=True, excludes=list(EXCLUDES))
    assert sum(packed_files(folder).values()) == pytest.approx(package.stat().st_size, rel=0.01)


def test_too_much_is_refused_and_the_largest_entries_are_named(folder: Path) -> None:
    check_size(folder, packed_files(folder), limit=3_100_000)
    with pytest.raises(
        UserError, match=r"3 MB to upload, more than 2 \(largest: tables 3 MB, .*\.rayignore"
    ) as refused:
        check_size(folder, packed_files(folder), limit=2_000_000)
    assert "\n" not in str(refused.value)


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no folder .*none.*--working-dir"):
        packed_files(tmp_path / "none")


def test_a_checkout_is_small_by_its_rayignore_alone() -> None:
    """What `ray job submit --working-dir .` takes, which knows nothing of our excludes."""
    files = packed_files(ROOT, excludes=())
    assert {"constraints.txt", "pyproject.toml", "cluster/commands/main.py", "configs/embedded.toml"} <= set(files)
    assert sum(files.values()) < 20_000_000
    assert {".git", ".venv", "runs"} <= set((ROOT / ".rayignore").read_text().splitlines())
