"""The one place that starts or joins Ray."""

import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import ray

from cacovid.config import ActorsConfig, TrainConfig
from cacovid.errors import UserError

logger = logging.getLogger(__name__)
REACH_S = 5.0


@contextmanager
def connected(address: str | None, *, log_to_driver: bool = False) -> Iterator[None]:
    """Inside the block this process belongs to a Ray cluster: its own one, or that at ``address``.

    A process that is connected already stays where it is. A cluster that was joined goes on behind the block.

    Args:
        address: 'auto' (the cluster that runs here), host:port or ray://host:port; None or 'local' start one.
        log_to_driver: Whether what the cluster's processes print comes to this process's stderr.

    Raises:
        UserError: There is no cluster at ``address``.
    """
    for name in ("ray.rllib", "ray.tune", "ray._common.deprecation", "DeepSpeed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if ray.is_initialized():
        yield
        return
    # RLlib's actors take their config by reference, of which Ray's core warns on stderr; the group holds it.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    _init(address, log_to_driver)
    try:
        yield
    finally:
        ray.shutdown()


def _init(address: str | None, log_to_driver: bool) -> None:
    if address in (None, "local"):
        with _deaf_to_sigterm():
            # Without an address Ray would join whatever cluster runs on this machine.
            ray.init(address="local", include_dashboard=False, log_to_driver=log_to_driver, logging_level=logging.ERROR)
        return
    check_reachable(address, "host:port, ray://host:port or auto")
    try:
        ray.init(address=address, log_to_driver=log_to_driver, logging_level=logging.ERROR)
    except (ConnectionError, ValueError) as error:
        raise UserError(
            f"no Ray cluster at {address!r}: {error} (if it asks for a token: set RAY_AUTH_MODE=token)"
        ) from error


@contextmanager
def _deaf_to_sigterm() -> Iterator[None]:
    """Processes that are started inside never hear SIGTERM, as Ray itself keeps Ctrl-C from them.

    `timeout`, `scancel` and systemd send it to all processes of a run at once: the driver still needs the others to
    save its work, and ends them afterwards.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def check_reachable(address: str, give: str, ports: Mapping[str, int] = {}) -> None:
    """Fail within seconds where Ray would wait for minutes.

    Args:
        address: host:port or scheme://host:port; 'auto' is left to Ray.
        give: What to give instead, for the message.
        ports: By scheme, where an address need not name one.

    Raises:
        UserError: It is no address, or nobody answers there.
    """
    if address == "auto":
        return
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        port = parts.port or ports.get(parts.scheme)
        if parts.scheme not in ("", "ray", *ports) or parts.hostname is None:
            raise ValueError("it is no address")
        if port is None:
            raise ValueError("it names no port")
        socket.create_connection((parts.hostname, port), timeout=REACH_S).close()
    except (OSError, ValueError) as error:
        raise UserError(f"no Ray cluster at {address!r} ({error}): give {give}") from error


def place_for_dashboard(name: Callable[[str], str]) -> Path | None:
    """Where this driver may leave a file for the cluster's dashboard to hand out: among Ray's logs of its machine.

    Args:
        name: Of the file, by the driver's Ray job id.

    Returns:
        None where the driver is on no machine of the cluster (ray://).
    """
    node = ray._private.worker.global_worker.node
    return None if node is None else Path(node.get_logs_dir_path()) / name(ray.get_runtime_context().get_job_id())


def check_resources(config: TrainConfig, elastic: bool) -> None:
    """See that the cluster can hold all actors and learners at once, instead of waiting for it.

    Of an elastic pool those actors count without which nothing goes on.

    Args:
        elastic: The cluster may grow (it was joined, not started here): there is only a warning.

    Raises:
        UserError: It cannot, with what is asked and what is there.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    where = "the cluster" if elastic else "this machine"
    found = _shortage_in_sum(config, nodes, where) or _shortage_of_places(config.actors, nodes, where)
    if found is None:
        return
    shortage, remedy = found
    if not elastic:
        raise UserError(f"{shortage}: {remedy}, or join a cluster with --address")
    logger.warning("%s: waiting up to %.0f s for it to grow", shortage, config.run.start_timeout_s)


def _shortage_in_sum(config: TrainConfig, nodes: Sequence[Mapping[str, Any]], where: str) -> tuple[str, str] | None:
    """What is wanting for all actors and learners, and what to lower."""
    actors, learners = config.actors, config.learners
    for kind, field in (("CPU", "cpus"), ("GPU", "gpus")):
        of_actor, of_learner = getattr(actors, field), getattr(learners, field)
        needed = actors.fewest * of_actor + learners.count * of_learner
        there = sum(node["Resources"].get(kind, 0.0) for node in nodes)
        if needed > there:
            shortage = (
                f"{actors.fewest} actors x {of_actor:g} and {learners.count} learners x {of_learner:g} need "
                f"{needed:g} {kind}s, {where} has {there:g}"
            )
            return shortage, f"lower {_count_field(actors)} or actors.{field}"
    return None


def _shortage_of_places(actors: ActorsConfig, nodes: Sequence[Mapping[str, Any]], where: str) -> tuple[str, str] | None:
    """An actor needs all of its CPUs and GPUs on one node, which has its labels."""
    needs = {kind: amount for kind, amount in (("CPU", actors.cpus), ("GPU", actors.gpus)) if amount}
    allowed = [node for node in nodes if actors.label_selector.items() <= node["Labels"].items()]
    room = sum(
        min((int(node["Resources"].get(kind, 0.0) / amount) for kind, amount in needs.items()), default=actors.fewest)
        for node in allowed
    )
    if room >= actors.fewest:
        return None
    labelled = f" with {', '.join(actors.labels)}" if actors.labels else ""
    shortage = (
        f"{actors.fewest} actors need {actors.cpus:g} CPUs and {actors.gpus:g} GPUs each, of one node{labelled}: "
        f"{where} has room for {room}"
    )
    return (
        shortage,
        f"lower {_count_field(actors)} or change actors.{'labels' if actors.labels else 'gpus or actors.cpus'}",
    )


def _count_field(actors: ActorsConfig) -> str:
    return "actors.min" if actors.max else "actors.count"
