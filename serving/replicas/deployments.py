"""The service's Ray Serve deployments.

    client -> proxy -> ingress (FastAPI) -> media: fetch and decode ---frames by reference---+
                          |                                                                  v
                          +--------------------------------------------------> engine: tower, policy, LLM

Queues and their bounds: each ingress holds ``api.max_in_flight`` requests; it and its handle to the engines let
``engine.waiting`` wait while every replica holds ``engine.ongoing``; the media handle likewise. A full
one answers 503 with Retry-After at once.
"""

from collections.abc import Sequence
from typing import Any

from ray import serve
from ray.serve import Application

from serving.config import REPLICA_GPU, EngineConfig, ServiceConfig
from serving.page.routes import Sample
from serving.replicas.engine import EngineReplica
from serving.replicas.ingress import Ingress
from serving.replicas.media import MediaReplica
from serving.schema import ENGINE, INGRESS, MEDIA


def build_application(config: ServiceConfig, samples: Sequence[Sample]) -> Application:
    """The application of ``config``: three deployments bound to each other, or two where engines read videos."""
    media = None
    if config.media.place == "replicas":
        media = serve.deployment(MediaReplica, name=MEDIA).options(**_media_options(config)).bind(config)
    # Policies are user_config alone (see serving.schema): replicas do not hold them in their arguments.
    fixed = config.model_copy(update={"policies": {}})
    engine = serve.deployment(EngineReplica, name=ENGINE).options(**_engine_options(config)).bind(fixed)
    bound: Application = (
        serve.deployment(Ingress, name=INGRESS).options(**_ingress_options(config)).bind(fixed, samples, media, engine)
    )
    return bound


def _media_options(config: ServiceConfig) -> dict[str, Any]:
    media = config.media
    ongoing = media.concurrent_jobs + 2
    return {
        **_replicas(media.min_replicas, media.max_replicas, media.concurrent_jobs),
        "max_ongoing_requests": ongoing,
        "max_queued_requests": media.waiting_jobs,
        "graceful_shutdown_timeout_s": media.job_timeout_s + 5,
        "ray_actor_options": {"num_cpus": media.cpus},
    }


def _engine_options(config: ServiceConfig) -> dict[str, Any]:
    engine = config.engine
    return {
        **_replicas(engine.min_replicas, engine.max_replicas, engine.target_ongoing),
        "user_config": {"policies": dict(config.policies)},  # serving.schema overrides it
        "max_ongoing_requests": engine.ongoing,
        "max_queued_requests": engine.waiting,
        "graceful_shutdown_timeout_s": engine.drain_s,
        "health_check_period_s": 5,
        "health_check_timeout_s": engine.health_s,
        **_engine_place(config.engine),
    }


def _engine_place(engine: EngineConfig) -> dict[str, Any]:
    """A replica's CPUs and GPUs. Where vLLM spans nodes, the replica and its first worker share the first bundle."""
    if not engine.vllm.spans_nodes or engine.kind != "vllm":
        return {"ray_actor_options": {"num_cpus": engine.cpus, "num_gpus": engine.gpus}}
    others = [{"GPU": 1.0}] * (engine.vllm.tensor_parallel_size - 1)
    return {
        "ray_actor_options": {"num_cpus": engine.cpus, "num_gpus": REPLICA_GPU},
        "placement_group_bundles": [{"CPU": engine.cpus, "GPU": 1.0}, *others],
        "placement_group_strategy": engine.vllm.placement,
    }


def _ingress_options(config: ServiceConfig) -> dict[str, Any]:
    api = config.api
    return {
        **_replicas(api.min_replicas, api.max_replicas, api.max_in_flight / 2),
        # Above our own bound, whose refusal has OpenAI's form; probes still come through.
        "max_ongoing_requests": 2 * api.max_in_flight + 64,
        "max_queued_requests": api.max_in_flight,
        "backpressure_config": {"status_code": 503, "retry_after_s": api.retry_after_s},
        "graceful_shutdown_timeout_s": api.request_timeout_s + 5,
        "ray_actor_options": {"num_cpus": api.cpus},
    }


def _replicas(least: int, most: int, target: float) -> dict[str, Any]:
    """Fixed or scaled by ongoing requests; replacements start before old replicas leave."""
    common = {"max_surge_percent": 100, "graceful_shutdown_wait_loop_s": 0.2}
    if least == most:
        return {"num_replicas": least, **common}
    scaling = {"min_replicas": least, "max_replicas": most, "target_ongoing_requests": target, "upscale_delay_s": 5}
    return {"autoscaling_config": scaling, **common}
