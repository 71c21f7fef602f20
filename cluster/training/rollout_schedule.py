"""Which step's rollouts are given out when, and with which weights.

Rollouts of step s always use the weights of version max(s - L, 0), never "the newest at hand": staleness
is exact, so results depend neither on speed nor on the number of actors. At most L + 1 steps are queued.

Rollouts since the last checkpoint are kept, within ``run.reuse_bytes``: after a learner's death their steps are done
again, with the same rollouts.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from actors.pool import RolloutPool
from actors.task import PublishedWeights, RolloutTask, TaskResult, Weights, parts
from cacovid.config import TrainConfig
from cacovid.data.order import ItemOrder
from cacovid.rollout import Part
from cacovid.sampling.ocss import explored
from cacovid.sampling.rates import step_tokens
from cacovid.seeding import generator


class RolloutSchedule:
    """Gives steps out ahead of the learner and holds the weights that they need."""

    def __init__(self, pool: RolloutPool, order: ItemOrder, config: TrainConfig) -> None:
        self.pool = pool
        self.order = order
        self.config = config
        self._remote = config.actors.places > 0
        self._submitted = 0  # steps whose rollouts were given out
        self._tickets: dict[int, list[list[int]]] = {}  # of each step that is out: items by items, all parts of each
        self._scored: dict[int, list[TaskResult]] = {}  # steps since the last checkpoint
        self._goes_back = False
        self._versions: dict[int, int] = {}  # policy version of each step that is out
        self._published: dict[int, PublishedWeights] = {}  # weights still needed, by version
        self._newest = 0

    @property
    def newest(self) -> PublishedWeights:
        """The weights published last."""
        return self._published[self._newest]

    def published(self, version: int) -> PublishedWeights:
        """The weights of ``version``, which a step that is out or was collected last has used."""
        return self._published[version]

    def publish(self, version: int, weights: Weights) -> None:
        """Make weights available by one reference; drop versions that no step needs any more."""
        self._newest = version
        self._published[version] = PublishedWeights.of(version, weights, remote=self._remote)
        needed = {version, *self._versions.values()}
        self._published = {version: held for version, held in self._published.items() if version in needed}

    def collect(self, step: int) -> list[TaskResult]:
        """The results of ``step``, after giving out the steps up to ``staleness`` ahead with the newest weights."""
        ahead = min(step + self.config.actors.staleness, self.config.run.steps - 1)
        for other in range(self._submitted, max(ahead, step) + 1):
            self._submit(other, self._versions.get(other, self._newest))
            self._submitted = other + 1
        results = self._scored[step] if step in self._scored else self._collect(step)
        del self._versions[step]
        return results

    def _collect(self, step: int) -> list[TaskResult]:
        tickets = self._tickets[step]
        found = iter(self.pool.collect([ticket for group in tickets for ticket in group]))
        del self._tickets[step]
        results = [TaskResult.of_parts([next(found) for _ in group]) for group in tickets]
        kept = [result for scored in (*self._scored.values(), results) for result in scored]
        if sum(sum(result.input_bytes) for result in kept) <= self.config.run.reuse_bytes:
            self._scored[step] = results
        return results

    def _submit(self, step: int, version: int) -> None:
        self._versions[step] = version
        if step in self._scored or step in self._tickets:
            return  # given out before the learners were set back
        cfg, weights = self.config, self._published[version]
        tokens = step_tokens(cfg.sampling, generator(cfg.run.seed, "rate", step))
        explore = explored(cfg.sampling, step / cfg.run.steps)
        shares = [Part(number, cfg.actors.parts_per_item) for number in range(cfg.actors.parts_per_item)]
        tasks = [
            RolloutTask(step, items, weights, tokens, share, explore)
            for items in parts(self.order.of_step(step), cfg.actors.items_per_task)
            for share in shares
        ]
        tickets = self.pool.submit(tasks)
        self._tickets[step] = [list(group) for group in parts(tickets, len(shares))]

    def saved(self, step: int) -> None:
        """The steps before ``step`` are in a checkpoint: nobody will do them again."""
        self._scored = {other: results for other, results in self._scored.items() if other >= step}

    @contextmanager
    def going_back(self) -> Iterator[None]:
        """Inside, what is restored is an earlier state of the same run: what has been scored since stays good."""
        self._goes_back = True
        try:
            yield
        finally:
            self._goes_back = False

    def versions(self) -> dict[int, int]:
        """Policy version of each step that is out."""
        return dict(self._versions)

    def weights(self) -> dict[int, Weights]:
        """The weights still needed, by version."""
        return {version: held.value() for version, held in self._published.items()}

    def restore(self, step: int, versions: Mapping[int, int], weights: Mapping[int, Weights]) -> None:
        """Go on before ``step``, with ``versions`` of the steps that were out; see also :meth:`going_back`."""
        if not self._goes_back:
            self.pool.forget()
            self._tickets.clear()
            self._scored.clear()
        self._submitted = self._newest = step
        self._versions = dict(versions)
        self._published = {
            version: PublishedWeights.of(version, held, remote=self._remote) for version, held in weights.items()
        }
