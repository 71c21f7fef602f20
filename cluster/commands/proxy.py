"""``cacovid proxy``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.commands.serve import Cluster, Host, Policies, Port, ServedModel, ServiceFile, ShowConfig, resolved, run

if TYPE_CHECKING:
    from serving.config import ServiceConfig


def proxy(
    upstream: Annotated[str, typer.Option(help="a vLLM server of the same model, started with --enable-prompt-embeds")],
    config: ServiceFile = None,
    policy: Policies = None,
    model: ServedModel = None,
    upstream_model: Annotated[str, typer.Option(help="the server's name of the model; without it its first")] = "",
    upstream_key: Annotated[Path | None, typer.Option(help="file with the server's bearer key")] = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    address: Cluster = None,
    show_config: ShowConfig = False,
) -> None:
    """Serve as `cacovid serve` does, with the answers drawn by a vLLM server that stays as it is.

    Videos are read and compressed here and go there as prompt_embeds, with the request's sampling parameters.
    """

    def configured() -> "ServiceConfig":
        from serving.config_file import parse_service_config

        values = resolved(config, policy or [], model).model_dump(mode="json")
        key_file = None if upstream_key is None else str(upstream_key)
        server = {"url": upstream, "model": upstream_model, "key_file": key_file}
        values["engine"] |= {"kind": "upstream", "upstream": values["engine"]["upstream"] | server}
        return parse_service_config(values)

    run(configured, host, port, address, show_config)
