"""Writes checkpoints of a run into its store as training does, but as fast as it can, so that it can be killed.

``python -m tests.support.store_writer URI WORK``
"""

import hashlib
import json
import sys
from pathlib import Path

from cacovid.config import TrainConfig
from cluster.training.run_directory import RunDirectory
from cluster.training.stores.address import StoreAddress
from cluster.training.stores.opening import StoredRun, open_stored
from cluster.training.stores.uploads import Uploads

CONFIG = TrainConfig(run={"steps": 100_000, "store_timeout_s": 60})
FILES = 2


def address_of(uri: str) -> StoreAddress:
    address = StoreAddress.parse(uri)
    assert address is not None
    return address


def opened(uri: str, work: Path, config: TrainConfig | None = CONFIG, **options: bool) -> StoredRun:
    """The run of the tests, in a working folder."""
    return open_stored(address_of(uri), work, config, **options)


def content(step: int, number: int) -> bytes:
    """Of one file of a checkpoint: the larger, the longer its upload lasts."""
    return hashlib.sha256(f"{step} {number}".encode()).digest() * (2_000 * (number + 1))


def save(run: RunDirectory, step: int, keep: int = 2) -> None:
    """A checkpoint with its row and policy, as training saves them."""
    with run.metrics.open("a") as file:
        file.write(json.dumps({"step": step - 1}) + "\n")
    part = run.part(step)
    for number in range(FILES):
        path = part / "parts" / f"part-{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content(step, number))
    run.policy.mkdir(exist_ok=True)
    fresh = run.policy / "policy.part"
    fresh.write_text(str(step))
    fresh.replace(run.policy / "policy.json")
    run.commit_checkpoint(step, keep)


def check(run: RunDirectory, step: int) -> None:
    """The checkpoint is what :func:`save` saved, and the rows up to it are there."""
    for number in range(FILES):
        assert (run.checkpoint(step) / "parts" / f"part-{number}").read_bytes() == content(step, number)
    assert [row["step"] for row in run.rows()][:step] == list(range(step))


def main(uri: str, work: Path) -> None:
    stored = opened(uri, work)
    assert stored.run is not None
    newest = stored.run.newest_checkpoint()
    step = 0 if newest is None else int(newest.name.removeprefix("step-"))
    stored.run.cut_metrics(step)
    with Uploads(stored.run, stored.store, keep=2) as uploads:
        while True:
            step += 1
            save(stored.run, step)
            uploads.submit(step)
            print(step, flush=True)  # noqa: T201 - tells the test
            uploads.finish()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
