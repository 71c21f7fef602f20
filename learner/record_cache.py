"""Records that a learner has fetched, kept for the next draws of the replay buffer.

A question is drawn from the replay buffer many times. Fetching and unpacking its record takes about
as long as half an optimiser step on the embedded benchmark, so a learner keeps what it has unpacked.
"""

from collections import OrderedDict
from collections.abc import Sequence

import ray

from cacovid.records import RolloutRecord


class RecordCache:
    """Least recently used records by object reference, bounded in bytes."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.nbytes = 0
        self._records: OrderedDict[str, RolloutRecord] = OrderedDict()

    def __len__(self) -> int:
        return len(self._records)

    def resolve(self, handles: Sequence[RolloutRecord | ray.ObjectRef]) -> list[RolloutRecord]:
        """The records of ``handles`` in order; what is not held yet is fetched at once."""
        missing = {h.hex(): h for h in handles if isinstance(h, ray.ObjectRef) and h.hex() not in self._records}
        fetched = dict(zip(missing, ray.get(list(missing.values())), strict=True)) if missing else {}
        records = [
            (fetched.get(h.hex()) or self._records[h.hex()]) if isinstance(h, ray.ObjectRef) else h for h in handles
        ]
        for handle, record in zip(handles, records, strict=True):
            if isinstance(handle, ray.ObjectRef):
                self._keep(handle.hex(), record)
        return records

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
