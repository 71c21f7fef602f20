"""Processes that keep freed memory take none anew once they have scored a few times; rollout processes are such."""

import platform

import pytest

from benchmarks.kept_memory import Scoring, compare
from cacovid.config import DataConfig, ModelConfig
from cacovid.data.reader import ItemReader


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_scoring_again_takes_no_page_faults(capsys: pytest.CaptureFixture[str]) -> None:
    sides = compare(Scoring("embedded", 8, 32, 16, 5), rounds=1)
    assert sides["kept"].page_faults < sides["given back"].page_faults / 20
    assert "embedded: 32 combinations a question, 16 tokens each" in capsys.readouterr().out


def test_readers_of_questions_keep_freed_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[bool] = []
    monkeypatch.setattr("cacovid.data.reader.keep_freed_memory", lambda: kept.append(True))
    ItemReader.load(ModelConfig(device="cpu"), DataConfig())
    assert kept == [True]
