"""A run in a store: what counts there, who may write it, and what happens when the store or the writer fails."""

import json
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cacovid.config import TrainConfig
from cacovid.errors import UserError
from cluster.training.run_directory import RunDirectory
from cluster.training.stores.opening import StoredRun, open_stored, open_to_read
from cluster.training.stores.ownership import LostRun
from cluster.training.stores.parcel import Parcel
from cluster.training.stores.run_store import RunStore
from cluster.training.stores.uploads import Uploads
from tests.support.s3_server import BUCKET, SECRET, Line, S3Server, s3_server
from tests.support.store_writer import CONFIG, address_of, check, opened, save
from tests.support.waiting import wait_until


@pytest.fixture(params=["s3", "file", "local"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A store of each kind: an object store, a file system of pyarrow and one of fsspec."""
    if request.param == "s3":
        server: S3Server = request.getfixturevalue("s3")
        return server.uri(f"{tmp_path.name}/run")
    return f"{request.param}://{tmp_path}/store/run"


def run_of(stored: StoredRun) -> RunDirectory:
    assert stored.run is not None
    return stored.run


def publish(stored: StoredRun, *steps: int, keep: int = 2) -> None:
    for step in steps:
        save(run_of(stored), step, keep)
        stored.store.publish(Parcel.pack(run_of(stored), step), keep)


def counting(stored: StoredRun) -> list[int]:
    return [each.step for each in stored.store.counting()]


def test_another_machine_goes_on_from_the_newest_checkpoint(uri: str, tmp_path: Path) -> None:
    one = opened(uri, tmp_path / "one")
    publish(one, 1, 2, 3)
    assert counting(one) == [2, 3]
    other = opened(uri, tmp_path / "other", None)  # as --resume
    assert other.config == CONFIG
    assert run_of(other).newest_checkpoint() == run_of(other).checkpoint(3)
    check(run_of(other), 3)
    publish(other, 4)
    assert counting(other) == [3, 4]
    assert other.store.files.read("policy/policy.json") == b"4"
    assert other.store.files.read("metrics.jsonl") == run_of(other).metrics.read_bytes()
    assert all("clips" not in name and "cache" not in name for name in other.store.files.list())


def test_reading_takes_the_newest_checkpoint_and_not_the_run(uri: str, tmp_path: Path) -> None:
    one = opened(uri, tmp_path / "one")
    publish(one, 1, 2)
    store, config, run = open_to_read(address_of(uri), tmp_path / "reader")
    assert config == CONFIG
    check(run, 2)
    run.release()
    publish(one, 3)
    *_, run = open_to_read(address_of(uri), tmp_path / "reader")
    check(run, 3)
    run.refit.mkdir()
    (run.refit / "policy.json").write_text("fresh")
    store.publish_folder(run.refit)
    run.release()
    assert counting(one) == [2, 3]
    assert one.store.files.read("refit/policy.json") == b"fresh"
    publish(one, 4)
    other = opened(uri, tmp_path / "reader")  # what was read counts for nothing there
    check(run_of(other), 4)


def test_the_same_machine_uses_its_working_folder_again(s3: S3Server, tmp_path: Path) -> None:
    """And uploads what the last attempt could not; what another attempt has left behind there is not used."""
    uri = s3.uri(f"{tmp_path.name}/run")
    one = opened(uri, tmp_path / "work")
    (run_of(one).folder / "cache").mkdir()
    publish(one, 1)
    save(run_of(one), 2)  # not uploaded
    run_of(one).release()
    again = opened(uri, tmp_path / "work")
    assert counting(again) == [1, 2]
    save(run_of(again), 3)
    run_of(again).release()
    run_of(opened(uri, tmp_path / "other")).release()
    third = opened(uri, tmp_path / "work")
    assert run_of(third).newest_checkpoint() == run_of(third).checkpoint(2)
    assert (run_of(third).folder / "cache").exists()
    check(run_of(third), 2)


def test_what_is_not_whole_is_passed_over(s3: S3Server, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One file cut short, one changed, one gone, a marker that is no marker, none: the one before them is taken."""
    folder = f"{tmp_path.name}/run"
    one = opened(s3.uri(folder), tmp_path / "one")
    publish(one, *range(1, 7), keep=9)
    files = one.store.files
    places = {each.step: each.folder for each in one.store.counting()}
    files.write(f"{places[2]}/checkpoint/parts/part-0", b"short")
    part = files.read(f"{places[3]}/checkpoint/parts/part-0") or b""
    files.write(f"{places[3]}/checkpoint/parts/part-0", bytes(len(part)))
    files.delete(f"{places[4]}/checkpoint/parts/part-1")
    files.write(f"{places[5]}/COMPLETE", b"{")
    files.delete(f"{places[6]}/COMPLETE")
    other = opened(s3.uri(folder), tmp_path / "other")
    assert run_of(other).newest_checkpoint() == run_of(other).checkpoint(1)
    check(run_of(other), 1)
    said = [record.getMessage() for record in caplog.records if "passing over" in record.getMessage()]
    assert [f"step-00000{step}" in line for step, line in zip((6, 5, 4, 3, 2), said, strict=True)] == [True] * 5
    publish(other, 2, keep=9)
    assert counting(other) == [1, 2]
    assert SECRET not in caplog.text


def test_the_newer_of_two_attempts_writes(uri: str, tmp_path: Path) -> None:
    one = opened(uri, tmp_path / "one")
    publish(one, 1)
    two = opened(uri, tmp_path / "two")
    save(run_of(one), 2)
    with pytest.raises(LostRun, match=r"written by a newer attempt, number 2 \(host .+, pid \d+, since 20.+\)"):
        one.store.publish(Parcel.pack(run_of(one), 2), 2)
    publish(two, 2, 3)
    assert counting(two) == [2, 3]


def test_training_ends_when_a_newer_attempt_has_begun(s3: S3Server, tmp_path: Path) -> None:
    uri = s3.uri(f"{tmp_path.name}/run")
    one = opened(uri, tmp_path / "one")

    def train() -> None:
        with Uploads(run_of(one), one.store, keep=2) as uploads:
            for step in range(1, 1000):
                save(run_of(one), step)
                uploads.submit(step)
                if step == 2:
                    opened(uri, tmp_path / "two")

    with pytest.raises(LostRun, match="written by a newer attempt"):
        train()


def test_a_marker_written_after_losing_does_not_count(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The older attempt is replaced between its check and the write: what S3 cannot forbid."""
    uri = s3.uri(f"{tmp_path.name}/run")
    one = opened(uri, tmp_path / "one")
    publish(one, 1)
    two = opened(uri, tmp_path / "two")
    with monkeypatch.context() as patch:
        patch.setattr(one.store.owner, "check", lambda: None)
        publish(one, 2, keep=9)
    assert counting(two) == [1]
    third = opened(uri, tmp_path / "third")
    assert run_of(third).newest_checkpoint() == run_of(third).checkpoint(1)
    publish(third, 2)
    assert sum("step-000002" in name and "COMPLETE" in name for name in s3.files(f"{tmp_path.name}/run")) == 1


def test_of_attempts_that_begin_together_one_stays(s3: S3Server, tmp_path: Path) -> None:
    uri = s3.uri(f"{tmp_path.name}/run")
    ended: list[StoredRun | LostRun] = []

    def begin(number: int) -> None:
        try:
            ended.append(opened(uri, tmp_path / str(number)))
        except LostRun as error:
            ended.append(error)

    threads = [threading.Thread(target=begin, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ended) == 4
    newest = 0
    for stored in (each for each in ended if isinstance(each, StoredRun)):
        try:
            publish(stored, 1)
            newest += 1
        except LostRun:
            continue
    assert newest == 1


def test_fresh_sets_the_run_aside(uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one = opened(uri, tmp_path / "work")
    publish(one, 1, 2)
    run_of(one).release()
    told: list[str] = []
    other = TrainConfig(run={"seed": 1, "steps": 3})
    two = open_stored(address_of(uri), tmp_path / "work", other, fresh=True, tell=told.append)
    assert run_of(two).newest_checkpoint() is None
    assert counting(two) == []
    assert "/run.old" in told[0]
    assert SECRET not in told[0]
    with pytest.raises(LostRun):
        one.store.publish(Parcel(2, tmp_path), 2)
    publish(two, 1)
    aside = opened(uri.replace("/run", "/run.old", 1) if "?" in uri else f"{uri}.old", tmp_path / "aside", None)
    assert aside.config.run.seed == 0
    check(run_of(aside), 2)
    assert counting(two) == [1]


def test_another_configuration_and_other_things_are_left_alone(uri: str, tmp_path: Path) -> None:
    one = opened(uri, tmp_path / "one")
    publish(one, 1)
    with pytest.raises(UserError, match=r"run\.seed was 0 and is 1") as refused:
        opened(uri, tmp_path / "two", TrainConfig(run={"seed": 1}))
    assert SECRET not in str(refused.value)
    one.store.owner.check()  # it may still write
    one.store.files.delete("config.toml")
    with pytest.raises(UserError, match="is in use"):
        opened(uri, tmp_path / "two")
    with pytest.raises(UserError, match="holds something else"):
        opened(f"file://{tmp_path}/another", tmp_path / "one")


def test_a_finished_run_is_told_without_taking_it_over(s3: S3Server, tmp_path: Path) -> None:
    uri, config = s3.uri(f"{tmp_path.name}/run"), TrainConfig(run={"steps": 2})
    one = opened(uri, tmp_path / "one", config)
    publish(one, 1, 2)
    assert opened(uri, tmp_path / "two", config).run is None
    one.store.owner.check()
    more = opened(uri, tmp_path / "two", TrainConfig(run={"steps": 3}))
    assert run_of(more).newest_checkpoint() == run_of(more).checkpoint(2)


def test_the_best_checkpoint_is_kept_and_fetched(s3: S3Server, tmp_path: Path) -> None:
    uri = s3.uri(f"{tmp_path.name}/run")
    one = opened(uri, tmp_path / "one")
    run = run_of(one)
    save(run, 1, keep=1)
    run.best.write_text(json.dumps({"step": 1, "score": 0.5}))
    one.store.publish(Parcel.pack(run, 1), keep=1)
    for step in (2, 3):
        save(run, step, keep=9)
        one.store.publish(Parcel.pack(run, step), keep=1)
    assert counting(one) == [1, 3]
    other = run_of(opened(uri, tmp_path / "other"))
    assert sorted(path.name for path in other.checkpoints.glob("step-*")) == ["step-000001", "step-000003"]
    assert json.loads(other.best.read_text())["step"] == 1


def test_a_parcel_is_what_was_saved_whatever_training_does_since(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.folder.mkdir()
    save(run, 1, keep=1)
    parcel = Parcel.pack(run, 1)
    save(run, 2, keep=1)
    assert not run.checkpoint(1).exists()
    assert len(parcel.checkpoint_files()) == 3
    assert parcel.copies()["policy/policy.json"].read_text() == "1"
    assert parcel.copies()["metrics.jsonl"].read_text() == '{"step": 0}\n'


def test_the_newest_waiting_checkpoint_is_uploaded_and_none_under_way_is_lost(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = opened(s3.uri(f"{tmp_path.name}/run"), tmp_path / "work")
    run, gate = run_of(stored), threading.Event()
    plain, sent = stored.store.publish, []

    def publish_later(parcel: Parcel, keep: int) -> None:
        gate.wait()
        plain(parcel, keep)
        sent.append(parcel.step)

    monkeypatch.setattr(stored.store, "publish", publish_later)
    with Uploads(run, stored.store, keep=1) as uploads:
        for step in (1, 2, 3, 4):
            save(run, step, keep=1)
            uploads.submit(step)
            if step == 1:
                wait_until(lambda: uploads._sending is not None)
        assert not run.checkpoint(1).exists()
        gate.set()
    assert sent == [1, 4]
    assert counting(stored) == [4]
    assert not list((run.folder / ".outgoing").iterdir())


@pytest.mark.slow
def test_a_store_that_is_down_for_a_while_is_waited_for(
    s3: S3Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    line = Line(s3.port)
    stored = opened(s3.uri(f"{tmp_path.name}/run", port=line.port), tmp_path / "work")
    run = run_of(stored)
    with Uploads(run, stored.store, keep=2) as uploads:
        save(run, 1)
        line.cut()
        uploads.submit(1)
        wait_until(lambda: "trying again" in caplog.text)
        save(run, 2)
        uploads.submit(2)
        uploads.check()
        assert counting(opened_to_look(s3, tmp_path)) == []
        line.mend()
    assert counting(stored) == [1, 2]
    assert f"store s3://***:***@{BUCKET}/{tmp_path.name}/run" in caplog.text
    assert SECRET not in caplog.text
    line.close()


def opened_to_look(s3: S3Server, tmp_path: Path) -> StoredRun:
    """Without becoming an attempt."""
    return StoredRun(RunStore.open(address_of(s3.uri(f"{tmp_path.name}/run")), 10), CONFIG, None)


@pytest.mark.slow
def test_a_store_that_stays_down_ends_the_run_and_loses_nothing(s3: S3Server, tmp_path: Path) -> None:
    line = Line(s3.port)
    uri = s3.uri(f"{tmp_path.name}/run", port=line.port)
    config = TrainConfig(run={"store_timeout_s": 1})
    stored = opened(uri, tmp_path / "work", config)
    run = run_of(stored)

    def train() -> None:
        with Uploads(run, stored.store, keep=2) as uploads:
            save(run, 1)
            line.cut()
            uploads.submit(1)

    with pytest.raises(
        UserError, match=rf"not answered for 1 s .*{tmp_path}/work keeps the newest checkpoint"
    ) as ended:
        train()
    assert SECRET not in str(ended.value)
    run.release()
    line.mend()
    again = opened(uri, tmp_path / "work", config)
    assert counting(again) == [1]
    line.close()


@pytest.mark.slow
def test_killed_writers_leave_a_whole_checkpoint(s3: S3Server, tmp_path: Path) -> None:
    """``kill -9`` at random moments while checkpoints are uploaded; the next machine loads the newest with a marker."""
    folder, draw, newest = f"{tmp_path.name}/run", random.Random(0), 0
    for kill in range(20):
        writer = subprocess.Popen(
            [sys.executable, "-m", "tests.support.store_writer", s3.uri(folder), str(tmp_path / f"writer-{kill}")],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[3],
        )
        assert writer.stdout is not None
        assert writer.stdout.readline(), "the writer ended by itself"
        time.sleep(draw.uniform(0, 1))
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
        marked = [name for name in s3.files(f"{folder}/checkpoints") if name.endswith("COMPLETE")]
        steps = max((int(name[5:11]) for name in marked), default=0)
        reader = run_of(opened(s3.uri(folder), tmp_path / f"reader-{kill}"))
        found = reader.newest_checkpoint()
        assert (0 if found is None else int(found.name[5:])) == steps
        assert steps >= newest
        if steps:
            check(reader, steps)
        newest = steps
        reader.release()
    assert newest > 0


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("s3:/bucket/run", "write s3://"),
        ("s3:bucket/run", "write s3://"),
        ("s3://bucket", "names no folder"),
        ("s3://bucket/a/../run", "'..'"),
        ("S3://bucket/run", "no kind of store"),
        ("memory://run/one", "gone with this process"),
        ("https://host/run", "cannot be written"),
        ("nonsense://bucket/run", "nonsense"),
        ("s3://key:hidden1@bucket/run?token=hidden2", "Unexpected query parameter"),
        ("s3://[bucket/run", "cannot be read"),
    ],
)
def test_addresses_that_cannot_be_a_store(uri: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as refused:
        opened(uri, tmp_path / "work")
    assert "hidden" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_keys_and_bucket_that_are_wrong_are_told_at_once(s3: S3Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no bucket 'nothing'"):
        opened(s3.uri("run", bucket="nothing"), tmp_path / "work")
    with (
        s3_server(INITIAL_NO_AUTH_ACTION_COUNT="0") as strict,
        pytest.raises(UserError, match=r"says no .*INVALID_ACCESS_KEY_ID|says no .*ACCESS_DENIED") as refused,
    ):
        opened(strict.uri("run"), tmp_path / "work")
    assert SECRET not in str(refused.value)
    assert not (tmp_path / "work").exists()


def test_address_is_shown_without_keys() -> None:
    address = address_of("s3://AK:s%2Fecret@bucket/run/?region=eu&token=abc&endpoint_override=host:1")
    assert address.shown == "s3://***:***@bucket/run?endpoint_override=host:1&region=eu&token=***"
    assert address.beside("run.old") == "s3://***:***@bucket/run.old?endpoint_override=host:1&region=eu&token=***"
    assert address.hide("AK s/ecret abc s%2Fecret\nmore") == "*** *** *** ***"
    assert address.digest == address_of("s3://A:b@bucket/run?region=eu&token=d&endpoint_override=host:1").digest
    assert address_of("abfss://box:key@account.dfs.core.windows.net/a/run").shown.startswith("abfss://box:***@account")
    assert repr(address).count("ecret") == 0
