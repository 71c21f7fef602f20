import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cacovid.errors import UserError
from cacovid.objective.replay import ReplayBuffer
from cacovid.seeding import generator


def filled(count: int = 5, **bounds: int) -> ReplayBuffer[str]:
    buffer: ReplayBuffer[str] = ReplayBuffer(**{"max_items": 10, "max_bytes": 1000, **bounds})
    for number in range(count):
        buffer.add(f"q{number}", 100, f"handle {number}")
    return buffer


def test_the_oldest_leave_first_when_items_or_bytes_run_out():
    assert filled(5, max_items=3).values() == ["handle 2", "handle 3", "handle 4"]
    assert filled(5, max_bytes=250).values() == ["handle 3", "handle 4"]
    buffer = filled(3, max_bytes=300)
    buffer.add("big", 200, "large")
    assert buffer.values() == ["handle 2", "large"]


def test_an_id_that_returns_replaces_its_entry_and_becomes_the_newest():
    buffer = filled(3)
    buffer.add("q0", 50, "newer")
    assert buffer.values() == ["handle 1", "handle 2", "newer"]
    assert buffer.nbytes == 250


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 40)), max_size=40), st.integers(1, 6), st.integers(40, 90))
def test_bounds_always_hold_and_bytes_are_counted(additions, max_items, max_bytes):
    buffer: ReplayBuffer[str] = ReplayBuffer(max_items, max_bytes)
    sizes: dict[str, int] = {}
    for number, nbytes in additions:
        buffer.add(str(number), nbytes, str(number))
        sizes[str(number)] = nbytes
        assert len(buffer) <= max_items
        assert buffer.nbytes == sum(sizes[id] for id in buffer.values()) <= max_bytes


def test_an_entry_over_the_bound_is_an_error():
    with pytest.raises(UserError, match="raise objective"):
        filled(0).add("huge", 2000, "x")


def test_draws_are_distinct_seeded_and_as_many_as_there_are():
    buffer = filled(5)
    first = buffer.draw(3, generator("draw"))
    assert first == buffer.draw(3, generator("draw"))
    assert len(set(first)) == 3
    assert set(buffer.draw(9, generator("all"))) == set(buffer.values())
    assert filled(0).draw(4, generator("none")) == []


def test_draws_hold_references_not_copies():
    value = torch.zeros(3)
    buffer: ReplayBuffer[torch.Tensor] = ReplayBuffer(2, 100)
    buffer.add("q", 12, value)
    assert buffer.draw(1, generator(0))[0] is value


def test_a_cleared_buffer_has_room_for_all_again():
    buffer = filled(5, max_bytes=500)
    buffer.clear()
    assert (len(buffer), buffer.nbytes) == (0, 0)
    buffer.add("q", 500, "whole")
    assert buffer.values() == ["whole"]
