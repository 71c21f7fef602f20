"""The benchmark of many actors runs the real pool, schedule and replay in miniature."""

import subprocess
import sys
import threading

import pytest

from actors.task import RolloutTask
from benchmarks.crews import StandIns, WorkTimes
from benchmarks.made import GROUP, INPUT_BYTES, NO_WEIGHTS, made_answers, made_result, questions
from benchmarks.scale import main
from cacovid.rollout import Part


def figures(printed: str) -> dict[str, str]:
    """What the table says, by row."""
    cells = [[cell.strip() for cell in line.split("│")] for line in printed.splitlines() if line.count("│") == 3]
    return {name: value for _, name, value, _ in cells}


@pytest.mark.parametrize("parts", [1, 2])
def test_stand_ins_are_kept_at_work(parts: int, capsys: pytest.CaptureFixture[str]) -> None:
    main(actors=3, task_s=0.02, pause=1.0, items_per_actor=4, parts=parts, staleness=2, steps=3)
    printed = capsys.readouterr().out
    assert "3 stand-ins" in printed
    told = figures(printed)
    assert 20 < float(told["actors at work"].split()[0]) <= 100
    assert told["its memory"].endswith(f"over {24 * parts} tasks")
    assert float(told["through it by value"].split()[0]) * 1000 == pytest.approx(sum(map(len, made_answers(parts))), 50)


def test_work_counts_within_the_time_measured() -> None:
    times = WorkTimes()
    for begin, end in ((0.0, 2.0), (1.0, 5.0), (6.0, 7.0)):
        times.add(begin, end)
    assert times.within(1.0, 4.0) == pytest.approx(1.0 + 3.0)


def test_parts_together_are_the_item_and_one_of_them_brings_its_input() -> None:
    tasks = [RolloutTask(0, tuple(questions(1)), NO_WEIGHTS, None, Part(number, 3)) for number in range(3)]
    results = [made_result(task) for task in tasks]
    assert sum(len(result.rollouts[0].iterations[0].reward) for result in results) == GROUP
    assert [result.input_bytes for result in results] == [(INPUT_BYTES,), (), ()]


def test_a_stand_in_does_one_task_after_the_other() -> None:
    crew, ended = StandIns(0.01), threading.Semaphore(0)
    handle = crew.start(1)
    task = RolloutTask(0, tuple(questions(1)), NO_WEIGHTS, None)
    for _ in range(5):
        crew.call(handle, "sample_apart", lambda value, error: ended.release(), task, apart=1)
    assert all(ended.acquire(timeout=10) for _ in range(5))
    since, to = crew.times._times[::2], crew.times._times[1::2]
    assert all(begin >= end for begin, end in zip(since[1:], to, strict=False))


HOLDER = """
import threading
from benchmarks.memory import PeakMemory
with PeakMemory() as peak:
    held = bytearray(b"1" * 60_000_000)
    threading.Event().wait(0.2)
    del held
print(peak.nbytes)
"""


def test_peak_memory_is_what_the_block_held_at_most() -> None:
    """In a process of its own: this one's other threads may let memory go meanwhile."""
    printed = subprocess.run([sys.executable, "-c", HOLDER], capture_output=True, text=True, check=True).stdout
    assert 50e6 < int(printed) < 200e6
