"""The deployment that speaks HTTP."""

from collections.abc import Sequence

from fastapi import FastAPI
from prometheus_client import Metric
from ray import serve
from ray.serve.handle import DeploymentHandle

from serving.api.app import create_app
from serving.api.gate import Admission
from serving.api.keys import Keys
from serving.api.telemetry import Telemetry
from serving.config import ServiceConfig
from serving.logs import set_up_logs
from serving.page.routes import Sample
from serving.replicas.backend import ServeBackend


@serve.ingress()
class Ingress:
    """The HTTP side; see ``serving.api``."""

    def __init__(
        self,
        config: ServiceConfig,
        samples: Sequence[Sample],
        media: DeploymentHandle | None,
        engine: DeploymentHandle,
    ) -> None:
        set_up_logs(config.log_level)
        context = serve.get_replica_context()
        self._config = config
        self._samples = samples
        self._admission = Admission()
        self._telemetry = Telemetry(context.replica_id.unique_id)
        own = serve.get_deployment_handle(context.deployment, context.app_name)
        self._backend = ServeBackend(config, media, engine, own)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """What Serve runs as this replica's application."""
        keys = Keys.read(self._config.api.keys_file)
        return create_app(self._config, self._backend, keys, self._telemetry, self._admission, self._samples)

    async def drain(self) -> int:
        """Take no further requests; the number of those still held."""
        self._admission.draining = True
        return self._admission.held

    async def families(self) -> list[Metric]:
        """This replica's metrics."""
        return self._telemetry.families()
