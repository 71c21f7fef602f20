"""The service's configuration: each field's default and meaning stand beside it.

It fills a file for ``cacovid serve --config`` (YAML or TOML) and ``args`` of ``serving/config.yaml`` for
``serve deploy``.
"""

import ipaddress
import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from cacovid.config import Count, Fraction, ModelConfig, Positive, Section
from cacovid.limits import MAX_FRAMES

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
MODEL_ID = r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}"
MIB, GIB = 1 << 20, 1 << 30
REPLICA_GPU = 0.1  # share of its first GPU that a replica whose vLLM spans nodes takes from vLLM's worker there


def _network(text: str) -> str:
    ipaddress.ip_network(text)  # raises ValueError, which pydantic reports
    return text


def _host(text: str) -> str:
    """An exact host, 'host:port', or '*'."""
    if text != "*" and not re.fullmatch(r"[a-z0-9.-]+(:\d{1,5})?", text):
        raise ValueError(f"{text!r} is no lower-case host or host:port, e.g. 'cdn.example.org'")
    return text


class MediaConfig(Section):
    """Where videos may come from, how large they may be, and the processes that read them."""

    place: Literal["replicas", "engine"] = Field(
        "replicas",
        description="who starts those processes: replicas that scale by themselves, or each engine replica on its own "
        "machine, where no frame crosses Ray and an answer comes sooner",
    )
    https_hosts: tuple[Annotated[str, AfterValidator(_host)], ...] = Field(
        (), description="exact hosts ('cdn.example.org', 'store:8443') that https URLs may name; '*': any; (): no https"
    )
    private_networks: tuple[Annotated[str, AfterValidator(_network)], ...] = Field(
        (), description="networks that may be fetched from although their addresses are not global, e.g. '10.1.2.0/24'"
    )
    ca_file: str | None = Field(None, description="PEM bundle to verify https with; None: the system's")
    file_root: str | None = Field(None, description="folder below which file: URLs may lie; None: no file URLs")
    max_bytes: Positive = Field(32 * MIB, description="largest video file")
    max_duration_s: Seconds = Field(1_200.0, description="longest video")
    max_pixels: Positive = Field(3840 * 2160, description="largest frame, in pixels")
    max_source_frames: Positive = Field(72_000, description="most frames a video file may hold")
    max_frames: Annotated[Positive, Field(le=MAX_FRAMES)] = Field(
        64, description="most frames sampled; num_frames and fps are clamped to it"
    )
    chunk_frames: Positive | None = Field(
        None, description="a video of more frames is decoded, encoded and scored so many at a time; None: at once"
    )
    max_decoded_bytes: Positive = Field(512 * MIB, description="most bytes of sampled frames of one video")
    max_redirects: Count = Field(3, description="redirects followed; each is checked like the first URL")
    connect_timeout_s: Seconds = Field(5.0, description="to connect, and between two reads")
    job_timeout_s: Seconds = Field(30.0, description="to fetch and decode one video; then its process is killed")
    job_memory_bytes: Positive = Field(1024 * MIB, description="memory of one decoding process")
    job_cpu_s: Positive = Field(30, description="CPU seconds of one decoding process")
    concurrent_jobs: Positive = Field(2, description="videos read at once by one replica")
    waiting_jobs: Count = Field(32, description="videos that wait for a process of one replica; more answer 503")
    min_replicas: Positive = Field(1, description="media replicas at rest")
    max_replicas: Positive = Field(2, description="media replicas under load")
    cpus: Annotated[float, Field(ge=0)] = Field(0.25, description="CPUs that Ray reserves for one media replica")


