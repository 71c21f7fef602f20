"""Records that a learner has fetched, kept for the next draws of the replay buffer.

A question is drawn from the replay buffer many times. Fetching and unpacking its record takes about
as long as half an optimiser step on the embedded benchmark, so a learner keeps what it has unpacked.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import ray

from cacovid.records import HeldRecord, RolloutRecord


class RecordCache:
    """Least recently used records by the reference to their input, bounded in bytes."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.nbytes = 0
        self._records: OrderedDict[str, RolloutRecord] = OrderedDict()

    def __len__(self) -> int:
        return len(self._records)

    def fetch(self, held: Sequence[HeldRecord]) -> list[RolloutRecord | None]:
        """The records of ``held`` in order; None where an input is lost with its node."""
        records = {key: self._records[key] for each in held if (key := _key(each)) in self._records}
        missing = dict.fromkeys(each for each in held if _key(each) not in records)
        parts = _values([part for each in missing for part in (each.rollout, each.seen)])
        found = []
        for each in held:
            record = records.get(_key(each)) or _joined(*(parts.get(id(part)) for part in (each.rollout, each.seen)))
            found.append(record)
            if record is not None and isinstance(each.seen, ray.ObjectRef):
                self._keep(_key(each), record)
        return found

    def _keep(self, key: str, record: RolloutRecord) -> None:
        """Make ``key`` the most recently used and drop the oldest beyond the bound."""
        if key in self._records:
            self._records.move_to_end(key)
            return
        if record.nbytes() > self.max_bytes:
            return
        self._records[key] = record
        self.nbytes += record.nbytes()
        while self.nbytes > self.max_bytes:
            _, dropped = self._records.popitem(last=False)
            self.nbytes -= dropped.nbytes()


def _key(held: HeldRecord) -> str:
    """Of the reference; an input that is held by value has none and is not kept."""
    return held.seen.hex() if isinstance(held.seen, ray.ObjectRef) else ""


def _joined(rollout: Any, seen: Any) -> RolloutRecord | None:  # noqa: ANN401 - as they were fetched
    return None if seen is None else RolloutRecord.of(rollout, seen)


def _values(parts: Sequence[object]) -> dict[int, Any]:
    """Values by ``id(part)``, fetched where they are references; without those that are lost."""
    references = [part for part in parts if isinstance(part, ray.ObjectRef)]
    values: dict[int, Any] = {id(part): part for part in parts if not isinstance(part, ray.ObjectRef)}
    try:
        return values | dict(zip(map(id, references), ray.get(references), strict=True))
    except ray.exceptions.ObjectLostError:
        for reference in references:  # one by one, to tell which
            try:
                values[id(reference)] = ray.get(reference)
            except ray.exceptions.ObjectLostError:
                continue
        return values
