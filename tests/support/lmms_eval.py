"""lmms-eval in an environment of its own, outside the repository: it asks for older releases than we pin.

``python -m tests.support.lmms_eval`` makes it and says where it is. What was made once is used again until
tests/support/lmms-eval.txt changes; this repository is installed into it anew each time.
"""

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import platformdirs

ROOT = Path(__file__).parents[2]
PINS = Path(__file__).with_name("lmms-eval.txt")


# Of this checkout, and of a learner that ran in this process: accelerate would wait for its peers.
FOREIGN = {"PYTHONPATH", "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}


class NotInstallable(Exception):
    """lmms-eval cannot be installed here; the message says what pip said."""


@dataclass(frozen=True)
class Outcome:
    """What the harness found."""

    accuracy: float
    answers: list[str]  # in the table's order
    printed: str


@dataclass(frozen=True)
class Harness:
    """The environment's Python."""

    python: Path

    @classmethod
    def ready(cls) -> "Harness":
        """Make the environment where it is missing or outdated."""
        folder = platformdirs.user_cache_path("cacovid-tests") / "lmms-eval"
        harness, mark = cls(folder / "bin" / "python"), folder / "ready"
        digest = hashlib.sha256(PINS.read_bytes()).hexdigest()
        if not mark.is_file() or mark.read_text() != digest:
            _run(sys.executable, "-m", "venv", "--clear", str(folder))
            # torch first: DeepSpeed's build looks for it.
            harness._install("torch", "setuptools", "wheel")
            harness._install("--editable", str(ROOT), "lmms-eval")
            mark.write_text(digest)
        harness._install("--no-deps", "--no-build-isolation", "--editable", str(ROOT))
        return harness

    def _install(self, *what: str) -> None:
        options = ("--quiet", "--disable-pip-version-check", "--constraint", str(PINS))
        _run(str(self.python), "-m", "pip", "install", *options, *what)

    def evaluate(self, tasks: Path, out: Path, model: str, /, **arguments: object) -> Outcome:
        """Run the command on the task 'cacovid_table' in ``tasks``."""
        given = ",".join(f"{name}={value}" for name, value in arguments.items())
        command = [str(self.python), "-m", "cacovid.harness", "--model", model, "--model_args", given]
        command += [
            "--tasks",
            "cacovid_table",
            "--include_path",
            str(tasks),
            "--output_path",
            str(out),
            "--log_samples",
        ]
        own = {"HF_HOME": str(out / "hf"), "HF_HUB_OFFLINE": "1", "OPENAI_API_KEY": ""}
        environment = {name: value for name, value in os.environ.items() if name not in FOREIGN} | own
        done = subprocess.run(
            command, env=environment, cwd=tasks, capture_output=True, text=True, timeout=600, check=False
        )
        printed = done.stdout + done.stderr
        written = list(out.glob("**/*_results.json"))
        assert written, printed[-3000:]  # it exits with 0 whatever happens
        results = json.loads(written[0].read_text())
        samples = next(out.glob("**/*_samples_cacovid_table.jsonl")).read_text().splitlines()
        answers = sorted((json.loads(line) for line in samples), key=lambda each: each["doc_id"])
        accuracy = results["results"]["cacovid_table"]["accuracy,none"]
        return Outcome(accuracy, [each["filtered_resps"] for each in answers], printed)


def _run(*command: str) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip() and "WARNING" not in line] or [
            "pip says nothing"
        ]
        raise NotInstallable(f"lmms-eval cannot be installed: {' ... '.join(dict.fromkeys([lines[0], lines[-1]]))}")


if __name__ == "__main__":
    print(Harness.ready().python)  # noqa: T201
