"""The service in this process behind a real socket, for tests that need no Ray."""

import asyncio
import atexit
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any

import openai
import uvicorn

from cacovid.config import TrainConfig
from cacovid.models.adapter import VideoLLM
from cacovid.models.loading import load_video_llm
from cacovid.policy.build import policy_for
from serving.answerers import answerer_for
from serving.api.app import create_app
from serving.api.gate import Admission
from serving.api.keys import Keys
from serving.api.telemetry import Telemetry
from serving.backend import Backend
from serving.config import ServiceConfig
from serving.engine.engine import Engine
from serving.page.routes import Sample
from tests.support.local_backend import LocalBackend
from tests.support.waiting import PATIENCE_S

KEY = "test-key-0123456789abcdef"
POLICY = "trained"
BASE = "embedded"


@cache
def embedded_llm() -> VideoLLM:
    return load_video_llm(ServiceConfig().model)


@cache
def policy_folder(seed: int = 0) -> str:
    """A fresh policy for the embedded model, saved."""
    folder = mkdtemp(prefix="cacovid-policy-")
    atexit.register(rmtree, folder)
    policy_for(embedded_llm(), TrainConfig(run={"seed": seed})).save_pretrained(folder)
    return folder


def service_config(**sections: Any) -> ServiceConfig:
    """The embedded model with one policy; sections as dicts."""
    return ServiceConfig.model_validate({"policies": {POLICY: policy_folder()}} | sections)


@dataclass
class Running:
    """A service that listens."""

    url: str
    config: ServiceConfig
    telemetry: Telemetry
    admission: Admission
    backend: Backend

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def client(self, key: str = KEY) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=PATIENCE_S)


def _died() -> None:
    raise AssertionError("the engine died")


@contextmanager
def running(config: ServiceConfig, samples: Sequence[Sample] = (), keys: Sequence[str] = (KEY,)) -> Iterator[Running]:
    """Serve ``config`` on a free port of loopback until the block ends."""
    # Another engine takes the language model's layers away: not from the one that other tests share.
    shared = config.engine.kind == "transformers" and config.model == ServiceConfig().model
    llm = embedded_llm() if shared else load_video_llm(config.model)
    engine = Engine(llm, config.engine, config.base_id, answerer_for(llm, config.engine, _died))
    engine.load_policies(config.policies)
    telemetry, admission = Telemetry("test"), Admission()
    backend = LocalBackend(engine, config)
    app = create_app(config, backend, Keys(keys), telemetry, admission, samples)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()  # requests that come before the server is up wait
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))

    async def serve() -> None:
        backend.start()
        try:
            await server.serve(sockets=[listener])
        finally:
            await backend.stop()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    try:
        yield Running(f"http://127.0.0.1:{listener.getsockname()[1]}", config, telemetry, admission, backend)
    finally:
        server.should_exit = True
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), "the service did not end"


def write_keys(folder: Path, *keys: str) -> str:
    path = folder / "keys.txt"
    path.write_text("# keys of the tests\n" + "\n".join(keys) + "\n")
    return str(path)
