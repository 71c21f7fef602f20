"""logs/attempt-N.log of a run: what each start of the run did, said and ended with."""

import hashlib
import logging
import socket
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import ray
import torch

from cacovid.config import TrainConfig
from cacovid.errors import UserError
from cluster.training import build
from cluster.training.run_directory import RunDirectory

OURS = ("actors", "cacovid", "cluster", "learner")  # packages whose loggers are heard
FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class AttemptLog:
    """Writes the log of one attempt inside the block.

    Lines of our loggers go there from INFO on; what they say elsewhere stays as it is.

    Attributes:
        number: Of the attempt, from 1.
    """

    def __init__(self, run: RunDirectory, config: TrainConfig, number: int | None = None) -> None:
        """``number`` of the attempt; None: the next one after those whose logs are there."""
        self.number = 1 + max(run.attempts(), default=0) if number is None else number
        self._run = run
        self._config = config
        self._done: int | None = None  # steps
        self._steps = logging.Logger("run")  # of its own: for this file alone

    def add(self, row: Mapping[str, float]) -> None:
        """One line for a training step."""
        self._done = int(row["step"]) + 1
        figures = [f"{name}={row[name]:.4g}" for name in ("reward", "top_k_reward", "loss")]
        figures.append(f"combinations/s={row['combinations_per_second']:.4g}")
        figures.append(f"actors={row['ready_actors']:.0f}/{row['wanted_actors']:.0f}")
        figures += [f"{name}={row[f'{name}_seconds']:.3g}s" for name in ("wait", "learn")]
        self._say(f"step={self._done}/{self._config.run.steps} {' '.join(figures)}")

    def _say(self, what: str, level: int = logging.INFO, **options: Any) -> None:  # noqa: ANN401 - logging's
        self._steps.log(level, "run=%s attempt=%d %s", self._run.name, self.number, what, **options)

    def __enter__(self) -> Self:
        try:
            self._run.logs.mkdir(exist_ok=True)
            self._handler = logging.FileHandler(self._run.logs / f"attempt-{self.number}.log", mode="x")
        except OSError as error:
            raise UserError(f"cannot write {self._run.logs}: {error.strerror}") from error
        self._handler.setFormatter(logging.Formatter(FORMAT))
        self._steps.addHandler(self._handler)
        self._levels = {name: logging.getLogger(name).level for name in OURS}
        # With a handler of its own a logger would no longer fall back on stderr, where nobody has set logging up.
        self._heard: list[logging.Handler] = [self._handler]
        if not logging.getLogger().handlers and logging.lastResort is not None:
            self._heard.append(logging.lastResort)
        for name in OURS:
            logging.getLogger(name).setLevel(logging.INFO)
            for handler in self._heard:
                logging.getLogger(name).addHandler(handler)
        digest = hashlib.sha256(self._config.model_dump_json().encode()).hexdigest()[:12]
        self._say(
            f"{build.describe()} ray {ray.__version__} torch {torch.__version__} host {socket.gethostname()} "
            f"config {digest}"
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._say("ended" if self._done is None else f"ended after step {self._done} of {self._config.run.steps}")
        else:
            trail = None if isinstance(error, UserError) else error
            self._say(f"ended by {type(error).__name__}: {error}", logging.ERROR, exc_info=trail)
        for name in OURS:
            logging.getLogger(name).setLevel(self._levels[name])
            for handler in self._heard:
                logging.getLogger(name).removeHandler(handler)
        self._handler.close()
