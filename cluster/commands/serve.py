"""``cacovid serve``."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cacovid.errors import UserError
from cacovid.policy_folder import policy_folder

if TYPE_CHECKING:
    from serving.config import ServiceConfig

POLICY_ID = "cacovid"


ServiceFile = Annotated[Path | None, typer.Option("--config", help="YAML or TOML file, or one for `serve deploy`")]
Policies = Annotated[
    list[str] | None,
    typer.Option("--policy", help="policy or run folder, DIR or ID=DIR; repeatable: the id selects it"),
]
ServedModel = Annotated[
    str | None,
    typer.Option("--model", help="'embedded', a folder or a hub id; without it the first policy's model"),
]
Host = Annotated[str, typer.Option("--host", help="address to listen on; others than loopback need keys")]
Port = Annotated[int, typer.Option("--port", min=1, max=65535, help="port to listen on")]
Cluster = Annotated[
    str | None,
    typer.Option(
        "--address", help="Ray cluster to join, with its Serve's --host and --port; starts one here if not given"
    ),
]
ShowConfig = Annotated[bool, typer.Option("--show-config", help="print the configuration and end")]


def serve(
    config: ServiceFile = None,
    policy: Policies = None,
    model: ServedModel = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    address: Cluster = None,
    show_config: ShowConfig = False,
) -> None:
    """Serve an OpenAI-compatible API and a page. Ctrl-C or SIGTERM ends it after the requests under way.

    SIGHUP reads --config and the policy folders again: new policies are served without a pause.
    """
    run(lambda: resolved(config, policy or [], model), host, port, address, show_config)


def run(
    configured: "Callable[[], ServiceConfig]", host: str, port: int, address: str | None, show_config: bool
) -> None:
    """Serve what ``configured`` returns, which SIGHUP asks again, until a signal ends it; or print it."""
    config = configured()
    if show_config:
        from serving.config_file import to_yaml

        typer.echo(to_yaml(config), nl=False)
        return
    from serving.address import check_host, check_port

    shared = address not in (None, "local")
    check_host(host, config)
    if not shared:
        check_port(host, port)
    from cluster.ray_cluster import connected
    from serving.application import check
    from serving.running import deploy, running_service

    check(config)

    with connected(address, log_to_driver=True), running_service(config, host, port, shared=shared):
        typer.echo(f"http://{host}:{port}  (page at /, API below /v1); model ids: {', '.join(_ids(config))}")
        for _ in _reload_signals():
            try:
                config = configured()
                deploy(config)
                typer.echo(f"reloaded; model ids: {', '.join(_ids(config))}")
            except UserError as error:
                typer.echo(f"not reloaded, the service goes on as it was: {error}", err=True)
        typer.echo("draining")


def _reload_signals() -> Iterator[None]:
    """Yields at every SIGHUP; ends at SIGINT or SIGTERM."""
    watched = {signal.SIGHUP, signal.SIGINT, signal.SIGTERM}
    for each in watched:
        signal.signal(each, lambda *_: None)  # caught below; without a handler they would end the process
    signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    while signal.sigwait(watched) == signal.SIGHUP:
        yield


def resolved(config: Path | None, policies: list[str], model: str | None) -> "ServiceConfig":
    """The configuration that the options stand for.

    Raises:
        UserError: options that exclude each other, or files that cannot be used.
    """
    if config is not None and (policies or model):
        raise UserError("--config holds model and policies: leave out --policy and --model")
    from serving.config_file import load_service_config, parse_service_config

    if config is not None:
        return load_service_config(config)
    folders = _folders(policies)
    if not folders:
        return parse_service_config({"model": {"path": model or "embedded"}})
    from cacovid.compressor import model_config_for
    from cacovid.config import ModelConfig
    from cacovid.policy.base import CompressionPolicy

    first = CompressionPolicy.from_pretrained(next(iter(folders.values())))
    settings: ModelConfig = model_config_for(first.metadata, model)
    return parse_service_config({"model": settings.model_dump(), "policies": folders})


def _folders(arguments: list[str]) -> dict[str, str]:
    """``ID=DIR`` or ``DIR`` into folders by model id."""
    folders: dict[str, str] = {}
    for argument in arguments:
        name, equals, folder = argument.partition("=")
        if not equals or "/" in name:
            name, folder = POLICY_ID, argument
        if name in folders:
            raise UserError(f"two policies have the id {name!r}: write --policy ID=DIR with different ids")
        folders[name] = str(policy_folder(Path(folder)))
    return folders


def _ids(config: "ServiceConfig") -> list[str]:
    return [*config.policies, config.base_id]
