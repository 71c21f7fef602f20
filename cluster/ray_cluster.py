"""The one place that starts or joins Ray."""

import logging
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from cacovid.config import TrainConfig
from cacovid.errors import UserError

logger = logging.getLogger(__name__)


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
    if address != "auto":
        _check_reachable(address)
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


def _check_reachable(address: str) -> None:
    """Fail within seconds where Ray would wait for minutes."""
    host, _, port = address.rpartition("/")[2].rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, ValueError) as error:
        raise UserError(f"no Ray cluster at {address!r} ({error}): give host:port, ray://host:port or auto") from error


def check_resources(config: TrainConfig, elastic: bool) -> None:
    """See that the cluster can hold all actors and learners at once, instead of waiting for it.

    Args:
        elastic: The cluster may grow (it was joined, not started here): there is only a warning.

    Raises:
        UserError: It cannot, with what is asked and what is there.
    """
    there = ray.cluster_resources()
    for kind, field in (("CPU", "cpus"), ("GPU", "gpus")):
        actors, learners = getattr(config.actors, field), getattr(config.learners, field)
        count = config.actors.min if config.actors.max else config.actors.count
        needed = count * actors + config.learners.count * learners
        if needed <= there.get(kind, 0):
            continue
        shortage = (
            f"{count} actors x {actors:g} and {config.learners.count} learners x {learners:g} need {needed:g} {kind}s, "
        )
        if not elastic:
            raise UserError(
                f"{shortage}this machine has {there.get(kind, 0):g}: lower actors.count or actors.{field}, "
                "or join a cluster with --address"
            )
        waiting = f"waiting up to {config.run.start_timeout_s:.0f} s for it to grow"
        logger.warning("%sthe cluster has %g: %s", shortage, there.get(kind, 0), waiting)
