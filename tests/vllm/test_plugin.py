"""The plugin inside vLLM's own processes."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from serving.vllm.model import CompressedVideoLLM
from serving.vllm.names import NEXT, POSITIONS, REPLICA
from serving.vllm.prompt import _digest
from tests.support.processes import is_running
from tests.support.waiting import wait_until

pytestmark = pytest.mark.vllm

WITHOUT_RAY = (
    "import sys; sys.modules['ray'] = None; import serving.vllm.model, serving.vllm.draws, serving.vllm.plugin"
)


def test_it_needs_no_ray():
    subprocess.run([sys.executable, "-c", WITHOUT_RAY], check=True, timeout=300)


def test_a_vllm_that_would_number_positions_itself_is_refused():
    text = SimpleNamespace(rope_parameters={})
    model = SimpleNamespace(hf_config=SimpleNamespace(get_text_config=lambda: text), uses_mrope=False)
    with pytest.raises(ValueError, match="would number the positions"):
        CompressedVideoLLM(vllm_config=SimpleNamespace(model_config=model))


def positions_of(tokens: int, item: dict | None) -> tuple[torch.Tensor, int]:
    features = [SimpleNamespace(data=item)]
    return CompressedVideoLLM.get_mrope_input_positions(SimpleNamespace(), [0] * tokens, features)


def test_a_request_that_is_taken_up_again_goes_on_from_its_own_positions():
    prompt = torch.tensor([0, 1, 7, 9, 12]).expand(3, -1)
    item = {POSITIONS: SimpleNamespace(data=prompt), NEXT: SimpleNamespace(data=torch.tensor(13))}
    assert positions_of(5, item)[1] == 13 - 5
    again, delta = positions_of(7, item)
    assert again[0].tolist() == [0, 1, 7, 9, 12, 13, 14]
    assert delta == 13 - 5


def test_positions_that_vllm_kept_for_itself_are_missed():
    with pytest.raises(ValueError, match="mm_processor_cache_gb=0"):
        positions_of(5, None)


def test_prompts_share_their_cache_only_where_rows_places_and_positions_are_one():
    rows, places = torch.ones(2, 4), torch.tensor([2, 4])
    numbers = torch.tensor([0, 1, 7, 9, 12, 15, 16, 17])
    one = _digest(rows, places, numbers.expand(3, -1))
    assert one == _digest(rows.clone(), places, numbers[:-1].expand(3, -1)), "longer text behind it changes nothing"
    assert one != _digest(rows + 1, places, numbers.expand(3, -1))
    assert one != _digest(rows, places + 1, numbers.expand(3, -1))
    moved = torch.tensor([0, 1, 7, 9, 12, 14, 15, 16])
    assert one != _digest(rows, places, moved.expand(3, -1)), "the text behind begins elsewhere"


ORPHAN = """
import multiprocessing, os, sys, threading, time
from serving.vllm.plugin import register


def core():
    register()
    print(os.getpid(), threading.active_count(), flush=True)
    time.sleep(600)


if __name__ == "__main__":
    multiprocessing.current_process().name = sys.argv[1]
    multiprocessing.get_context("spawn").Process(target=core).start()
    time.sleep(600)
"""


def test_vllms_processes_end_when_the_one_that_started_them_is_killed(tmp_path):
    parent, core, _ = started(tmp_path, REPLICA)
    parent.kill()
    wait_until(lambda: not is_running(core))


def test_somebody_elses_vllm_is_left_as_it_is(tmp_path):
    ours, theirs = started(tmp_path, REPLICA), started(tmp_path, "MainProcess")
    assert ours[2] == theirs[2] + 1, "the thread that ends a process with its parent"
    for parent, core, _ in (ours, theirs):
        parent.kill()
        with suppress(ProcessLookupError):
            os.kill(core, signal.SIGKILL)


def started(tmp_path: Path, name: str) -> tuple[subprocess.Popen, int, int]:
    """A process of this name, its child that vLLM's plugins were called in, and the threads of that one."""
    (tmp_path / "parent.py").write_text(ORPHAN)
    command = [sys.executable, str(tmp_path / "parent.py"), name]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    core, threads = map(int, parent.stdout.readline().split())
    return parent, core, threads
