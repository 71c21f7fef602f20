"""``make bench-serve``: the service under load, against a direct call, and through faults and updates.

Everything runs on this machine and over loopback, clients included: they take their share of the cores.
Retentions alternate from round to round, so that a drift of the machine's speed hits all of them.
"""

import argparse
import itertools
import os
import signal
import socket
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import torch
import urllib3
from rich.console import Console
from rich.table import Table

from benchmarks.load import Body, LoadClip, Outcomes, bounded_load, median_ms, send, steady_load
from cacovid.compressor import Compressor
from cacovid.config import TrainConfig
from cacovid.config_files import with_overrides
from cacovid.embedded.splits import split_seeds
from cacovid.errors import UserError
from cacovid.models.loading import load_video_llm
from cacovid.policy.build import policy_for
from cluster.ray_cluster import connected
from serving.config import ServiceConfig
from serving.running import deploy, running_service

RETENTIONS = (0.25, 0.10, 1.0)
HOST = "127.0.0.1"
ENGINE_PROCESS = "ServeReplica:cacovid:engine"
_RECOVERY_S = 90.0


def main() -> None:
    """Run all parts and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--policy", help="policy folder; a fresh one without it (times do not depend on training)")
    parser.add_argument("--clients", type=int, default=4, help="connections of the load")
    parser.add_argument("--requests", type=int, default=60, help="requests of one round and retention")
    parser.add_argument("--rounds", type=int, default=5, help="rounds")
    options = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=120)
    with tempfile.TemporaryDirectory() as folder:
        first = options.policy or _fresh_policy(Path(folder) / "first", seed=0)
        second = _fresh_policy(Path(folder) / "second", seed=1)
        config = ServiceConfig.model_validate({"policies": {"first": first}, "media": {"max_replicas": 1}})
        port = _free_port()
        with connected(None), running_service(config, HOST, port):
            bench = Bench(f"http://{HOST}:{port}", port, config, console, options.clients)
            bench.load("a new video in every request, 8 frames, 288 video tokens", 8, options, fresh=True)
            bench.load("one known video, 64 frames, 2304 video tokens", 64, options, fresh=False)
            bench.overhead(first)
            bench.killed_replica()
            bench.updates(second)


class Bench:
    """The parts, on one running service."""

    def __init__(self, url: str, port: int, config: ServiceConfig, console: Console, clients: int) -> None:
        self.url = url
        self.port = port
        self.config = config
        self.console = console
        self.clients = clients
        self._seeds = itertools.cycle(split_seeds("development", 10_000))

    def load(self, title: str, frames: int, options: argparse.Namespace, *, fresh: bool) -> None:
        """Throughput and latency at each retention."""
        known = LoadClip.draw(next(self._seeds))
        outcomes: dict[float, list[Outcomes]] = {retention: [] for retention in RETENTIONS}
        for number in range(options.rounds + 1):
            for retention in RETENTIONS:
                clips = [LoadClip.draw(next(self._seeds)) if fresh else known for _ in range(options.requests)]
                bodies = [clip.body("first", retention, frames) for clip in clips]
                outcome = bounded_load(self.url, bodies, self.clients)
                if number:  # the first round warms up
                    outcomes[retention].append(outcome)
        table = _table(
            f"{title}; {options.clients} clients, {options.rounds} rounds of {options.requests} requests",
            "retention",
            "requests/s",
            "p50 ms",
            "p95 ms",
            "p99 ms",
            "other than 200",
        )
        for retention, rounds in outcomes.items():
            whole = _together(rounds)
            shares = [f"{1000 * whole.percentile(share):.0f}" for share in (0.5, 0.95, 0.99)]
            table.add_row(f"{retention:.0%}", f"{whole.throughput:.1f}", *shares, whole.others())
        self._show(table)

    def overhead(self, policy: str, requests: int = 60) -> None:
        """One client: the same questions by a direct call of the library and through the service, in turn."""
        compressor = Compressor.from_pretrained(policy)
        direct: list[float] = []
        outcomes = Outcomes()
        with tempfile.TemporaryDirectory() as folder, urllib3.PoolManager(1) as pool:
            path = Path(folder) / "clip.mp4"
            for number in range(requests + 5):
                clip = LoadClip.draw(next(self._seeds))
                path.write_bytes(clip.content)
                started = time.perf_counter()
                compressor(path, clip.question, retention=0.1).answer(max_new_tokens=4)
                if number >= 5:
                    direct.append(time.perf_counter() - started)
                send(self.url, clip.body("first", 0.1), outcomes if number >= 5 else Outcomes(), pool)
        table = _table(f"overhead at 10 %, one client, {requests} new videos each, in turn", "", "median ms")
        table.add_row("direct call of Compressor in one process", f"{median_ms(direct):.1f}")
        table.add_row("HTTP, ingress, media process, engine", f"{median_ms(outcomes.seconds):.1f}")
        table.add_row("difference", f"{median_ms(outcomes.seconds) - median_ms(direct):.1f}")
        self._show(table)

    def killed_replica(self) -> None:
        """kill -9 of the only engine replica under load."""
        with steady_load(self.url, self._next_body, self.clients) as outcomes:
            time.sleep(3)
            for process in _engines():
                os.kill(process.pid, signal.SIGKILL)
            killed = time.perf_counter()
            recovered = self._recovered(outcomes, killed)
            time.sleep(3)
        table = _table("kill -9 of the only engine replica under load", "", "")
        table.add_row("requests answered", str(outcomes.statuses[200]))
        table.add_row("refused with 503 and Retry-After", str(outcomes.statuses[503]))
        table.add_row("lost or another error", str(_failed(outcomes)))
        table.add_row("first answer after the kill", f"{recovered:.1f} s")
        self._show(table)

    def updates(self, policy: str) -> None:
        """Another policy in place, then other settings by new replicas, both under load."""
        table = _table(
            "rolling updates under load", "update", "took s", "answered", "failed", "longest gap s", "engine process"
        )
        policies = self.config.model_copy(update={"policies": {"first": policy}})
        settings = policies.model_copy(update={"engine": self.config.engine.model_copy(update={"max_batch": 4})})
        for name, config in (("another policy", policies), ("other engine settings", settings)):
            before = {process.pid for process in _engines()}
            with steady_load(self.url, self._next_body, self.clients) as outcomes:
                time.sleep(2)
                started = time.perf_counter()
                deploy(config, HOST, self.port)
                took = time.perf_counter() - started
                time.sleep(2)
            same = "kept" if before == {process.pid for process in _engines()} else "replaced"
            table.add_row(
                name,
                f"{took:.1f}",
                str(outcomes.statuses[200]),
                str(outcomes.statuses.total() - outcomes.statuses[200]),
                f"{outcomes.longest_gap():.1f}",
                same,
            )
        self._show(table)

    def _show(self, table: Table) -> None:
        """The title on a line of its own, which a table would break to its width."""
        title, table.title = table.title, None
        self.console.print(f"\n{title}", table, sep="\n", highlight=False)

    def _next_body(self) -> Body:
        return LoadClip.draw(next(self._seeds)).body("first", 0.1)

    def _recovered(self, outcomes: Outcomes, killed: float) -> float:
        """Seconds until the first answer after ``killed`` that the dead replica cannot have given."""
        while time.perf_counter() - killed < _RECOVERY_S:
            time.sleep(0.05)
            # An answer that had left the replica may still arrive within some milliseconds.
            later = [moment - killed for moment in list(outcomes.answered_at) if moment > killed + 0.25]
            if later:
                return min(later)
        raise UserError(f"no answer within {_RECOVERY_S:.0f} s after the replica was killed: see Serve's logs")


def _together(rounds: Sequence[Outcomes]) -> Outcomes:
    whole = Outcomes()
    for each in rounds:
        whole.statuses += each.statuses
        whole.seconds += each.seconds
        whole.elapsed_s += each.elapsed_s
    return whole


def _failed(outcomes: Outcomes) -> int:
    return outcomes.statuses.total() - outcomes.statuses[200] - outcomes.statuses[503]


def _engines() -> list[psutil.Process]:
    """Engine replicas below this process."""
    return [
        process
        for process in psutil.Process().children(recursive=True)
        if process.is_running() and ENGINE_PROCESS in " ".join(process.cmdline())
    ]


def _fresh_policy(folder: Path, seed: int) -> str:
    config = with_overrides(TrainConfig(), {"run.seed": seed})
    policy_for(load_video_llm(config.model), config).save_pretrained(folder)
    return str(folder)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind((HOST, 0))
        return int(free.getsockname()[1])


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title)
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left")
    return table


if __name__ == "__main__":
    main()
