"""Running the service on the Ray cluster that this process is connected to: start, change, wait, stop.

    serve.start (one HTTP proxy) -> deploy -> [signals: deploy again] -> drain -> withdraw

A cluster has one Serve, with one address to listen on, and others may have applications there. So a Serve that
runs already is taken as it is, and on a cluster that was joined this application alone is removed in the end.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray import serve
from ray.exceptions import RayActorError
from ray.serve.context import _get_global_client
from ray.serve.schema import ApplicationStatus, ProxyStatus, ServeDeploySchema

from cacovid.errors import UserError
from serving.address import check_host, check_port
from serving.application import check, with_absolute_paths
from serving.config import ServiceConfig
from serving.schema import APPLICATION, INGRESS, ROUTE, deploy_schema, http_options

_LAST_BYTES_S = 0.2  # for the proxy to pass on what replicas have sent
_START_S = 300.0  # loading a large model takes minutes


@contextmanager
def running_service(config: ServiceConfig, host: str, port: int, *, shared: bool = False) -> Iterator[None]:
    """The service of ``config`` answers inside the block; requests under way are finished behind it.

    Args:
        config: what to serve.
        host: address to listen on.
        port: port to listen on.
        shared: the cluster was joined: Serve goes on behind the block, whoever started it.

    Raises:
        UserError: an open host without keys, an address that cannot be had, another application in the way, or a
            configuration that cannot be served.
    """
    check_host(host, config)
    check(config)
    starts = _get_global_client(raise_if_no_controller_running=False) is None
    if starts:
        _start(config, host, port, shared)
    else:
        _check_room(host, port)
    try:
        deploy(config)
        yield
        drain(config.api.request_timeout_s)
    finally:
        if starts and not shared:
            serve.shutdown()
        else:
            _withdraw()


def deploy(config: ServiceConfig) -> None:
    """Serve ``config`` from now on. Other policies go into running replicas; other fields replace replicas.

    Returns when the change is done; requests are answered all the while.

    Raises:
        UserError: it cannot be served, with the reason; what ran before still runs where Serve could keep it.
    """
    check(config)
    _declare(deploy_schema(with_absolute_paths(config)))
    patience_s = _START_S + (config.engine.vllm.start_s if config.engine.kind == "vllm" else 0.0)
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        time.sleep(0.1)
        status = serve.status()
        application = status.applications.get(APPLICATION)
        if application is None or application.status == ApplicationStatus.DEPLOYING:
            continue
        if application.status == ApplicationStatus.RUNNING and ProxyStatus.HEALTHY in status.proxies.values():
            return
        if application.status in (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY):
            raise UserError(f"the service cannot start: {_last_line(application.message)}")
    raise UserError(f"the service has not started within {patience_s:.0f} s: see the logs of Ray Serve")


def drain(seconds: float) -> None:
    """Refuse new requests with 503 and wait at most ``seconds`` for those under way."""
    ingress = serve.get_deployment_handle(INGRESS, APPLICATION)
    deadline = time.monotonic() + seconds
    while sum(ingress.broadcast("drain").results(timeout_s=10)) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(_LAST_BYTES_S)


def _start(config: ServiceConfig, host: str, port: int, shared: bool) -> None:
    """Start Serve on a cluster without one."""
    if not shared:  # else the port is the head node's, wherever that is
        check_port(host, port)
    try:
        serve.start(proxy_location="HeadOnly", http_options=http_options(config, host, port))
    except RayActorError:
        pass  # Serve takes a proxy that is slow to come up for dead and starts another, which `deploy` waits for
    except RuntimeError as error:
        serve.shutdown()  # it does not listen anywhere
        raise UserError(f"the cluster's head node cannot serve on {host}:{port}: {_last_line(str(error))}") from error


def _check_room(host: str, port: int) -> None:
    """Raise UserError where the Serve of this cluster listens elsewhere, or others have our route or name."""
    client = _get_global_client()
    there = f"{client.http_config.host}:{client.http_config.port}"
    if there != f"{host}:{port}":
        raise UserError(
            f"Serve on this cluster listens on {there} and nowhere else, so not on {host}:{port}: "
            "give its --host and --port, or leave out --address"
        )
    for name, application in client.get_serve_details()["applications"].items():
        if name == APPLICATION:
            raise UserError(f"an application {name!r} runs there already: end it, or choose another cluster")
        if application["route_prefix"] == ROUTE:
            raise UserError(f"the application {name!r} answers at {ROUTE} of this cluster: move it, or choose another")


def _declare(schema: dict[str, Any]) -> None:
    """Hand ``schema`` to Serve together with the applications that others have declared.

    Serve takes the whole declaration and ends what is not in it.
    """
    client = _get_global_client()
    running: dict[str, Any] = client.get_serve_details()
    others = [
        application["deployed_app_config"]
        for name, application in running["applications"].items()
        if name != APPLICATION
        and application["source"] == "declarative"
        and application["status"] != ApplicationStatus.DELETING
    ]
    whole = {"target_capacity": running["target_capacity"]} | schema
    whole["applications"] = [*others, *schema["applications"]]
    # As `serve run FILE` does; `serve deploy` sends the same over Ray's dashboard, which need not run here.
    client.deploy_apps(ServeDeploySchema.model_validate(whole))


def _withdraw() -> None:
    """End this application alone, also in what Serve would declare again after a crash of its controller."""
    _declare({"applications": []})
    serve.delete(APPLICATION)


def _last_line(message: str) -> str:
    """The error itself, without the traceback above it."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return lines[-1] if lines else "see the logs of Ray Serve"
