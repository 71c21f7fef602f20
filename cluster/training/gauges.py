"""A run's figures on Ray's metrics port, where Prometheus fetches them as ``ray_cacovid_...`` with the label ``run``.

    newest step's row, state of the pool --each second--> ray.util.metrics --> the node's metrics agent --> Prometheus

All gauges are set again each second: Ray forgets those that are not within half a minute, and a step may last longer.

See docs/observability.md for the table, cluster/deploy/grafana for dashboards.
"""

import logging
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from ray.util.client import ray as client
from ray.util.metrics import Counter, Gauge

from actors.death import Reason
from actors.pool import RolloutPool
from actors.pool_state import PoolState

logger = logging.getLogger(__name__)
REFRESH_SECONDS = 1.0
STEP_GAUGES = {  # by field of a step's row
    "epoch": ("epoch", "passes through the questions"),
    "reward": ("reward", "mean reward of the step's combinations"),
    "top_k_reward": ("top_k_reward", "mean reward of the policy's own top k"),
    "likelihood": ("likelihood", "mean likelihood of the answers"),
    "loss": ("loss", "mean loss of the step's updates"),
    "rewards_differ": ("informative_share", "share of the step's questions whose rewards differ"),
    "staleness": ("staleness_steps", "steps that the rollouts' policy was behind"),
    "seconds": ("step_seconds", "the step as a whole"),
    "wait_seconds": ("wait_seconds", "the driver waited for rollouts"),
    "learn_seconds": ("learner_seconds", "updates and publishing"),
    "publish_seconds": ("publish_seconds", "thereof publishing the weights"),
    "combinations_per_second": ("combinations_per_second", "scored combinations per second of the step"),
    "published_bytes": ("published_bytes", "weights in the object store"),
    "replay_bytes": ("replay_bytes", "held by the replay buffer"),
    "replay_items": ("replay_items", "rollouts in the replay buffer"),
    "skipped": ("set_aside_items", "items set aside so far"),
}
STEP_COUNTERS = {
    "combinations": ("combinations_total", "scored combinations"),
    "questions": ("questions_total", "questions rolled out"),
    "actor_seconds": ("rollout_seconds_total", "actors' time on the tasks collected"),
    "encode_seconds": ("encode_seconds_total", "thereof decoding and encoding"),
}


class Gauges:
    """Shows one run's figures inside the block."""

    def __init__(self, run: str, attempt: int, steps: int, pool: RolloutPool) -> None:
        self._run = run
        self._number = attempt
        self._steps = steps
        self._pool = pool
        self._row: Mapping[str, float] = {}  # of the newest step
        self._counted: dict[tuple[str, str], float] = {}  # of counters that the pool keeps, as last shown
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._refresh, name="gauges", daemon=True)
        self._attempt = self._gauge("attempt", "starts of this run, this one included")
        self._planned = self._gauge("steps_planned", "training steps that the run is to have")
        self._step_gauges = {field: self._gauge(*known) for field, known in STEP_GAUGES.items()}
        self._step_counters = {field: self._counter(*known) for field, known in STEP_COUNTERS.items()}
        self._step = self._gauge("step", "training steps finished")
        self._actors = self._gauge("actors", "rollout actors", "state")
        self._tasks = self._gauge("tasks", "tasks not yet answered", "state")
        self._gpu = self._gauge("gpu_memory_bytes", "GPU memory that a process holds", "process")
        self._requeued = self._counter("requeued_tasks_total", "tasks given out again")
        self._ready_seconds = self._counter("actor_ready_seconds_total", "time that actors had their replica")
        self._busy_seconds = self._counter("actor_busy_seconds_total", "thereof with a task")
        self._deaths = self._counter("actor_deaths_total", "deaths of rollout actors", "reason")
        self._restarts = self._counter("learner_restarts_total", "restarts of the learners after a death", "reason")

    def _gauge(self, name: str, meaning: str, *tags: str) -> Gauge:
        return Gauge(f"cacovid_{name}", meaning, ("run", *tags)).set_default_tags({"run": self._run})

    def _counter(self, name: str, meaning: str, *tags: str) -> Counter:
        return Counter(f"cacovid_{name}", meaning, ("run", *tags)).set_default_tags({"run": self._run})

    def add(self, row: Mapping[str, float]) -> None:
        """One training step's figures."""
        self._row = row
        for field, counter in self._step_counters.items():
            _increase(counter, row[field])

    def learners_died(self, reason: Reason) -> None:
        """The learners are started anew."""
        self._restarts.inc(1, {"reason": reason})

    def _refresh(self) -> None:
        while not self._ended.wait(REFRESH_SECONDS):
            self._show()

    def _show(self) -> None:
        self._attempt.set(self._number)
        self._planned.set(self._steps)
        self._show_step(self._row)
        self._show_pool(self._pool.state())

    def _show_step(self, row: Mapping[str, float]) -> None:
        if not row:
            return
        self._step.set(int(row["step"]) + 1)
        for field, gauge in self._step_gauges.items():
            gauge.set(row[field])
        if "learner_gpu_bytes" in row:
            self._gpu.set(row["learner_gpu_bytes"], {"process": "learner"})

    def _show_pool(self, state: PoolState) -> None:
        for name in ("wanted", "pending", "ready", "draining"):
            self._actors.set(getattr(state, name), {"state": name})
        for name in ("waiting", "given_out"):
            self._tasks.set(getattr(state, name), {"state": name})
        self._count(self._requeued, state.requeued)
        self._count(self._ready_seconds, state.ready_seconds)
        self._count(self._busy_seconds, state.busy_seconds)
        for reason, deaths in state.deaths.items():
            self._count(self._deaths, deaths, {"reason": reason})
        for number, held in state.gpu_bytes.items():
            self._gpu.set(held, {"process": f"actor {number}"})

    def _count(self, counter: Counter, total: float, tags: dict[str, str] | None = None) -> None:
        """Bring ``counter`` to what somebody else has counted."""
        key = (counter.info["name"], str(tags))
        _increase(counter, total - self._counted.get(key, 0.0), tags)
        self._counted[key] = total

    def __enter__(self) -> Self:
        if client.is_connected():
            logger.warning("a driver that is connected by ray:// has no metrics port: Prometheus gets no figures of it")
        self._show()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._show()


def _increase(counter: Counter, by: float, tags: dict[str, str] | None = None) -> None:
    """Ray refuses to add nothing."""
    if by > 0:
        counter.inc(by, tags)
