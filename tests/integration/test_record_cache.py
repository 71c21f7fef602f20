"""A learner fetches a replayed record once, within its bound."""

import pytest
import ray

from cacovid.records import HeldRecord, RolloutRecord
from learner.record_cache import RecordCache
from tests.support.made_records import make_record


@pytest.fixture
def records() -> list[RolloutRecord]:
    return [make_record(seed) for seed in range(4)]


def test_records_come_in_order_and_are_fetched_once(
    cluster: None, records: list[RolloutRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    refs = [HeldRecord.of(record, ray.put) for record in records]
    fetched: list[int] = []
    get = ray.get
    monkeypatch.setattr(ray, "get", lambda wanted: fetched.append(len(wanted)) or get(wanted))
    cache = RecordCache(10**9)
    first = cache.fetch([refs[2], refs[0], refs[2]])
    assert [record.item_id for record in first] == ["item-2", "item-0", "item-2"]
    second = cache.fetch([refs[0], refs[1]])
    assert [record.item_id for record in second] == ["item-0", "item-1"]
    assert second[0] is first[1]
    assert fetched == [4, 2]  # two parts each


def test_bound_drops_the_least_recently_used(cluster: None, records: list[RolloutRecord]) -> None:
    refs = [HeldRecord.of(record, ray.put) for record in records]
    size = records[0].nbytes()
    cache = RecordCache(2 * size)
    cache.fetch([refs[0], refs[1]])
    cache.fetch([refs[0]])
    kept = cache.fetch([refs[0]])[0]
    cache.fetch([refs[2]])
    assert len(cache) == 2
    assert cache.nbytes == 2 * size
    assert cache.fetch([refs[0]])[0] is kept


def test_no_room_still_resolves(cluster: None, records: list[RolloutRecord]) -> None:
    cache = RecordCache(0)
    assert cache.fetch([HeldRecord.of(records[3], ray.put), HeldRecord.of(records[1])])[0].item_id == "item-3"
    assert len(cache) == 0


def test_record_dropped_while_others_come_in_is_still_returned(cluster: None, records: list[RolloutRecord]) -> None:
    refs = [HeldRecord.of(record, ray.put) for record in records]
    cache = RecordCache(records[0].nbytes())
    cache.fetch([refs[0]])
    assert [record.item_id for record in cache.fetch([refs[1], refs[0]])] == ["item-1", "item-0"]


def test_input_that_is_lost_is_told_and_the_others_are_there(
    cluster: None, records: list[RolloutRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    refs = [HeldRecord.of(record, ray.put) for record in records]
    get = ray.get

    def get_all_but_one(wanted: object) -> object:
        if wanted is refs[1].seen or (isinstance(wanted, list) and refs[1].seen in wanted):
            raise ray.exceptions.ObjectLostError(refs[1].seen.hex(), None, "")
        return get(wanted)

    monkeypatch.setattr(ray, "get", get_all_but_one)
    found = RecordCache(10**9).fetch(refs)
    assert [record and record.item_id for record in found] == ["item-0", None, "item-2", "item-3"]
