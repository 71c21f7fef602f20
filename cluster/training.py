"""``cacovid train``: runs CPO to its last step, checkpoints on the way, resumes exactly.

A first Ctrl-C ends the run after the current step with a checkpoint; a second one at once.
"""

import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import ray

from cacovid.config import TrainConfig
from cacovid.errors import UserError
from cacovid.policy.base import CompressionPolicy
from cluster.algorithm import CPO
from cluster.config import CPOConfig
from cluster.run_directory import RunDirectory
from cluster.run_log import RunLog, draw_curve

Report = Callable[[dict[str, float]], None]


@dataclass(frozen=True)
class TrainingOutcome:
    """How a run ended."""

    folder: Path
    finished_steps: int
    interrupted: bool
    last_row: dict[str, float]


class _Interrupt:
    """Turns the first SIGINT or SIGTERM into a flag; a second one raises KeyboardInterrupt."""

    def __init__(self) -> None:
        self.asked = False
        self._before = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)}
        for name in self._before:
            signal.signal(name, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def restore(self) -> None:
        for name, handler in self._before.items():
            signal.signal(name, handler)


def connect(address: str | None) -> bool:
    """Join the cluster at ``address`` ('auto': the one this job was submitted to), or start a local one.

    Returns whether this call connected; False where the process was connected already.

    Raises:
        UserError: There is no cluster at ``address``.
    """
    for name in ("ray.rllib", "ray.tune", "ray._common.deprecation", "DeepSpeed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if ray.is_initialized():
        return False
    # RLlib's actors take their config by reference, of which Ray's core warns on stderr; the group holds it.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if address and address != "auto":
        _check_reachable(address)
    local = {} if address else {"include_dashboard": False}
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **local)
    except (ConnectionError, ValueError) as error:
        raise UserError(f"no Ray cluster at {address!r}: {error}") from error
    return True


def _check_reachable(address: str) -> None:
    """Fail within seconds where Ray would wait for minutes."""
    host, _, port = address.rpartition("/")[2].rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, ValueError) as error:
        raise UserError(f"no Ray cluster at {address!r} ({error}): give host:port, ray://host:port or auto") from error


def check_resources(config: TrainConfig, elastic: bool) -> None:
    """See that the cluster can hold all actors and learners at once, instead of waiting for ever.

    Args:
        elastic: The cluster may grow (it was joined, not started here): nothing is checked.

    Raises:
        UserError: It cannot, with what is asked and what is there.
    """
    if elastic:
        return
    there = ray.cluster_resources()
    for kind, field in (("CPU", "cpus"), ("GPU", "gpus")):
        actors, learners = getattr(config.actors, field), getattr(config.learners, field)
        needed = config.actors.count * actors + config.learners.count * learners
        if needed > there.get(kind, 0):
            raise UserError(
                f"{config.actors.count} actors x {actors:g} and {config.learners.count} learners x {learners:g} "
                f"need {needed:g} {kind}s, this machine has {there.get(kind, 0):g}: lower actors.count or "
                f"actors.{field}, or join a cluster with --address"
            )


def train(
    config: TrainConfig, run: RunDirectory, report: Report, *, resume: bool = False, address: str | None = None
) -> TrainingOutcome:
    """Run ``config`` in ``run``; with ``resume`` continue from its newest checkpoint.

    Args:
        report: Called with each finished step's row.
        address: Ray cluster; None starts one on this machine.

    Raises:
        UserError: The run cannot start or go on for a reason that the user can mend.
    """
    connected = connect(address)
    interrupt = _Interrupt()
    algorithm = None
    try:
        check_resources(config, elastic=address is not None)
        algorithm = _build(config, run)
        checkpoint = run.newest_checkpoint() if resume else None
        if checkpoint is not None:
            algorithm.restore_from_path(str(checkpoint.absolute()))
        return _loop(algorithm, config, run, report, interrupt)
    finally:
        interrupt.restore()
        if algorithm is not None:
            algorithm.stop()
        if connected:
            ray.shutdown()


def _build(config: TrainConfig, run: RunDirectory) -> CPO:
    cache = Path(config.data.cache_dir) if config.data.cache_dir else run.cache
    built = CPOConfig.from_train_config(config).training(
        cache_dir=str(cache.absolute()), run_dir=str(run.folder.absolute())
    )
    try:
        algorithm: CPO = built.build_algo()
    except ray.exceptions.RayTaskError as error:
        raise error.cause if isinstance(error.cause, UserError) else error from error
    return algorithm


def _loop(
    algorithm: CPO, config: TrainConfig, run: RunDirectory, report: Report, interrupt: _Interrupt
) -> TrainingOutcome:
    row: dict[str, float] = {}
    restarts = 0
    with RunLog(run, algorithm.finished_steps) as log:
        while algorithm.finished_steps < config.run.steps and not interrupt.asked:
            started = time.perf_counter()
            try:
                result: dict[str, Any] = algorithm.train()
            except ray.exceptions.RayActorError as error:
                # Only learners get here: the pool handles rollout actors.
                restarts += 1
                _restart_learners(algorithm, config, run, log, restarts, error)
                continue
            row = {name: float(value) for name, value in result["cpo"].items()}
            row["seconds"] = time.perf_counter() - started
            row["combinations_per_second"] = row["combinations"] / row["seconds"]
            log.add(row)
            report(row)
            if algorithm.finished_steps % config.run.checkpoint_every == 0:
                _checkpoint(algorithm, config, run)
    done = algorithm.finished_steps
    if run.checkpoint(done) != run.newest_checkpoint() and done:
        _checkpoint(algorithm, config, run)
    draw_curve(run.rows(), run.curve)
    return TrainingOutcome(run.folder, done, interrupt.asked, row)


def _restart_learners(
    algorithm: CPO, config: TrainConfig, run: RunDirectory, log: RunLog, restarts: int, error: Exception
) -> None:
    """Bring a dead learner group back from the newest checkpoint."""
    checkpoint = run.newest_checkpoint()
    if restarts > config.learners.max_restarts or checkpoint is None:
        raise UserError(
            f"a learner died ({str(error).splitlines()[0]}); continue with --resume {run.folder}"
            if checkpoint
            else f"a learner died before the first checkpoint ({str(error).splitlines()[0]}): see the Ray logs"
        ) from error
    algorithm.restart_learners()
    algorithm.restore_from_path(str(checkpoint.absolute()))
    log.rewind(algorithm.finished_steps)


def _checkpoint(algorithm: CPO, config: TrainConfig, run: RunDirectory) -> None:
    step = algorithm.finished_steps
    algorithm.save_to_path(str(run.part(step).absolute()))
    run.commit_checkpoint(step, config.run.keep_checkpoints)
    save_policy(algorithm, run.policy)


def save_policy(algorithm: CPO, folder: Path) -> CompressionPolicy:
    """Write the newest policy with its metadata into ``folder``."""
    policy = algorithm.policy()
    policy.save_pretrained(folder)
    return policy