class VllmConfig(Section):
    """What ``engine.kind: vllm`` adds: how vLLM runs beside tower and policies of a replica."""

    gpu_memory_utilization: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.6, description="share of the GPU that vLLM takes; tower, policies and feature cache live in the rest"
    )
    kv_cache_bytes: Positive | None = Field(
        None, description="memory for vLLM's key-value cache; None: what is left of its share (on CPUs: 1 GiB)"
    )
    tensor_parallel_size: Positive = Field(1, description="GPUs that share the language model of one replica")
    placement: Literal["node", "PACK", "SPREAD"] = Field(
        "node", description="where those GPUs lie: on one node, or, as Ray's placement groups have it, on several"
    )
    max_sequences: Positive = Field(64, description="answers that vLLM draws at once; others wait inside it")
    max_step_tokens: Positive = Field(8_192, description="tokens of one step; longer prompts are read in chunks")
    prefix_caching: bool = Field(True, description="share the key-value cache of prompts that begin alike")
    start_s: Seconds = Field(600.0, description="how long vLLM may take to start")

    @property
    def spans_nodes(self) -> bool:
        """Whether vLLM's workers are Ray's actors."""
        return self.tensor_parallel_size > 1 and self.placement != "node"


def _server(text: str) -> str:
    """Refuses what is no address of an HTTP server."""
    if not re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#]*)?", text):
        raise ValueError(f"{text!r} is no address of a server: write e.g. 'http://127.0.0.1:8001'")
    return text


class UpstreamConfig(Section):
    """What ``engine.kind: upstream`` adds: a vLLM server elsewhere that answers compressed prompts."""

    url: Annotated[str, AfterValidator(_server)] | None = Field(
        None, description="the server, started with --enable-prompt-embeds, e.g. 'http://127.0.0.1:8001'"
    )
    model: str = Field("", description="its name of the model; '': the first that it lists")
    key_file: str | None = Field(None, description="file with its bearer key; None: it asks for none")
    connect_timeout_s: Seconds = Field(5.0, description="to connect; between two tokens engine.stall_s")


class EngineConfig(Section):
    """The replicas that hold Video-LLM and policies."""

    kind: Literal["transformers", "vllm", "upstream"] = Field(
        "transformers", description="what answers; 'vllm' needs cacovid[vllm], 'upstream' a vLLM server elsewhere"
    )
    vllm: VllmConfig = VllmConfig()
    upstream: UpstreamConfig = UpstreamConfig()
    default_retention: Fraction = Field(0.1, description="share of video tokens kept where a request names none")
    default_max_tokens: Positive = Field(128, description="longest answer where a request names none")
    max_tokens: Positive = Field(1_024, description="longest answer that a request may ask for")
    max_prompt_tokens: Positive = Field(
        65_536, description="longest prompt before compression; the model has its cap too"
    )
    max_batch: Positive = Field(16, description="requests answered together")
    max_batch_tokens: Positive = Field(65_536, description="prompt and answer tokens of one batch, padding included")
    batch_wait_ms: Annotated[float, Field(ge=0)] = Field(
        0.0, description="how long an idle engine waits for others before it begins; later ones join anyway"
    )
    feature_cache_bytes: Count = Field(256 * MIB, description="memory for the towers' output of recent videos; 0: none")
    waiting: Positive = Field(64, description="requests of all clients that wait for a replica; more answer 503")
    ongoing: Positive = Field(16, description="requests that one replica holds at once; long videos: half of them")
    target_ongoing: Annotated[float, Field(gt=0)] = Field(6.0, description="ongoing requests a replica is scaled for")
    min_replicas: Positive = Field(1, description="engine replicas at rest")
    max_replicas: Positive = Field(1, description="engine replicas under load; one for each GPU or spare core")
    retries: Count = Field(2, description="times a request is sent again when its replica died")
    stall_s: Seconds = Field(120.0, description="an engine that draws no token for so long makes its replica unhealthy")
    health_s: Seconds = Field(
        30.0, description="a replica that three times in a row says nothing of its health for so long is replaced"
    )
    drain_s: Seconds = Field(60.0, description="how long a leaving replica may finish its requests")
    threads: Positive = Field(1, description="torch threads of one replica on CPU")
    cpus: Annotated[float, Field(ge=0)] = Field(0.5, description="CPUs that Ray reserves for one replica")
    gpus: Annotated[float, Field(ge=0)] = Field(0.0, description="GPUs of one replica")


