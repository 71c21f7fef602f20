"""The comparison of decoders runs where torchcodec is missing, and says so."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.decoding import MADE, apart, real_clips, rows, torchcodec_decoder, write
from cacovid.data.video import read_frames


def test_made_and_real_files_are_timed(tmp_path: Path) -> None:
    path = write(MADE[0]._replace(seconds=2), tmp_path)
    (row,) = rows([path], None, rounds=1)
    assert row[:2] == ["h264-10min.mp4", "50"]
    assert len(real_clips()) == 4
    video = read_frames(path, 4)
    assert apart(video, video.frames) == "0.00, 0"
    assert apart(video, np.minimum(video.frames, 254) + 1).endswith(", 1")


def test_the_reason_is_told_where_torchcodec_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torchcodec.decoders", None)
    decoder, reason = torchcodec_decoder()
    assert decoder is None
    assert "torchcodec" in reason
