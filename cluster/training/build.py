"""Which code runs: version and commit."""

import json
import subprocess
from importlib.metadata import distribution
from pathlib import Path

import cacovid


def describe() -> str:
    """``cacovid 0.1.0 commit 1a2b3c...``, with ``+ changes`` where files of the checkout differ from it."""
    found = distribution("cacovid")
    commit = _of_checkout(Path(cacovid.__file__).parents[1]) or _of_wheel(found.read_text("direct_url.json"))
    return f"cacovid {found.version} {f'commit {commit}' if commit else 'no commit'}"


def _of_checkout(root: Path) -> str | None:
    """The commit of the git checkout whose top is ``root``; None: it is none, or there is no git."""
    try:
        top, commit = _git(root, "rev-parse", "--show-toplevel", "HEAD").splitlines()
        if Path(top) != root.resolve():
            return None  # of a project that we are installed into
        return commit + (" + changes" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _of_wheel(origin: str | None) -> str | None:
    """What pip has noted of a wheel that it built from a repository (PEP 610)."""
    commit: str | None = json.loads(origin or "{}").get("vcs_info", {}).get("commit_id")
    return commit
