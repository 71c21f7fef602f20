"""Items that could not be used: set aside with the reason, counted, and too many stop the run."""

import json
import os
from pathlib import Path

from cacovid.errors import UserError

MIN_ITEMS = 20  # below this many items met, one bad item would already be a large share


class SkippedItems:
    """Appends ``{"id", "video", "reason"}`` lines to ``skipped.jsonl``, each item once.

    One process writes (the driver); rollout actors send their reasons to it. On resume the lines
    already there are known, and ``met`` and ``skipped`` go on from the checkpoint's counts.

    Args:
        path: the JSON lines file, made with the first skipped item; None writes nothing.
        max_share: largest share of skipped among met items, 0 to 1.

    Attributes:
        met: items met so far; a resumed run sets it from its checkpoint.
        skipped: of those, the skipped ones.
    """

    def __init__(self, path: str | os.PathLike[str] | None, max_share: float = 1.0) -> None:
        self.path = None if path is None else Path(path)
        self.max_share = max_share
        self.met = 0
        self.skipped = 0
        self.reasons: dict[str, str] = {}  # by item id, of those set aside by this object
        text = self.path.read_text(encoding="utf-8") if self.path is not None and self.path.is_file() else ""
        self._written = _known_ids(text)
        self._cut = bool(text) and not text.endswith("\n")  # by a kill in mid-line

    def use(self, count: int = 1) -> None:
        """Count items that were used, so that the share of skipped ones is right."""
        self.met += count

    def add(self, item_id: str, video: str, reason: str) -> None:
        """Set one item aside.

        Raises:
            UserError: more than ``max_share`` of the items met are unusable (judged from
                ``MIN_ITEMS`` items on; :meth:`finish` judges shorter runs).
        """
        self.met += 1
        self.skipped += 1
        self.reasons[item_id] = reason
        if self.path is not None and item_id not in self._written:
            self._written.add(item_id)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write("\n" if self._cut else "")
                self._cut = False
                file.write(json.dumps({"id": item_id, "video": video, "reason": reason}, ensure_ascii=False) + "\n")
        if self.met >= MIN_ITEMS:
            self._judge()

    def finish(self) -> None:
        """Judge the share at the end, however few items were met.

        Raises:
            UserError: more than ``max_share`` of them were unusable.
        """
        if self.met:
            self._judge()

    def _judge(self) -> None:
        if self.skipped > self.max_share * self.met:
            last = next(reversed(self.reasons.values()), "see the run before")
            where = f"the last one: {last}" if self.path is None else f"the reasons are in {self.path}"
            raise UserError(
                f"{self.skipped} of {self.met} items were unusable, more than the allowed share {self.max_share:g}; "
                f"{where}: mend the items or raise data.max_skipped (evaluate: --max-skipped)"
            )


def _known_ids(text: str) -> set[str]:
    ids = set()
    for line in text.splitlines():
        try:
            ids.add(str(json.loads(line)["id"]))
        except (json.JSONDecodeError, KeyError, TypeError):
            continue  # a line cut short by a killed run: its item is written again when met again
    return ids
