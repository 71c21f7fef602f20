"""MLflow: a run in its database or on its server. Steps that it has are asked of it."""

import json
import logging
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

from cacovid.atomic import writing
from cacovid.config import TrainConfig
from cluster.training.run_directory import RunDirectory
from cluster.training.tracking.base import Row, TrackingFailed

STATUS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
AT_ONCE = 100  # params in one call at most; metrics 1,000
LONGEST = 6_000  # characters of a param
_REFUSED = re.compile(r"[^\w\-. :]", re.ASCII)  # in a metric's name; the question types of a table may hold any letter


class MLflowTracker:
    """See :class:`cluster.training.tracking.base.Tracker`."""

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self._client = client
        self._id = run_id
        self._last = max((each.step for each in client.get_metric_history(run_id, "loss")), default=-1)

    def add(self, rows: Sequence[Row]) -> None:
        """Each step's figures go in one call, so that it is there as a whole or not at all."""
        with _failures():
            for row in rows:
                step, now = int(row["step"]), int(time.time() * 1_000)
                if step > self._last:
                    metrics = [Metric(_metric_name(name), value, now, step) for name, value in row.items()]
                    self._client.log_batch(self._id, metrics=metrics)
                    self._last = step

    def keep(self, files: Sequence[Path]) -> None:
        """As artifacts."""
        with _failures():
            for path in files:
                self._client.log_artifact(self._id, str(path))

    def close(self, ended: str) -> None:
        """Set the run's status."""
        with _failures():
            self._client.set_terminated(self._id, STATUS[ended])


def open_tracker(run: RunDirectory, config: TrainConfig) -> MLflowTracker:
    """The MLflow run of ``run``, a new one unless there is one in the same place."""
    for name in ("mlflow", "alembic"):  # they tell of tables that they make
        logging.getLogger(name).setLevel(logging.WARNING)
    note = run.tracking / "mlflow.json"
    with _failures():
        uri = config.run.mlflow_uri or f"sqlite:///{run.folder.absolute() / 'mlflow.db'}"
        client = MlflowClient(uri)
        known = json.loads(note.read_text()) if note.exists() else {}
        if known.get("uri") == uri:
            client.update_run(known["run_id"], status="RUNNING")
            return MLflowTracker(client, known["run_id"])
        run_id = _begin(client, run, config)
        run.tracking.mkdir(exist_ok=True)
        with writing(note) as part:
            part.write_text(json.dumps({"uri": uri, "run_id": run_id}))
        return MLflowTracker(client, run_id)


def _begin(client: MlflowClient, run: RunDirectory, config: TrainConfig) -> str:
    project = config.run.tracking_project
    experiment = client.get_experiment_by_name(project)
    if experiment is not None:
        number = experiment.experiment_id
    else:
        beside = None if config.run.mlflow_uri else (run.folder.absolute() / "mlflow-artifacts").as_uri()
        number = client.create_experiment(project, artifact_location=beside)
    run_id: str = client.create_run(number, run_name=run.name).info.run_id
    params = [Param(name, str(value)[:LONGEST]) for name, value in config.by_name().items()]
    for first in range(0, len(params), AT_ONCE):
        client.log_batch(run_id, params=params[first : first + AT_ONCE])
    return run_id


def _metric_name(name: str) -> str:
    """As MLflow takes it: of its slashes the first alone parts a section from a figure."""
    section, slash, figure = name.partition("/")
    return _REFUSED.sub("_", section) + slash + _REFUSED.sub("_", figure)


@contextmanager
def _failures() -> Iterator[None]:
    try:
        yield
    except (MlflowException, OSError) as error:
        raise TrackingFailed(str(error).strip().splitlines()[0]) from error
