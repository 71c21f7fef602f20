"""Ports for servers that are told where to listen."""

import random
import socket

# Below the range that outgoing connections get their ports from, and above Ray's workers.
CANDIDATES = range(20_000, 32_000)


def free_port() -> int:
    """A port of loopback that nobody listens on, and that nobody gets by chance before its server starts."""
    draw = random.SystemRandom()
    for port in draw.sample(CANDIDATES, 100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no free port among a hundred")
