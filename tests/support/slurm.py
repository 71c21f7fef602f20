"""SLURM on this machine: its controller and two nodes, each with CPUs enough for a run of the embedded model."""

import os
import pwd
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.head_node import BIN
from tests.support.ports import free_port
from tests.support.waiting import wait_until

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")


class Slurm:
    """Its commands, and the processes of its daemons."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = os.environ | {
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": f"{BIN}:{os.environ['PATH']}",
        }

    def run(self, *command: str) -> str:
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def job(self, number: str) -> Mapping[str, str]:
        """The job's fields, among them JobState, Restarts and ExitCode."""
        pairs = (field.partition("=") for field in self.run("scontrol", "show", "job", number, "--oneliner").split())
        return {name: value for name, _, value in pairs}


@contextmanager
def slurm(folder: Path) -> Iterator[Slurm]:
    """SLURM until the end of the block; skips the test where it is not installed."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]
    if missing or os.geteuid() != 0:
        pytest.skip(f"needs root and Debian's slurm-wlm and munge (missing: {missing})")
    for name in ("state", "spool", "logs"):
        (folder / name).mkdir(parents=True)
    key = folder / "key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o400)
    (folder / "slurm.conf").write_text(_configuration(folder))
    started = Slurm(folder)
    munge = ["munged", "--force", "--foreground", f"--key-file={key}"]
    munge += [f"--{name}={folder / name}" for name in ("socket", "pid-file", "log-file", "seed-file")]
    daemons = [munge, ["slurmctld", "-D"], ["slurmd", "-D", "-N", "n1"], ["slurmd", "-D", "-N", "n2"]]
    running: list[subprocess.Popen[bytes]] = []
    try:
        for command in daemons:
            running.append(_daemon(started, command))
            if command is munge:
                wait_until((folder / "socket").exists)
        wait_until(lambda: _idle_nodes(started) == 2)
        yield started
    finally:
        for process in reversed(running):
            process.terminate()
            process.wait()


def _daemon(started: Slurm, command: list[str]) -> "subprocess.Popen[bytes]":
    environment = started.environment | {"PATH": f"{started.environment['PATH']}:/usr/sbin"}
    with (started.folder / "logs" / f"{command[0]}-{command[-1].rpartition('/')[2]}").open("wb") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def _idle_nodes(started: Slurm) -> int:
    shown = ["sinfo", "--noheader", "--Node", "--format=%T"]
    done = subprocess.run(shown, env=started.environment, capture_output=True, text=True, check=False)
    return done.stdout.split().count("idle")


def _configuration(folder: Path) -> str:
    me = pwd.getpwuid(os.geteuid()).pw_name
    nodes = "\n".join(
        f"NodeName={name} NodeHostname=localhost NodeAddr=127.0.0.1 Port={free_port()} CPUs=4" for name in ("n1", "n2")
    )
    return f"""
ClusterName=test
SlurmctldHost=localhost
SlurmctldPort={free_port()}
SlurmUser={me}
SlurmdUser={me}
AuthType=auth/munge
AuthInfo=socket={folder}/socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
MpiDefault=none
{nodes}
PartitionName=all Nodes=n1,n2 Default=YES State=UP
"""
