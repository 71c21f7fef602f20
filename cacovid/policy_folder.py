"""Where a policy lies. Imports nothing heavy."""

from pathlib import Path

CARD = "policy.json"


def policy_folder(path: Path) -> Path:
    """``path`` itself, or the ``policy`` folder inside it where ``path`` is a whole run."""
    return path / "policy" if not (path / CARD).is_file() and (path / "policy").is_dir() else path
