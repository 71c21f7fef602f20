"""The service as Ray Serve's declarative configuration.

Policies stand in the engine's ``user_config`` and everything else in ``args``, because Serve tells the two
apart: it hands a new ``user_config`` to running replicas, and replaces replicas for new ``args``.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cacovid.errors import UserError
from cacovid.policy_folder import CARD
from serving.config import ServiceConfig

INGRESS, MEDIA, ENGINE = "ingress", "media", "engine"  # deployments
APPLICATION, ROUTE = "cacovid", "/"
_MARGIN_S = 30.0  # after which a request that the ingress should have answered is given up


def deploy_schema(config: ServiceConfig) -> dict[str, Any]:
    """Fields of ``ray.serve.schema.ServeDeploySchema`` for one service; where Serve listens is settled at its start."""
    application = {
        "name": APPLICATION,
        "route_prefix": ROUTE,
        "import_path": "serving.application:build",
        "args": config.model_dump(mode="json", exclude={"policies"}, exclude_defaults=True),
        "deployments": [{"name": ENGINE, "user_config": engine_user_config(config)}],
    }
    return {"applications": [application]}


def http_options(config: ServiceConfig, host: str, port: int) -> dict[str, Any]:
    """Of Serve's proxy, which ends even a request whose ingress replica hangs or does not come up."""
    patience = config.api.body_timeout_s + config.api.request_timeout_s + _MARGIN_S
    return {"host": host, "port": port, "request_timeout_s": patience}


def engine_user_config(config: ServiceConfig) -> dict[str, Any]:
    """The policies, and a digest of their files, so that a policy trained anew in the same folder is noticed."""
    from cacovid.policy.files import WEIGHTS  # not above: reading a configuration needs no torch

    digest = hashlib.blake2b(digest_size=16)
    for folder in config.policies.values():
        for name in (CARD, WEIGHTS):
            digest.update((Path(folder) / name).read_bytes())
    return {"policies": dict(config.policies), "digest": digest.hexdigest()}


def service_values(schema: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Plain values of :class:`ServiceConfig` from such a configuration with one application.

    Raises:
        UserError: several applications, or one of another shape.
    """
    applications = schema["applications"]
    if not isinstance(applications, list) or len(applications) != 1 or not isinstance(applications[0], dict):
        raise UserError(f"{where} does not hold one application: give one, or use `serve deploy`")
    values: dict[str, Any] = dict(applications[0].get("args") or {})
    for deployment in applications[0].get("deployments") or []:
        if deployment.get("name") == ENGINE and "user_config" in deployment:
            values["policies"] = deployment["user_config"]["policies"]
    return values
