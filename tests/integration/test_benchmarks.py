"""The benchmarks of the cluster's data plane, in miniature on a real one."""

import pytest

from benchmarks import data_path, scale


def test_real_actors_are_kept_at_work(cluster: None, capsys: pytest.CaptureFixture[str]) -> None:
    scale.main(
        actors=2, real=True, task_s=0.05, pause=1.0, items_per_actor=4, parts=2, staleness=2, steps=2, weights_mb=1
    )
    printed = capsys.readouterr().out
    assert "2 real actors" in printed
    shares = [float(line.split("│")[2].split()[0]) for line in printed.splitlines() if "actors at work" in line]
    assert 20 < shares[0] <= 100
    assert "1 MB to the object store" in printed


def test_inputs_pass_the_former_driver_and_not_the_present_one(
    cluster: None, capsys: pytest.CaptureFixture[str]
) -> None:
    data_path.main(actors=2, items=2, steps=2, rounds=2, width=8)
    printed = capsys.readouterr().out
    bytes_by_value = [
        float(line.split("│")[2].replace(",", ""))
        for line in printed.split("the driver\n")[-1].splitlines()
        if line.startswith("│ before:") or line.startswith("│ now:")
    ]
    former, now = bytes_by_value
    assert former > 100
    assert now < 64
