import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cacovid.errors import UserError
from cacovid.objective import ReplayBuffer
from cacovid.seeding import generator


def filled(count: int = 5, **bounds: int) -> ReplayBuffer[str]:
    buffer: ReplayBuffer[str] = ReplayBuffer(**{"max_items": 10, "max_bytes": 1000, **bounds})
    for number in range(count):
        buffer.add(f"q{number}", 100, f"handle {number}")
    return buffer


def test_the_oldest_leave_first_when_items_or_bytes_run_out():
    assert filled(5, max_items=3).ids() == ["q2", "q3", "q4"]
    assert filled(5, max_bytes=250).ids() == ["q3", "q4"]
    buffer = filled(3, max_bytes=300)
    assert [entry.value for entry in buffer.add("big", 200, "large")] == ["handle 0", "handle 1"]


def test_an_id_that_returns_replaces_its_entry_and_becomes_the_newest():
    buffer = filled(3)
    gone = buffer.add("q0", 50, "newer")
    assert [entry.value for entry in gone] == ["handle 0"]
    assert buffer.ids() == ["q1", "q2", "q0"]
    assert buffer.nbytes == 250


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 40)), max_size=40), st.integers(1, 6), st.integers(40, 90))
def test_bounds_always_hold_and_bytes_are_counted(additions, max_items, max_bytes):
    buffer: ReplayBuffer[None] = ReplayBuffer(max_items, max_bytes)
    sizes: dict[str, int] = {}
    for number, nbytes in additions:
        buffer.add(str(number), nbytes, None)
        sizes[str(number)] = nbytes
        assert len(buffer) <= max_items
        assert buffer.nbytes == sum(sizes[id] for id in buffer.ids()) <= max_bytes


def test_an_entry_over_the_bound_is_an_error():
    with pytest.raises(UserError, match="raise objective"):
        filled(0).add("huge", 2000, "x")


def test_draws_are_distinct_seeded_and_as_many_as_there_are():
    buffer = filled(5)
    first = [entry.id for entry in buffer.draw(3, generator("draw"))]
    assert first == [entry.id for entry in buffer.draw(3, generator("draw"))]
    assert len(set(first)) == 3
    assert {entry.id for entry in buffer.draw(9, generator("all"))} == set(buffer.ids())
    assert filled(0).draw(4, generator("none")) == []


def test_draws_hold_references_not_copies():
    value = torch.zeros(3)
    buffer: ReplayBuffer[torch.Tensor] = ReplayBuffer(2, 100)
    buffer.add("q", 12, value)
    assert buffer.draw(1, generator(0))[0].value is value


def test_state_goes_round_and_shrinks_to_smaller_bounds():
    state = filled(5).state_dict()
    same = filled(2)
    same.load_state_dict(state)
    assert same.state_dict() == state
    assert [e.id for e in same.draw(3, generator(1))] == [e.id for e in filled(5).draw(3, generator(1))]
    small: ReplayBuffer[str] = ReplayBuffer(2, 1000)
    small.load_state_dict(state)
    assert small.ids() == ["q3", "q4"]
