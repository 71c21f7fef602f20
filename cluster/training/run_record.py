"""A run's folder as a report takes it: nothing is locked, nothing written, and no host is named."""

import re
from pathlib import Path
from typing import Any

from cacovid.config_files import load_config
from cacovid.errors import UserError
from cacovid.reporting.records import RunRecord
from cluster.training.price import Price
from cluster.training.run_directory import RunDirectory
from cluster.training.run_status import RECENT, Figures, RunStatus

_VERSIONS = re.compile(r" (cacovid \S+ .*?) host \S+ config ")  # in the first line of an attempt's log


def is_run(folder: Path) -> bool:
    """Whether a training run lies in ``folder``."""
    run = RunDirectory(folder)
    return run.config_file.is_file() and (run.metrics.exists() or run.status.exists() or run.policy.is_dir())


def run_record(folder: Path) -> RunRecord:
    """What a report shows of the run in ``folder``.

    Raises:
        UserError: A file of it is damaged or another program's.
    """
    run = RunDirectory(folder)
    config = load_config(run.config_file)
    try:
        rows = run.rows()
        steps = [int(row["step"]) for row in rows]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{run.metrics} holds no rows of training steps ({error}): is it a run of ours?") from error
    facts = {
        "steps": f"{max(steps, default=-1) + 1} of {config.run.steps}",
        "model": config.model.path,
        "policy": config.policy.kind,
        "seed": str(config.run.seed),
        **_newest(rows),
    }
    price = Price.of(rows, config.evaluation)
    if price is not None:
        facts[price.name] = price.value
    if run.status.is_file():
        facts["state"] = RunStatus.read(folder).state.value
    versions = _versions(run)
    if versions:
        facts["trained with"] = versions
    return RunRecord(run.name, rows, run.config_file.read_text(), facts)


def _newest(rows: list[dict[str, Any]]) -> dict[str, str]:
    try:
        figures = Figures.of(rows[-RECENT:])
    except KeyError:  # a row of another release
        return {}
    if figures is None:
        return {}
    return {
        "reward of its own choice": f"{figures.top_k_reward:.3f}",
        "reward of all samples": f"{figures.reward:.3f}",
        "combinations a second": f"{figures.combinations_per_second:.4g}",
        "hours": f"{sum(row['seconds'] for row in rows) / 3600:.2f}",
    }


def _versions(run: RunDirectory) -> str:
    """Of the newest attempt, from its log; empty if that is not there."""
    attempts = run.attempts()
    if not attempts:
        return ""
    with attempts[max(attempts)].open(encoding="utf-8", errors="replace") as file:
        found = _VERSIONS.search(file.readline())
    return re.sub(r"(commit \w{12})\w*", r"\1", found[1]) if found else ""
