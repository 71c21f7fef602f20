"""Which step's rollouts are given out when, and with which weights.

Rollouts of step s always use the weights of version max(s - L, 0), never "the newest at hand": staleness
is exact, so results depend neither on speed nor on the number of actors. At most L + 1 steps are queued.
"""

from collections.abc import Mapping

from actors.pool import RolloutPool
from actors.task import PublishedWeights, RolloutTask, TaskResult, Weights, parts
from cacovid.config import TrainConfig
from cacovid.data.order import ItemOrder
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
        self._tickets: dict[int, list[int]] = {}  # of each step that is out
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
        results = self.pool.collect(self._tickets.pop(step))
        del self._versions[step]
        return results

    def _submit(self, step: int, version: int) -> None:
        self._versions[step] = version
        items = parts(self.order.of_step(step), self.config.actors.items_per_task)
        tokens = step_tokens(self.config.sampling, generator(self.config.run.seed, "rate", step))
        weights = self._published[version]
        self._tickets[step] = self.pool.submit([RolloutTask(step, part, weights, tokens) for part in items])

    def versions(self) -> dict[int, int]:
        """Policy version of each step that is out."""
        return dict(self._versions)

    def weights(self) -> dict[int, Weights]:
        """The weights still needed, by version."""
        return {version: held.value() for version, held in self._published.items()}

    def restore(self, step: int, versions: Mapping[int, int], weights: Mapping[int, Weights]) -> None:
        """Go on before ``step``: what is out is forgotten, ``versions`` will be given out again as they were."""
        self.pool.forget()
        self._tickets = {}
        self._submitted = self._newest = step
        self._versions = dict(versions)
        self._published = {
            version: PublishedWeights.of(version, held, remote=self._remote) for version, held in weights.items()
        }