class ApiConfig(Section):
    """The HTTP side."""

    keys_file: str | None = Field(None, description="file of bearer keys, one a line, '#' comments; None: no keys")
    hosts: tuple[str, ...] = Field(
        ("localhost", "127.0.0.1", "[::1]"),
        description="without keys: names by which clients may call this service, against DNS rebinding; '*': any",
    )
    max_body_bytes: Positive = Field(48 * MIB, description="largest request body; base64 adds a third to a video")
    max_held_bytes: Positive = Field(
        256 * MIB, description="bodies of all requests that one ingress replica holds; more answer 503"
    )
    body_timeout_s: Seconds = Field(30.0, description="to receive a request body")
    request_timeout_s: Seconds = Field(120.0, description="to answer, or to stream the whole answer")
    max_in_flight: Positive = Field(128, description="requests that one ingress replica holds; more answer 503")
    max_text_chars: Positive = Field(32_768, description="characters of all text in one request")
    max_messages: Positive = Field(64, description="messages of one request")
    max_videos: Positive = Field(4, description="videos of one request")
    max_answers: Positive = Field(8, description="answers drawn for one request, its n")
    retry_after_s: Positive = Field(2, description="what a full queue answers in Retry-After")
    page: bool = Field(True, description="serve the page at /")
    samples: Count = Field(4, description="sample clips offered on the page (embedded model only)")
    min_replicas: Positive = Field(1, description="ingress replicas at rest")
    max_replicas: Positive = Field(2, description="ingress replicas under load")
    cpus: Annotated[float, Field(ge=0)] = Field(0.1, description="CPUs that Ray reserves for one ingress replica")


class ServiceConfig(Section):
    """A whole service: one Video-LLM, any number of policies for it."""

    model: ModelConfig = ModelConfig()
    model_id: str = Field("", description="name of the model without a policy; '': the last part of its path")
    policies: dict[str, str] = Field({}, description="model id -> policy folder; a request's model selects it")
    media: MediaConfig = MediaConfig()
    engine: EngineConfig = EngineConfig()
    api: ApiConfig = ApiConfig()
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="of our own log lines")

    @property
    def base_id(self) -> str:
        """The model id without a policy."""
        return self.model_id or self.model.path.rstrip("/").rpartition("/")[2]

    @field_validator("policies")
    @classmethod
    def _named(cls, policies: dict[str, str]) -> dict[str, str]:
        for name in policies:
            if not re.fullmatch(MODEL_ID, name):
                raise ValueError(f"policy id {name!r}: use letters, digits and ._:/- only")
        return policies

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.base_id in self.policies:
            raise ValueError(f"policy id {self.base_id!r} is the model's own id: choose another, or set model_id")
        parallel = self.engine.vllm.tensor_parallel_size
        if self.engine.kind == "vllm" and parallel > 1 and self.engine.gpus != parallel:
            raise ValueError(
                f"engine.vllm.tensor_parallel_size={parallel} needs engine.gpus={parallel}, not {self.engine.gpus:g}"
            )
        if self.engine.default_max_tokens > self.engine.max_tokens:
            raise ValueError("engine.default_max_tokens exceeds engine.max_tokens: lower it")
        if (self.engine.kind == "upstream") != (self.engine.upstream.url is not None):
            raise ValueError("engine.upstream.url belongs to engine.kind 'upstream': give both or neither")
        if self.api.max_body_bytes > self.api.max_held_bytes:
            raise ValueError("api.max_body_bytes exceeds api.max_held_bytes: raise the latter")
        for name, section in (("media", self.media), ("engine", self.engine), ("api", self.api)):
            if section.min_replicas > section.max_replicas:
                raise ValueError(f"{name}.min_replicas exceeds {name}.max_replicas: swap them")
        if self.model.num_frames > self.media.max_frames:
            raise ValueError(f"model.num_frames={self.model.num_frames} exceeds media.max_frames: raise the latter")
        return self
