"""``cacovid train``: runs CPO to its last step, checkpoints on the way, resumes exactly.

    build --restore newest checkpoint--> [ step -> row on disk -> (checkpoint) ] ... -> last checkpoint
                                            ^                 |
                                            '-- start over <--' a learner died: back to the newest checkpoint

A first Ctrl-C ends the run after the current step with a checkpoint; a second one at once. SIGTERM ends it within
``run.stop_grace_s``, see :mod:`cluster.training.interrupt`. With a store each checkpoint is uploaded beside the steps
that follow (:mod:`cluster.training.stores.uploads`), and the run ends when the last one is there, however it ends but
at once.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
from safetensors import SafetensorError

from actors.death import death_of
from actors.pool import CollectAbandoned, RolloutPool
from cacovid.config import TrainConfig
from cacovid.errors import UserError
from cluster.ray_cluster import check_resources, connected, place_for_dashboard
from cluster.training.attempt_log import AttemptLog
from cluster.training.best_checkpoint import POLICY, PREFIX, BestCheckpoint
from cluster.training.cpo import CPO, STATE
from cluster.training.gauges import Gauges
from cluster.training.interrupt import Interrupt
from cluster.training.price import Price
from cluster.training.run_directory import RunDirectory
from cluster.training.run_log import RunLog, draw_curve
from cluster.training.run_status import StatusFile, copy_name
from cluster.training.stores.run_store import RunStore
from cluster.training.stores.uploads import Uploads
from cluster.training.tracking.base import Trackers, check_tracking

logger = logging.getLogger(__name__)
Report = Callable[[dict[str, float]], None]


@dataclass(frozen=True)
class TrainingOutcome:
    """How a run ended."""

    folder: Path
    finished_steps: int
    interrupted: bool
    last_row: dict[str, float]
    price: Price | None = None  # None where nothing was evaluated


def train(
    config: TrainConfig,
    run: RunDirectory,
    report: Report,
    *,
    store: RunStore | None = None,
    address: str | None = None,
    tell: Callable[[str], None] | None = None,
) -> TrainingOutcome:
    """Run ``config`` in ``run``, from its newest checkpoint if there is one.

    Args:
        report: Called with each finished step's row.
        store: Where checkpoints are uploaded to, claimed by this process.
        address: Ray cluster; None starts one on this machine.
        tell: Called with how many actors there are whenever that changes, from another thread.

    Raises:
        UserError: The run cannot start or go on for a reason that the user can mend.
    """
    check_tracking(config.run)
    joined = address not in (None, "local")
    with (
        AttemptLog(run, config, None if store is None else store.attempt) as attempt,
        _status(config, run, attempt.number, address) as status,
        Trackers(run, config) as trackers,
        connected(address),
    ):
        if joined:
            status.copy_to(place_for_dashboard(copy_name))
        interrupt = Interrupt(config.run.stop_grace_s)  # after Ray, which takes SIGTERM for itself
        algorithm = None
        try:
            check_resources(config, elastic=joined)
            algorithm = CPO.of_run(config, run.folder)
            algorithm.pool.watch(partial(_tell, algorithm.pool, status, run, tell))
            checkpoint = run.newest_checkpoint()
            if checkpoint is not None:
                algorithm.restore_from_path(checkpoint)
            interrupt.begin(algorithm.pool.stop_collecting)
            with (
                Gauges(run.name, attempt.number, config.run.steps, algorithm.pool) as gauges,
                RunLog(run, algorithm.finished_steps, (gauges, attempt, trackers)) as log,
                Uploads(run, store, config.run.keep_checkpoints) as uploads,
            ):
                trackers.begin(run.rows())
                status.look()
                status.actors(algorithm.pool.state())
                row = _Steps(algorithm, config, run, log, status, report, interrupt, gauges, uploads).go()
                interrupted = interrupt.asked
            price = Price.of(run.rows(), config.evaluation)
            return TrainingOutcome(run.folder, algorithm.finished_steps, interrupted, row, price)
        finally:
            interrupt.restore()
            if algorithm is not None:
                algorithm.stop()


@contextmanager
def _status(config: TrainConfig, run: RunDirectory, attempt: int, address: str | None) -> Iterator[StatusFile]:
    """status.json of this attempt, which says in the end how that came."""
    with _writing(run):
        status = StatusFile(run, config, attempt, address)
    try:
        yield status
    except BaseException as error:
        with suppress(OSError):  # what is under way says more
            status.end(None if isinstance(error, KeyboardInterrupt) else error)
        raise
    with _writing(run):
        status.end()


def _tell(
    pool: RolloutPool, status: StatusFile, run: RunDirectory, tell: Callable[[str], None] | None, actors: str
) -> None:
    with _writing(run):
        status.actors(pool.state())
    if tell is not None:
        tell(actors)


@dataclass
class _Steps:
    """The steps of a run with their checkpoints, through deaths of its learners."""

    algorithm: CPO
    config: TrainConfig
    run: RunDirectory
    log: RunLog
    status: StatusFile
    report: Report
    interrupt: Interrupt
    gauges: Gauges
    uploads: Uploads
    restarts: int = 0  # of the learners

    def __post_init__(self) -> None:
        self.best = BestCheckpoint(self.run, self.config.evaluation.retentions)
        self._count_scored()

    def go(self) -> dict[str, float]:
        """To the last step, or until interrupted; the last row."""
        self.best.show()
        while True:
            try:
                return self._go_on()
            except ray.exceptions.RayActorError as death:  # of a learner: the pool handles rollout actors
                self._restart_learners(death)

    def _count_scored(self) -> None:
        """Combinations of the steps that count: those in the run's files."""
        self.scored = sum(row["combinations"] for row in self.run.rows())

    def _go_on(self) -> dict[str, float]:
        row: dict[str, float] = {}
        while self.algorithm.finished_steps < self.config.run.steps and not self.interrupt.asked:
            try:
                row = self._step()
            except CollectAbandoned:
                logger.warning(
                    "training step %d is given up: its rollouts took too long", self.algorithm.finished_steps
                )
                break
            self.report(row)
            self.uploads.check()
            steps = self.algorithm.finished_steps
            evaluated = self.best.score(row) is not None
            if steps % self.config.run.checkpoint_every == 0 or (evaluated and self.best.would_be(steps)):
                self._checkpoint()
        if self.algorithm.finished_steps:
            self._checkpoint()
        return row

    def _step(self) -> dict[str, float]:
        """One training step; its row is on disk when this returns."""
        started = time.perf_counter()
        result: dict[str, Any] = self.algorithm.train()
        row = {name: float(value) for name, value in result["cpo"].items()}
        row["seconds"] = time.perf_counter() - started
        row["combinations_per_second"] = row["combinations"] / row["seconds"]
        self.scored += row["combinations"]
        row["combinations_scored"] = self.scored
        row |= self._evaluate()
        with _writing(self.run):
            self.log.add(row)
            self.status.add(row, self.algorithm.pool.state())
        return row

    def _evaluate(self) -> dict[str, float]:
        """Figures of the newest policy on ``evaluation.data``, where it is time for them, and of the run's last one."""
        every, steps = self.config.evaluation.every, self.algorithm.finished_steps
        if not every or (steps % every and steps != self.config.run.steps):
            return {}
        started = time.perf_counter()
        try:
            figures = self.algorithm.evaluate()[STATE]
        except CollectAbandoned:
            logger.warning("the evaluation after step %d is given up: it took too long", steps)
            return {}
        measured = {f"{PREFIX}{name}": float(value) for name, value in figures.items()}
        return {**measured, f"{PREFIX}seconds": time.perf_counter() - started}

    def _restart_learners(self, death: Exception) -> None:
        """Bring a dead learner group back from the newest checkpoint, or from the start where there is none yet."""
        found = death_of(death)
        reason = found.text
        self.restarts += 1
        self.status.error(death)
        if self.restarts > self.config.learners.max_restarts:
            raise UserError(f"a learner died ({reason}); continue with --resume {self.run.address}") from death
        try:
            self.algorithm.go_back(self.run.newest_checkpoint())
        except ray.exceptions.RayActorError as another:
            self._restart_learners(another)
        else:
            self.gauges.learners_died(found.reason)
            logger.warning("a learner died (%s): going on after step %d", reason, self.algorithm.finished_steps)
            self.log.rewind(self.algorithm.finished_steps)
            self._count_scored()
            self.status.look()

    def _checkpoint(self) -> None:
        """Save all that a resumed run needs, the policy by itself and the curve so far, unless that is done already."""
        run, step = self.run, self.algorithm.finished_steps
        with _writing(run):
            if run.is_complete(step):
                return
            run.clear_parts()
            self.algorithm.save_to_path(run.part(step))
            # Before the checkpoint counts: a run with its last checkpoint is complete.
            policy = self.algorithm.get_policy()
            policy.save_pretrained(run.policy)
            best = self.best.find()
            if self.best.would_be(step):
                policy.save_pretrained(run.part(step) / POLICY)
                best = None  # no longer
            draw_curve(run.rows(), run.curve)
            keep = self.config.run.keep_checkpoints
            self.status.saved(run.commit_checkpoint(step, keep, best.step if best else None))
            self.best.show()
            self.log.flush()
            self.uploads.submit(step)


@contextmanager
def _writing(run: RunDirectory) -> Iterator[None]:
    """Raises UserError where the run's files cannot be written; the checkpoints before stay as they are."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UserError(
            f"cannot write into {run.folder} ({reason}): make room or mend it, then continue with --resume "
            f"{run.address}"
        ) from error
