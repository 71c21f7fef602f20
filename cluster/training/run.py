"""``cacovid train``: runs CPO to its last step, checkpoints on the way, resumes exactly.

A first Ctrl-C ends the run after the current step with a checkpoint; a second one at once.
"""

import logging
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import ray
from safetensors import SafetensorError

from cacovid.config import TrainConfig
from cacovid.errors import UserError
from cluster.ray_cluster import check_resources, connected
from cluster.training.cpo import CPO
from cluster.training.cpo_config import CPOConfig
from cluster.training.run_directory import RunDirectory
from cluster.training.run_log import RunLog, draw_curve

logger = logging.getLogger(__name__)
Report = Callable[[dict[str, float]], None]


@dataclass(frozen=True)
class TrainingOutcome:
    """How a run ended."""

    folder: Path
    finished_steps: int
    interrupted: bool
    last_row: dict[str, float]


class _Interrupt:
    """Turns the first SIGINT or SIGTERM within :attr:`gentle` into a flag; any other one raises KeyboardInterrupt."""

    def __init__(self) -> None:
        self.asked = False
        self.gentle = False  # there is a step to end and something to save
        self._before = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)}
        for name in self._before:
            signal.signal(name, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked or not self.gentle:
            raise KeyboardInterrupt
        self.asked = True
        logger.warning("ending after this training step, with a checkpoint; a second Ctrl-C ends at once")

    def restore(self) -> None:
        for name, handler in self._before.items():
            signal.signal(name, handler)


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
    with connected(address):
        interrupt = _Interrupt()  # after Ray, which takes SIGTERM for itself
        algorithm = None
        try:
            check_resources(config, elastic=address not in (None, "local"))
            algorithm = _build(config, run)
            checkpoint = run.newest_checkpoint() if resume else None
            if checkpoint is not None:
                algorithm.restore_from_path(checkpoint)
            interrupt.gentle = True
            return _loop(algorithm, config, run, report, interrupt)
        finally:
            interrupt.restore()
            if algorithm is not None:
                algorithm.stop()


def _build(config: TrainConfig, run: RunDirectory) -> CPO:
    built = CPOConfig.from_train_config(config).training(run_dir=str(run.folder.absolute()))
    algorithm: CPO = built.build_algo()
    return algorithm


def _loop(
    algorithm: CPO, config: TrainConfig, run: RunDirectory, report: Report, interrupt: _Interrupt
) -> TrainingOutcome:
    row: dict[str, float] = {}
    restarts, death = 0, None
    with RunLog(run, algorithm.finished_steps) as log:
        while True:
            try:
                if death is not None:
                    restarts += 1
                    _restart_learners(algorithm, config, run, log, restarts, death)
                    death = None
                while algorithm.finished_steps < config.run.steps and not interrupt.asked:
                    row = _step(algorithm, run, log)
                    report(row)
                    if algorithm.finished_steps % config.run.checkpoint_every == 0:
                        _checkpoint(algorithm, config, run)
                if algorithm.finished_steps:
                    _checkpoint(algorithm, config, run)
                break
            except ray.exceptions.RayActorError as error:
                death = error  # of a learner: the pool handles rollout actors
    return TrainingOutcome(run.folder, algorithm.finished_steps, interrupt.asked, row)


def _step(algorithm: CPO, run: RunDirectory, log: RunLog) -> dict[str, float]:
    """One training step; its row is on disk when this returns."""
    started = time.perf_counter()
    result: dict[str, Any] = algorithm.train()
    row = {name: float(value) for name, value in result["cpo"].items()}
    row["seconds"] = time.perf_counter() - started
    row["combinations_per_second"] = row["combinations"] / row["seconds"]
    with _writing(run):
        log.add(row)
    return row


def _restart_learners(
    algorithm: CPO, config: TrainConfig, run: RunDirectory, log: RunLog, restarts: int, error: Exception
) -> None:
    """Bring a dead learner group back from the newest checkpoint, or from the start where there is none yet."""
    reason = str(error).splitlines()[0]
    if restarts > config.learners.max_restarts:
        raise UserError(f"a learner died ({reason}); continue with --resume {run.folder}") from error
    algorithm.start_over()
    checkpoint = run.newest_checkpoint()
    if checkpoint is not None:
        algorithm.restore_from_path(checkpoint)
    logger.warning("a learner died (%s): going on after step %d", reason, algorithm.finished_steps)
    log.rewind(algorithm.finished_steps)


def _checkpoint(algorithm: CPO, config: TrainConfig, run: RunDirectory) -> None:
    """Save all that a resumed run needs, the policy by itself and the curve so far, unless that is done already."""
    step = algorithm.finished_steps
    with _writing(run):
        if not run.is_complete(step):
            run.clear_parts()
            algorithm.save_to_path(run.part(step))
            # Before the checkpoint counts: a run with its last checkpoint is complete.
            algorithm.get_policy().save_pretrained(run.policy)
            draw_curve(run.rows(), run.curve)
            run.commit_checkpoint(step, config.run.keep_checkpoints)


@contextmanager
def _writing(run: RunDirectory) -> Iterator[None]:
    """Raises UserError where the run's files cannot be written; the checkpoints before stay as they are."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UserError(
            f"cannot write into {run.folder} ({reason}): make room or mend it, then continue with --resume {run.folder}"
        ) from error
