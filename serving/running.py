"""Running the service on a Ray cluster: start, change, wait, stop."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ApplicationStatus, ServeDeploySchema

from cacovid.errors import UserError
from serving.address import check_address
from serving.application import check, with_absolute_paths
from serving.config import ServiceConfig
from serving.schema import APPLICATION, INGRESS, deploy_schema, http_options

_LAST_BYTES_S = 0.2  # for the proxy to pass on what replicas have sent
_START_S = 300.0  # loading a large model takes minutes


@contextmanager
def running_service(config: ServiceConfig, host: str, port: int, address: str | None = None) -> Iterator[None]:
    """The service of ``config`` answers inside the block; requests under way are finished behind it.

    Args:
        config: what to serve.
        host: address to listen on.
        port: port to listen on.
        address: Ray cluster to join; None starts one in this machine, unless the process is connected.

    Raises:
        UserError: an open host without keys, a port in use, or a configuration that cannot be served.
    """
    check_address(host, port, config)
    check(config)
    connected = _connect(address)
    try:
        serve.start(proxy_location="HeadOnly", http_options=http_options(config, host, port))
        deploy(config, host, port)
        yield
        drain(config.api.request_timeout_s)
    finally:
        serve.shutdown()
        if connected:
            ray.shutdown()


def deploy(config: ServiceConfig, host: str, port: int) -> None:
    """Serve ``config`` from now on. Other policies go into running replicas; other fields replace replicas.

    Returns when the change is done; requests are answered all the while.

    Raises:
        UserError: it cannot be served, with the reason; what ran before still runs where Serve could keep it.
    """
    check(config)
    schema = ServeDeploySchema.model_validate(deploy_schema(with_absolute_paths(config), host, port))
    # As `serve run FILE` does; `serve deploy` sends the same over Ray's dashboard, which need not run here.
    _get_global_client().deploy_apps(schema)
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        time.sleep(0.1)
        application = serve.status().applications.get(APPLICATION)
        if application is None or application.status == ApplicationStatus.DEPLOYING:
            continue
        if application.status == ApplicationStatus.RUNNING:
            return
        if application.status in (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY):
            raise UserError(f"the service cannot start: {_last_line(application.message)}")
    raise UserError(f"the service has not started within {_START_S:.0f} s: see the logs of Ray Serve")


def drain(seconds: float) -> None:
    """Refuse new requests with 503 and wait at most ``seconds`` for those under way."""
    ingress = serve.get_deployment_handle(INGRESS, APPLICATION)
    deadline = time.monotonic() + seconds
    while sum(ingress.broadcast("drain").results(timeout_s=10)) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(_LAST_BYTES_S)


def _connect(address: str | None) -> bool:
    """Join or start a Ray cluster; False where the process is connected already. Replicas' logs come to stderr."""
    if ray.is_initialized():
        return False
    local = {} if address else {"include_dashboard": False}
    try:
        ray.init(address=address, logging_level=logging.ERROR, **local)
    except (ConnectionError, ValueError) as error:
        raise UserError(f"no Ray cluster at {address!r}: {error}") from error
    return True


def _last_line(message: str) -> str:
    """The error itself, without the traceback above it."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return lines[-1] if lines else "see the logs of Ray Serve"
