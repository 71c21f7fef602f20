"""status.json of a run: where it stands, for whoever looks at its folder or at the cluster.

    starting --> waiting for actors <--> training --> finished | interrupted | failed

The driver writes it with every step and every change; a killed one leaves its last word, and the folder's lock tells
that nobody writes any more. A copy lies among Ray's logs on the driver's machine, from where the cluster's dashboard
gives it to those who do not see the folder.
"""

import os
import socket
import threading
import time
from collections import deque
from collections.abc import Collection, Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from cacovid.atomic import writing
from cacovid.config import TrainConfig
from cacovid.errors import UserError
from cluster.training.best_checkpoint import PREFIX
from cluster.training.price import Price
from cluster.training.run_directory import RunDirectory

if TYPE_CHECKING:
    from actors.pool_state import PoolState  # which imports Ray

RECENT = 20  # steps that rates and rewards are means of


class State(StrEnum):
    """What a run does, or how its last attempt ended."""

    STARTING = "starting"
    WAITING = "waiting for actors"
    TRAINING = "training"
    FINISHED = "finished"
    INTERRUPTED = "interrupted"
    FAILED = "failed"

    @property
    def at_work(self) -> bool:
        """Whether a process ought to be there."""
        return self in (State.STARTING, State.WAITING, State.TRAINING)


class Figures(BaseModel):
    """Means over the newest steps."""

    model_config = ConfigDict(frozen=True)

    steps_per_hour: float
    combinations_per_second: float
    reward: float  # of all sampled combinations
    top_k_reward: float  # of the policy's own choice

    @classmethod
    def of(cls, rows: Collection[Mapping[str, float]]) -> Self | None:
        """Of ``rows`` of metrics.jsonl; None without any."""
        if not rows:
            return None
        seconds = sum(row["seconds"] for row in rows)
        return cls(
            steps_per_hour=3600 * len(rows) / seconds,
            combinations_per_second=sum(row["combinations"] for row in rows) / seconds,
            reward=sum(row["reward"] for row in rows) / len(rows),
            top_k_reward=sum(row["top_k_reward"] for row in rows) / len(rows),
        )


class RunStatus(BaseModel):
    """What is known of a run and its newest attempt. Times in seconds since 1970."""

    model_config = ConfigDict(frozen=True)

    folder: str
    state: State
    attempt: int  # from 1
    started_at: float  # the attempt
    written_at: float
    host: str
    pid: int
    cluster: str | None  # Ray address; None: the run's own
    step: int  # finished ones
    steps: int
    checkpoint: str | None = None  # the newest
    figures: Figures | None = None  # None before the first step
    price: Price | None = None  # None before the first evaluation
    actors_wanted: int = 0
    actors_ready: int = 0
    actors_dead: int = 0  # deaths in this attempt
    error: str | None = None  # the newest

    @property
    def seconds_left(self) -> float | None:
        """At the pace of the newest steps."""
        return None if self.figures is None else 3600 * (self.steps - self.step) / self.figures.steps_per_hour

    @classmethod
    def read(cls, folder: Path) -> Self:
        """That of the run in ``folder``.

        Raises:
            UserError: There is none, or another program wrote it.
        """
        path = RunDirectory(folder).status
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UserError(f"{folder} is no run that was started: {path.name}: {error.strerror}") from error
        return cls.parse(content, str(path))

    @classmethod
    def parse(cls, content: bytes, where: str) -> Self:
        """``content`` of a file or answer that is called ``where``.

        Raises:
            UserError: Another program, or another release, wrote it.
        """
        try:
            return cls.model_validate_json(content)
        except ValidationError as error:
            wrong = error.errors()[0]
            field = ".".join(map(str, wrong["loc"])) or "content"
            raise UserError(f"{where} is no status of a run: {field}: {wrong['msg']}") from error


def copy_name(job_id: str) -> str:
    """Name, among Ray's logs, of the status that the driver of this Ray job writes."""
    return f"cacovid-{job_id}.json"


class StatusFile:
    """Keeps status.json of the attempt that this process is, and its copy, up to date. Thread-safe."""

    def __init__(self, run: RunDirectory, config: TrainConfig, attempt: int, cluster: str | None) -> None:
        self._paths = [run.status]
        self._run = run
        self._target = config.evaluation
        self._lock = threading.Lock()
        self._rows: deque[Mapping[str, float]] = deque(maxlen=RECENT)
        self._now = RunStatus(
            folder=str(run.folder.absolute()),
            state=State.STARTING,
            attempt=attempt,
            started_at=time.time(),
            written_at=time.time(),
            host=socket.gethostname(),
            pid=os.getpid(),
            cluster=cluster,
            step=0,
            steps=config.run.steps,
        )
        self.look()

    def copy_to(self, path: Path | None) -> None:
        """Keep a copy at ``path`` from now on."""
        if path is not None:
            self._paths.append(path)
            self._change()

    def look(self) -> None:
        """Take steps and checkpoint from the run's files: at the start, and when it has gone back to a checkpoint."""
        rows, checkpoint = self._run.rows(), self._run.newest_checkpoint()
        self._rows = deque(rows, maxlen=RECENT)
        self._change(
            step=len(rows),
            checkpoint=None if checkpoint is None else checkpoint.name,
            figures=Figures.of(self._rows),
            price=Price.of(rows, self._target),
        )

    def add(self, row: Mapping[str, float], actors: "PoolState") -> None:
        """A step is finished."""
        self._rows.append(row)
        evaluated = any(name.startswith(PREFIX) for name in row)
        price = Price.of(self._run.rows(), self._target) if evaluated else self._now.price
        self._change(step=int(row["step"]) + 1, figures=Figures.of(self._rows), price=price, **_values(actors))

    def saved(self, checkpoint: Path) -> None:
        """A checkpoint is finished."""
        self._change(checkpoint=checkpoint.name)

    def actors(self, actors: "PoolState") -> None:
        """Training goes on, as far as there are actors."""
        self._change(**_values(actors))

    def error(self, what: BaseException) -> None:
        """The run has met an error, and goes on."""
        self._change(error=_line(what))

    def end(self, error: BaseException | None = None) -> None:
        """The attempt has ended, with all steps done, by ``error`` or before the last step because it was told to."""
        if error is not None:
            self.error(error)
        done = State.FINISHED if self._now.step >= self._now.steps else State.INTERRUPTED
        self._change(state=done if error is None else State.FAILED, actors_ready=0)

    def _change(self, **values: object) -> None:
        with self._lock:
            self._now = self._now.model_copy(update={**values, "written_at": time.time()})
            for path in self._paths:
                with writing(path) as part:
                    part.write_text(self._now.model_dump_json(indent=1) + "\n")


def _values(actors: "PoolState") -> dict[str, object]:
    state = State.WAITING if actors.wanted and not actors.ready else State.TRAINING
    dead = sum(actors.deaths.values())
    return {"state": state, "actors_wanted": actors.wanted, "actors_ready": actors.ready, "actors_dead": dead}


def _line(error: BaseException) -> str:
    """The first of its message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
