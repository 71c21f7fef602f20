"""``cacovid evaluate``: the same results whoever measures, whoever dies, and whenever it is stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from actors.measurer import measure_everywhere
from cacovid.config import ActorsConfig, ModelConfig, TrainConfig
from cacovid.data.table import read_questions
from cacovid.errors import UserError
from cacovid.evaluation.measurer import Measurer, Setup
from cacovid.evaluation.measuring import plan
from cacovid.evaluation.rows import PARTS
from cacovid.models.loading import load_video_llm
from cacovid.policy.build import policy_for
from cluster.commands.evaluate import evaluate

METHODS = "policy,untrained,divprune,flashvid,prunevid,text-cosine,uniform,random,oracle"


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that was never trained, for the embedded model."""
    folder = tmp_path_factory.mktemp("policy")
    policy_for(load_video_llm(ModelConfig()), TrainConfig()).save_pretrained(folder)
    return folder


def results(policy: Path, table: Path, out: Path, **options: object) -> bytes:
    evaluate(
        policy=[str(policy)],
        data=str(table),
        out=out,
        methods=METHODS,
        retention="0.25,0.05",
        controls="swapped",
        **options,  # type: ignore[arg-type]
    )
    return (out / "results.json").read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_any_number_of_actors_gives_the_same_results_to_the_byte(
    cluster: None, policy: Path, table: Path, tmp_path: Path
) -> None:
    here = results(policy, table, tmp_path / "0")
    assert json.loads(here)["questions"] == 24
    assert results(policy, table, tmp_path / "1", actors=1) == here
    assert results(policy, table, tmp_path / "2", actors=2) == here
    assert results(policy, table, tmp_path / "8", actors=8) == here
    assert results(policy, table, tmp_path / "elastic", actors=0, max_actors=2) == here
    columns = ["question", "method", "retention", "reward", "answer", "swapped_reward", "mean_share", "awareness"]
    rows = [pq.read_table(tmp_path / name / "rows.parquet", columns=columns) for name in ("0", "2")]
    assert rows[0].equals(rows[1])


def setup(table: Path, tmp_path: Path, model: ModelConfig) -> Setup:
    data = TrainConfig().data
    return Setup(model, data, tmp_path / "cache", ("uniform", "random"), {}, None, (0.1,), 0)


@pytest.mark.slow
def test_a_dead_actor_loses_nothing_and_bad_items_are_set_aside(cluster: None, table: Path, tmp_path: Path) -> None:
    items = read_questions(table)
    broken = tmp_path / "broken.mp4"
    broken.write_text("no video")
    items[5] = type(items[5])(**{**vars(items[5]), "video": str(broken)})
    asked = plan(items)
    measurer = Measurer(setup(table, tmp_path / "here", ModelConfig()))
    expected = {each.item.id: measurer.measure(each) for each in asked}
    found = {}
    for number, outcome in enumerate(
        measure_everywhere(setup(table, tmp_path / "there", ModelConfig()), asked, ActorsConfig(count=2), 300.0)
    ):
        found[outcome.item.id] = outcome
        if number == 0:
            below = psutil.Process().children(recursive=True)
            next(process for process in below if process.name().startswith("ray::MeasuringActor")).kill()
    assert found.keys() == expected.keys()
    for id, outcome in expected.items():
        assert found[id].reason == outcome.reason
        assert [(row.method, row.answer) for row in found[id].rows] == [
            (row.method, row.answer) for row in outcome.rows
        ]
    assert sum(each.reason is not None for each in found.values()) == 1


@pytest.mark.slow
def test_a_model_that_no_actor_can_load_is_the_users_mistake(cluster: None, table: Path, tmp_path: Path) -> None:
    wrong = setup(table, tmp_path, ModelConfig(path=str(tmp_path)))
    with pytest.raises(UserError, match="can load its replica"):
        list(measure_everywhere(wrong, plan(read_questions(table)), ActorsConfig(count=1), 300.0))


@pytest.mark.slow
def test_after_kill_9_the_same_command_goes_on_to_the_same_results(policy: Path, table: Path, tmp_path: Path) -> None:
    whole = results(policy, table, tmp_path / "whole")
    out = tmp_path / "killed"
    options = {
        "--policy": str(policy),
        "--data": str(table),
        "--methods": METHODS,
        "--retention": "0.25,0.05",
        "--controls": "swapped",
        "--out": str(out),
    }
    command = [
        sys.executable,
        "-m",
        "cluster.commands.main",
        "evaluate",
        *(word for pair in options.items() for word in pair),
    ]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, start_new_session=True, cwd=Path(__file__).parents[2]
    )
    started = time.monotonic()
    while not list((out / PARTS).glob("*.parquet")):
        assert process.poll() is None, "it was over before it could be killed"
        assert time.monotonic() - started < 200
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (out / "results.json").exists()
    kept = {id for part in (out / PARTS).glob("*.parquet") for id in pq.read_table(part).column("question").to_pylist()}
    assert 0 < len(kept) < 24
    again = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert f"going on: {len(kept)} of 24" in again.stdout
    assert (out / "results.json").read_bytes() == whole
    assert not (out / PARTS).exists()
