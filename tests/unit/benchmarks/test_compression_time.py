"""The benchmark of compression times, in miniature."""

from typer.testing import CliRunner

from benchmarks.compression_time import OURS, app, measure
from cacovid.methods.registry import BASELINES
from cacovid.records import TokenGrid


def test_every_method_is_timed_beside_ours() -> None:
    times = measure(TokenGrid(8, 4, 4), 64, 0.3, 2, "cpu")
    assert next(iter(times)) == OURS
    assert set(times) == {OURS, *BASELINES}
    assert all(len(taken) == 2 and min(taken) > 0 for taken in times.values())


def test_the_command_prints_a_table_for_each_width() -> None:
    shown = CliRunner().invoke(
        app, ["--width", "64", "--width", "96", "--frames", "4", "--side", "4", "--rounds", "1", "--retention", "0.3"]
    )
    assert shown.exit_code == 0, shown.output
    assert "4*4*4 tokens of width 64, 30% kept, on cpu" in shown.output
    assert "4*4*4 tokens of width 96" in shown.output
