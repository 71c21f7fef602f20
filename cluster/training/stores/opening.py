"""A run that lives in a store: opened in a working folder of this machine, from what is newest.

The working folder is used again by the next attempt on this machine, above all its embedding cache. What it holds of
the run is kept only if no other attempt has begun since.
"""

import json
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from cacovid.atomic import writing
from cacovid.config import TrainConfig
from cacovid.errors import UserError
from cluster.training.run_directory import LOCK, RunDirectory
from cluster.training.same_run import check_same_run
from cluster.training.stores.address import StoreAddress
from cluster.training.stores.ownership import Attempt
from cluster.training.stores.parcel import Parcel, drop_all
from cluster.training.stores.run_store import RunStore, Stored

logger = logging.getLogger(__name__)
OWNER = ".store.json"  # whose working folder it is


@dataclass(frozen=True)
class StoredRun:
    """An open run with its store; ``run`` is None where all of its steps are done and nothing was opened."""

    store: RunStore
    config: TrainConfig
    run: RunDirectory | None


def default_folder(address: StoreAddress) -> Path:
    """The working folder of this machine for a run."""
    return platformdirs.user_cache_path("cacovid") / "runs" / f"{address.path_name}-{address.digest}"


def open_stored(
    address: StoreAddress,
    work: Path | None,
    config: TrainConfig | None,
    *,
    fresh: bool = False,
    tell: Callable[[str], None] = logger.info,
) -> StoredRun:
    """The run in the store, begun or continued.

    Args:
        work: Its working folder; None: :func:`default_folder`.
        config: What to run; None: what is there.
        fresh: Set the run there aside.
        tell: Called with what becomes of an earlier run.

    Raises:
        UserError: The store does not answer or says no; another run is there; the working folder is another's.
    """
    store = RunStore.open(address, (config or TrainConfig()).run.store_timeout_s)
    saved = store.saved_config()
    resolved = config or saved
    if resolved is None:
        raise UserError(f"{address.shown} holds no run to resume (no config.toml): start one with --out")
    store.files.timeout_s = resolved.run.store_timeout_s
    done = [each.step for each in store.counting()]
    if saved is not None and done and not fresh:
        check_same_run(saved, resolved, address.shown)
        if done[-1] == resolved.run.steps:
            return StoredRun(store, resolved, None)
    run = _hold(work or default_folder(address), address)
    try:
        _take_over(store, run, resolved, fresh and saved is not None, tell)
    except BaseException:
        run.release()
        raise
    return StoredRun(store, resolved, run)


def open_to_read(address: StoreAddress, work: Path | None) -> tuple[RunStore, TrainConfig, RunDirectory]:
    """The run in the store as it stands, with its newest checkpoint: whoever trains it goes on doing so.

    Args:
        work: As of :func:`open_stored`.

    Raises:
        UserError: The store does not answer or says no, there is no run, or the working folder is in use.
    """
    store = RunStore.open(address, TrainConfig().run.store_timeout_s)
    config = store.saved_config()
    if config is None:
        raise UserError(f"{address.shown} holds no run (no config.toml)")
    store.files.timeout_s = config.run.store_timeout_s
    run = _hold(work or default_folder(address), address)
    try:
        _refresh(store, run, store.owner.attempts())
    except BaseException:
        run.release()
        raise
    return store, config, run


def _refresh(store: RunStore, run: RunDirectory, attempts: Sequence[Attempt]) -> list[Stored]:
    """Keep of the working folder what is of the newest of ``attempts``, and fetch what is newer; see RunStore.fetch."""
    if not attempts or _owner(run).get("attempt") != attempts[-1].name:
        _forget(run)
    run.clear_parts()
    return store.fetch(run, newer_than=_steps(run))


def _hold(folder: Path, address: StoreAddress) -> RunDirectory:
    """Lock the working folder. Raises UserError where something else lies there."""
    run = RunDirectory(folder)
    run.address = address.shown
    try:
        folder.mkdir(parents=True, exist_ok=True)
        foreign = [path.name for path in folder.iterdir() if path.name != LOCK]
        if foreign and _owner(run).get("store") != address.shown:
            raise UserError(f"working folder {folder} holds something else ({foreign[0]}): choose another with --work")
        run.hold()
        if not foreign:
            _own(run, address.shown, None)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}: choose another with --work") from error
    return run


def _take_over(
    store: RunStore, run: RunDirectory, config: TrainConfig, fresh: bool, tell: Callable[[str], None]
) -> None:
    """Become the run's newest attempt, with the newest of what the store and this machine have of it."""
    before = store.owner.attempts()
    store.owner.claim()
    if fresh:
        tell(f"the earlier {store.shown} is now {store.set_aside()}")
        _forget(run)
    store.begin([] if fresh else _refresh(store, run, before))
    assert store.owner.own is not None
    _own(run, store.shown, store.owner.own.name)
    run.write_config(config)
    store.save_config(config)
    if _steps(run) > max((each.step for each in store.counting()), default=0):
        _catch_up(store, run, _steps(run), config.run.keep_checkpoints)


def _steps(run: RunDirectory) -> int:
    """Training steps of the newest checkpoint in the working folder."""
    newest = run.newest_checkpoint()
    return 0 if newest is None else int(newest.name.removeprefix("step-"))


def _catch_up(store: RunStore, run: RunDirectory, step: int, keep: int) -> None:
    """Upload a checkpoint that the last attempt could not."""
    logger.warning("uploading the checkpoint of step %d, which is not in %s yet", step, store.shown)
    drop_all(run)
    parcel = Parcel.pack(run, step)
    store.publish(parcel, keep)
    parcel.drop()


def _owner(run: RunDirectory) -> dict[str, object]:
    try:
        owner = json.loads((run.folder / OWNER).read_text())
    except FileNotFoundError:
        return {}
    return owner if isinstance(owner, dict) else {}


def _own(run: RunDirectory, shown: str, attempt: str | None) -> None:
    with writing(run.folder / OWNER) as part:
        part.write_text(json.dumps({"store": shown, "attempt": attempt}))


def _forget(run: RunDirectory) -> None:
    """Remove all that is of the run itself: the caches stay."""
    kept = (run.checkpoints, run.policy, run.best_policy, run.initial_policy, run.refit)
    for folder in (*kept, run.tensorboard, run.logs, run.tracking):
        shutil.rmtree(folder, ignore_errors=True)
    for file in (run.metrics, run.skipped, run.curve, run.status):
        file.unlink(missing_ok=True)
