"""Processes that keep freed memory take none anew; those that read questions are such."""

import platform
import subprocess
import sys

import pytest

from cacovid.config import DataConfig, ModelConfig
from cacovid.data.reader import ItemReader

# Six tensors are together more than glibc keeps by itself, and each is a block that an older glibc can keep.
# Made three times to find out how much memory they take, then four times more.
SCRIPT = """
import sys, resource, torch
from cacovid.cpu_memory import keep_freed_memory
torch.set_num_threads(1)
if sys.argv[1] == "kept":
    assert keep_freed_memory()
faults = []
for _ in range(7):
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
    tensors = [torch.ones(16 << 20, dtype=torch.uint8) for _ in range(6)]
    del tensors
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults[3])
"""


def page_faults(memory: str) -> int:
    """Page faults of a process of its own: glibc learns from what was freed before."""
    run = subprocess.run([sys.executable, "-c", SCRIPT, memory], capture_output=True, text=True, check=True)
    return int(run.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_freed_memory_is_taken_without_page_faults() -> None:
    given_back, kept = page_faults("given back"), page_faults("kept")
    assert kept < given_back / 20, (kept, given_back)


def test_readers_of_questions_keep_freed_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[bool] = []
    monkeypatch.setattr("cacovid.data.reader.keep_freed_memory", lambda: kept.append(True))
    ItemReader.load(ModelConfig(device="cpu"), DataConfig())
    assert kept == [True]
