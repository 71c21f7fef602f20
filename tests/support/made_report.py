"""Folders of a run and an evaluation as they lie on disk, without training or evaluating anything."""

import json
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cacovid.config import TrainConfig
from cacovid.config_files import to_toml


def made_run(folder: Path, steps: int = 12, **more: float) -> Path:
    """A run's configuration, figures and log."""
    (folder / "logs").mkdir(parents=True)
    (folder / "config.toml").write_text(to_toml(TrainConfig()))
    rows = [
        {
            "step": float(step),
            "reward": 0.3 + 0.01 * step,
            "top_k_reward": 0.5,
            "loss": 2.0,
            "combinations": 32.0,
            "combinations_per_second": 100.0,
            "seconds": 3.0,
            "wait_seconds": 1.0,
            "learn_seconds": 2.0,
            **more,
        }
        for step in range(steps)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "logs" / "attempt-1.log").write_text(
        "2026-01-01 INFO run: run=r attempt=1 cacovid 0.1.0 commit 0123456789abcdef0123 ray 2 torch 2 "
        "host secret-host config abc\n"
    )
    return folder


def made_results(folder: Path, *, label: str = "ours", compared: bool = True, later: Mapping[str, object] = {}) -> Path:
    """results.json of a policy and two baselines at two ratios, one of them not defined, with times and rows."""
    versus = {"rival": "uniform", "difference": 0.25, "stderr": 0.03, "mcnemar_p": 0.0004, "bootstrap_p": 0.03}
    rows = [
        {
            "method": method,
            "retention": ratio,
            "accuracy": accuracy,
            "stderr": 0.02,
            "evidence_recall": 0.5 if method == label else None,
            "n": 4,
            "input_share": ratio,
            "mean_share": 0.3 if method == "fastv-behind" else ratio,
            "versus": versus if compared and method == label else None,
            **later,
        }
        for method, accuracy in ((label, 0.75), ("uniform", 0.5), ("fastv-behind", 0.9))
        for ratio in (0.1, 0.05)
    ]
    content = {
        "model": "embedded",
        "clips": 2,
        "questions": 4,
        "seed": 0,
        "full_accuracy": 0.96,
        "question_awareness_auc": 0.8,
        "rows": rows,
        "full_stderr": 0.01,
        "question_awareness": {label: 0.8},
        "skipped": 0,
        "undefined": [{"method": "evs", "retention": 0.05, "reason": "<b>too few</b>", "questions": 4}],
        **later,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(content))
    if compared:
        times = {"method": label, "retention": 0.1, "compress_ms": 1.5, "prefill_ms": 2.5, "first_token_ms": 4.0}
        (folder / "times.json").write_text(json.dumps({"memory_bytes": "peak", "rows": [times]}))
        made = [
            {"question": f"q{number}", "method": method, "retention": 0.1, "reward": reward}
            for number in range(3)
            for method, reward in ((label, float(number == 0)), ("uniform", 0.5), ("all tokens", 1.0), ("evs", None))
        ]
        pq.write_table(pa.Table.from_pylist(made), folder / "rows.parquet")
    return folder
