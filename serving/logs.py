"""Where the service's own log lines go."""

import logging
import sys


def set_up_logs(level: str) -> None:
    """Lines of ``cacovid.serving`` to stderr, which Ray collects by replica; once a process."""
    logger = logging.getLogger("cacovid.serving")
    logger.setLevel(level)
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
        logger.addHandler(handler)
        logger.propagate = False
