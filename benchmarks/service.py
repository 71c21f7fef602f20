"""``make bench-serve``: the service under load, against a direct call, and through faults and updates.

Everything runs on this machine and over loopback, clients included: they take their share of the cores.
Retentions alternate from round to round, so that a drift of the machine's speed hits all of them.
"""

import itertools
import os
import signal
import socket
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import psutil
import torch
import typer
import urllib3

from benchmarks.load import Body, LoadClip, Outcomes, bounded_load, send, steady_load
from benchmarks.table import show
from benchmarks.timing import Spread, Work, alternating_rounds, seconds
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
WARM_UP = 5  # untold rounds of the overhead
_RECOVERY_S = 90.0


def main(
    policy: Annotated[
        str | None, typer.Option(help="policy folder; a fresh one without it (times do not depend on training)")
    ] = None,
    clients: Annotated[int, typer.Option(min=1, help="connections of the load")] = 4,
    requests: Annotated[int, typer.Option(min=1, help="requests of one round and retention")] = 60,
    rounds: Annotated[int, typer.Option(min=1, help="rounds")] = 5,
) -> None:
    """The service under load, against a direct call, and through faults and updates, printed as tables."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        first = policy or _fresh_policy(Path(folder) / "first", seed=0)
        second = _fresh_policy(Path(folder) / "second", seed=1)
        config = ServiceConfig.model_validate({"policies": {"first": first}, "media": {"max_replicas": 1}})
        port = free_port()
        with connected(None), running_service(config, HOST, port):
            bench = Bench(port, config, clients, requests, rounds)
            bench.load("a new video in every request, 8 frames, 288 video tokens", 8, fresh=True)
            bench.load("one known video, 64 frames, 2304 video tokens", 64, fresh=False)
            bench.overhead(first, "read by media replicas")
            deploy(config.model_copy(update={"media": config.media.model_copy(update={"place": "engine"})}))
            bench.overhead(first, "read by the engine")
            deploy(config)
            bench.killed_replica()
            bench.updates(second)


class Bench:
    """The parts, on one running service."""

    def __init__(self, port: int, config: ServiceConfig, clients: int, requests: int, rounds: int) -> None:
        self.url = f"http://{HOST}:{port}"
        self.config = config
        self.clients = clients
        self.requests = requests
        self.rounds = rounds
        self._seeds = itertools.cycle(split_seeds("development", 10_000))

    def load(self, title: str, frames: int, *, fresh: bool) -> None:
        """Throughput and latency at each retention."""
        known = self._draw()
        outcomes: dict[float, list[Outcomes]] = {retention: [] for retention in RETENTIONS}
        for number in range(self.rounds + 1):
            for retention in RETENTIONS:
                clips = [self._draw() if fresh else known for _ in range(self.requests)]
                bodies = [clip.body("first", retention, frames) for clip in clips]
                outcome = bounded_load(self.url, bodies, self.clients)
                if number:  # the first round warms up
                    outcomes[retention].append(outcome)
        rows = []
        for retention, rounds in outcomes.items():
            whole = _together(rounds)
            shares = [f"{1000 * whole.percentile(share):.0f}" for share in (0.5, 0.95, 0.99)]
            rows.append((f"{retention:.0%}", f"{whole.throughput:.1f}", *shares, whole.others()))
        show(
            f"{title}; {self.clients} clients, {self.rounds} rounds of {self.requests} requests",
            ("retention", "requests/s", "p50 ms", "p95 ms", "p99 ms", "other than 200"),
            rows,
        )

    def overhead(self, policy: str, videos: str) -> None:
        """One client: the same questions by a direct call of the library and through the service, in turn."""
        compressor = Compressor.from_pretrained(policy)
        outcomes, clip = Outcomes(), self._draw()
        with tempfile.TemporaryDirectory() as folder, urllib3.PoolManager(1) as pool:
            path = Path(folder) / "clip.mp4"

            def another() -> None:
                nonlocal clip
                clip = self._draw()
                path.write_bytes(clip.content)

            sides: dict[str, Work] = {
                "direct call of Compressor in one process": lambda: compressor(
                    path, clip.question, retention=0.1
                ).answer(max_new_tokens=4),
                "HTTP, ingress, decoder, engine": lambda: send(self.url, clip.body("first", 0.1), outcomes, pool),
            }
            alternating_rounds(sides, WARM_UP, before=another)
            times = alternating_rounds(sides, self.requests, before=another)
        if set(outcomes.statuses) != {200}:
            raise UserError(f"one client alone got {outcomes.others()}: see Serve's logs")
        rows = [(name, 1000 * Spread.of(taken).median) for name, taken in times.items()]
        rows.append(("difference", rows[1][1] - rows[0][1]))
        title = f"overhead at 10 %, one client, {self.requests} new videos each, {videos}, in turn"
        show(title, ("", "median ms"), [(name, f"{median_ms:.1f}") for name, median_ms in rows])

    def killed_replica(self) -> None:
        """kill -9 of the only engine replica under load."""
        with steady_load(self.url, self._next_body, self.clients) as outcomes:
            time.sleep(3)
            for process in _engines():
                os.kill(process.pid, signal.SIGKILL)
            killed = time.perf_counter()
            recovered = self._recovered(outcomes, killed)
            time.sleep(3)
        rows = (
            ("requests answered", str(outcomes.statuses[200])),
            ("refused with 503 and Retry-After", str(outcomes.statuses[503])),
            ("lost or another error", str(_failed(outcomes))),
            ("first answer after the kill", f"{recovered:.1f} s"),
        )
        show("kill -9 of the only engine replica under load", ("", ""), rows)

    def updates(self, policy: str) -> None:
        """Another policy in place, then other settings by new replicas, both under load."""
        policies = self.config.model_copy(update={"policies": {"first": policy}})
        settings = policies.model_copy(update={"engine": self.config.engine.model_copy(update={"max_batch": 4})})
        rows = [self._update("another policy", policies), self._update("other engine settings", settings)]
        columns = ("update", "took s", "answered", "failed", "longest gap s", "engine process")
        show("rolling updates under load", columns, rows)

    def _update(self, name: str, config: ServiceConfig) -> tuple[str, ...]:
        before = {process.pid for process in _engines()}
        with steady_load(self.url, self._next_body, self.clients) as outcomes:
            time.sleep(2)
            took = seconds(lambda: deploy(config))
            time.sleep(2)
        failed = outcomes.statuses.total() - outcomes.statuses[200]
        same = "kept" if before == {process.pid for process in _engines()} else "replaced"
        answered = outcomes.statuses[200]
        return name, f"{took:.1f}", str(answered), str(failed), f"{outcomes.longest_gap():.1f}", same

    def _next_body(self) -> Body:
        return self._draw().body("first", 0.1)

    def _draw(self) -> LoadClip:
        return LoadClip.draw(next(self._seeds))

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


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as free:
        free.bind((HOST, 0))
        return int(free.getsockname()[1])


if __name__ == "__main__":
    typer.run(main)
