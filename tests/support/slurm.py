"""SLURM on this machine: its controller and two nodes, each with CPUs enough for a run of the embedded model."""

import os
import pwd
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.namespaces import Machine, machine
from tests.support.waiting import wait_until

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
NODES = ("n1", "n2")


class Slurm:
    """Its commands."""

    def __init__(self, place: Machine) -> None:
        self._place = place

    def run(self, *command: str) -> str:
        done = self._place.run(*command)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def job(self, number: str) -> Mapping[str, str]:
        """The job's fields, among them JobState, Restarts and ExitCode."""
        pairs = (field.partition("=") for field in self.run("scontrol", "show", "job", number, "--oneliner").split())
        return {name: value for name, _, value in pairs}


@contextmanager
def slurm(folder: Path) -> Iterator[Slurm]:
    """SLURM until the end of the block, on a machine apart; skips the test where it is not installed."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]
    if missing:
        pytest.skip(f"needs Debian's slurm-wlm and munge (missing: {missing})")
    for name in ("state", "spool", "logs"):
        (folder / name).mkdir(parents=True)
    (folder / "key").write_bytes(secrets.token_bytes(1024))
    (folder / "key").chmod(0o400)
    (folder / "slurm.conf").write_text(_configuration(folder))
    with machine({}, {"SLURM_CONF": f"{folder}/slurm.conf"}, folder / "logs") as place:
        files = [f"--{name}-file={folder}/{name}" for name in ("key", "pid", "log", "seed")]
        place.start("munged", "--force", "--foreground", f"--socket={folder}/socket", *files, log="munged")
        wait_until((folder / "socket").exists)
        place.start("slurmctld", "-D", log="slurmctld")
        for node in NODES:
            place.start("slurmd", "-D", "-N", node, log=node)
        sinfo = ["sinfo", "--noheader", "--Node", "--format=%T"]
        wait_until(lambda: place.run(*sinfo).stdout.split().count("idle") == len(NODES))
        yield Slurm(place)


def _configuration(folder: Path) -> str:
    me = pwd.getpwuid(os.geteuid()).pw_name
    nodes = "\n".join(
        f"NodeName={name} NodeHostname=localhost NodeAddr=127.0.0.1 Port={6820 + number} CPUs=4"
        for number, name in enumerate(NODES)
    )
    return f"""
ClusterName=test
SlurmctldHost=localhost
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
PartitionName=all Nodes={",".join(NODES)} Default=YES State=UP
"""
