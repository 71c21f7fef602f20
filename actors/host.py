"""How a pool starts, calls and ends its actors: what it asks for, and Ray's way of doing it."""

import math
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, Protocol, TypeAlias

import ray
from ray._private.state import state as global_state
from ray.util.client import ray as client
from ray.util.placement_group import (
    PlacementGroup,
    get_current_placement_group,
    placement_group,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.death import Death, death_of

Done: TypeAlias = Callable[[Any, Exception | None], None]  # takes the call's value, or its error


class ActorLost(Exception):
    """The actor's process or its node is gone, and its calls with it."""

    def __init__(self, death: Death) -> None:
        super().__init__(death.text)
        self.death = death


class ActorUnreachable(Exception):
    """The connection broke while the actor may live; whether the call ran is not known."""


class ActorHost(Protocol):
    """Starts actors and calls them."""

    def start(self, number: int) -> Any:  # noqa: ANN401 - the host's own handle
        """Begin to start actor ``number`` (from 1); calls wait until it is there."""
        ...

    def call(self, handle: Any, method: str, done: Done, *arguments: Any, apart: int = 0) -> None:  # noqa: ANN401
        """Call ``method``; ``done`` hears of the end, from any thread. Calls of one actor run in order.

        Its error is :class:`ActorLost`, :class:`ActorUnreachable` or what the method raised.

        Args:
            apart: Of the method's 1 + ``apart`` values the last ones stay where they are made: ``done`` then
                takes the first value and the tuple of references to the others.
        """
        ...

    def end(self, handle: Any) -> None:  # noqa: ANN401
        """End the actor at once, busy, hanging or lost as it may be, and give its place back."""
        ...

    def node_lives(self, node: str) -> bool:
        """Whether the machine of this id still belongs to the cluster."""
        ...

    def draining(self) -> Mapping[str, float]:
        """Machines that have announced their end, with its time.monotonic()."""
        ...


class RayCalls:
    """Calls and ends Ray actors, whatever they are and whoever has started them; the rest of an :class:`ActorHost`."""

    def call(self, handle: ray.actor.ActorHandle, method: str, done: Done, *arguments: Any, apart: int = 0) -> None:  # noqa: ANN401
        """See :class:`ActorHost`."""
        returned = getattr(handle, method).options(num_returns=1 + apart).remote(*arguments)
        first, references = (returned[0], tuple(returned[1:])) if apart else (returned, ())

        def hear(future: Future[Any]) -> None:
            error = future.exception()
            if isinstance(error, ray.exceptions.ActorUnavailableError):
                done(None, ActorUnreachable(str(error)))
            elif isinstance(error, ray.exceptions.RayActorError | ray.exceptions.OutOfMemoryError):
                done(None, ActorLost(death_of(error)))
            elif error is not None:
                done(None, error if isinstance(error, Exception) else RuntimeError(str(error)))
            else:
                done((future.result(), references) if apart else future.result(), None)

        first.future().add_done_callback(hear)

    def end(self, handle: ray.actor.ActorHandle) -> None:
        """See :class:`ActorHost`."""
        ray.kill(handle)

    def node_lives(self, node: str) -> bool:
        """See :class:`ActorHost`."""
        return any(each["NodeID"] == node and each["Alive"] for each in ray.nodes())

    def draining(self) -> dict[str, float]:
        """See :class:`ActorHost`. As Ray Serve asks for them; a deadline of 0 is none."""
        if client.is_connected():
            return {}  # Ray's client has no way to ask
        past = time.time() - time.monotonic()
        deadlines = global_state.get_draining_nodes()
        return {node: end / 1000 - past if end else math.inf for node, end in deadlines.items()}


class RayHost(RayCalls):
    """Ray actors, each in a placement group of its own: one that waits is its autoscaler's demand.

    Ray does not restart them: whoever restarts an actor must know why it died, and where.

    Args:
        actor: the class; made of ``config`` and ``worker_index``.
        config: which each actor gets.
        resources: of one actor: CPU, GPU and others.
        labels: of the nodes that actors may run on.
    """

    def __init__(self, actor: type, config: Any, resources: Mapping[str, float], labels: Mapping[str, str]) -> None:  # noqa: ANN401
        cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
        own = {name: amount for name, amount in resources.items() if name not in ("CPU", "GPU")}
        self._bundle = {name: amount for name, amount in resources.items() if amount}
        self._labels = dict(labels)
        self._class = ray.remote(num_cpus=cpus, num_gpus=gpus, resources=own, max_restarts=0)(actor)
        self._config = ray.put(config)
        # Under Tune: bundle 0 is the trial's own, then come those of its actors (CPO.default_resource_request).
        self._trial = get_current_placement_group()
        self._groups: dict[ray.actor.ActorHandle, PlacementGroup] = {}

    def start(self, number: int) -> ray.actor.ActorHandle:
        """See :class:`ActorHost`."""
        group, options = None, dict[str, Any]()
        if self._trial is not None:
            options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(self._trial, number)
        elif self._bundle:
            group = placement_group([self._bundle], bundle_label_selector=[self._labels])  # there once it has room
            options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(group, 0)
        elif self._labels:
            options["label_selector"] = self._labels
        handle = self._class.options(**options).remote(config=self._config, worker_index=number)
        if group is not None:
            self._groups[handle] = group
        return handle

    def end(self, handle: ray.actor.ActorHandle) -> None:
        """See :class:`ActorHost`."""
        super().end(handle)
        if handle in self._groups:
            remove_placement_group(self._groups.pop(handle))
