"""Bars on a terminal, lines elsewhere."""

import io

import pytest
from rich.console import Console

from cluster.commands.progress import Progress
from cluster.commands.train import _show


def test_one_line_of_eighty_columns_holds_all_figures() -> None:
    progress = Progress()
    row = {"step": 1233.0, "top_k_reward": 0.9375, "loss": 2.12345, "combinations_per_second": 1274.3}
    _show(progress, 2000, row)
    screen = io.StringIO()
    Console(file=screen, width=80).print(progress._bars)
    (line,) = screen.getvalue().splitlines()
    assert "1234/2000 reward 0.938  loss 2.123  1274 combinations/s left" in line
    assert "…" not in line


def test_lines_tell_the_stages_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress() as progress:
        progress.wait("starting")
        for done in range(1, 101):
            progress.show("step", done, 100, "loss 1")
        progress.show("saving", 1, 1)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "starting"
    assert lines[1].startswith("step 5/100  loss 1  left ")
    assert lines[20] == "step 100/100  loss 1  left 0 s"
    assert lines[21].startswith("saving 1/1")
    assert len(lines) == 22
