"""Where a service may listen; checked before anything heavy is imported."""

import socket

from cacovid.errors import UserError
from serving.config import ServiceConfig

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def check_host(host: str, config: ServiceConfig) -> None:
    """Raise UserError for an open host without keys."""
    if host not in LOOPBACK and config.api.keys_file is None:
        raise UserError(f"--host {host} opens the service to others without keys: set api.keys_file in the config")


def check_port(host: str, port: int) -> None:
    """Raise UserError for an address of this machine that cannot be listened on."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise UserError(
            f"cannot listen on {host}:{port} ({error.strerror}): choose another --port or --host"
        ) from error
