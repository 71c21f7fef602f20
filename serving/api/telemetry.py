"""Prometheus metrics of the HTTP side, which sees every stage of every request."""

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.registry import Collector

from serving.engine.records import Report

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)


class Telemetry:
    """One replica's metrics; its name is a label, so that the replicas' series stay apart."""

    def __init__(self, replica: str) -> None:
        self._replica = replica
        self.registry = CollectorRegistry()
        self._requests = self._counter("requests", "answered requests", "route", "status")
        self._errors = self._counter("errors", "refused or failed requests by reason", "code")
        self._video = self._counter("video_tokens", "video tokens before ('in') and after ('kept') compression", "part")
        self._prompt = self._counter("prompt_tokens", "prompt tokens before and after compression", "part")
        self._completion = self._counter("completion_tokens", "tokens of answers")
        self._stage = Histogram(
            "cacovid_stage_seconds",
            "time of each stage of a request",
            ("replica", "stage"),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._total = Histogram(
            "cacovid_request_seconds",
            "from arrival to the whole answer",
            ("replica", "route"),
            buckets=_SECONDS,
            registry=self.registry,
        )
        gauge = Gauge("cacovid_in_flight", "requests held, queued ones included", ("replica",), registry=self.registry)
        self.in_flight = gauge.labels(replica)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """A response has been sent."""
        self._requests.labels(self._replica, route, str(status)).inc()
        self._total.labels(self._replica, route).observe(seconds)

    def refused(self, code: str) -> None:
        """A request was refused or failed."""
        self._errors.labels(self._replica, code).inc()

    def used(self, report: Report, completion_tokens: int) -> None:
        """A request was served."""
        for part, video, prompt in (
            ("in", report.video_tokens, report.prompt_tokens),
            ("kept", report.video_tokens_kept, report.prompt_tokens_kept),
        ):
            self._video.labels(self._replica, part).inc(video)
            self._prompt.labels(self._replica, part).inc(prompt)
        self._completion.labels(self._replica).inc(completion_tokens)
        for stage, seconds in vars(report.timings).items():
            self._stage.labels(self._replica, stage).observe(seconds)

    def families(self) -> list[Metric]:
        """All metrics of this replica."""
        return list(self.registry.collect())

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(f"cacovid_{name}", meaning, ("replica", *labels), registry=self.registry)


class _Merged(Collector):
    """Families of several replicas as one set."""

    def __init__(self, replicas: Iterable[Iterable[Metric]]) -> None:
        self._families: dict[str, Metric] = {}
        for families in replicas:
            for family in families:
                if family.name in self._families:
                    self._families[family.name].samples += family.samples
                else:
                    self._families[family.name] = family

    def collect(self) -> Iterator[Metric]:
        return iter(self._families.values())


def exposition(replicas: Iterable[Iterable[Metric]]) -> bytes:
    """Prometheus' text format of all replicas together."""
    registry = CollectorRegistry()
    registry.register(_Merged(replicas))
    return generate_latest(registry)
