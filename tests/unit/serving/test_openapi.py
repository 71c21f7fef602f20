"""schemathesis sends what the OpenAPI description allows, and what it does not: never a 5xx."""

import json

import httpx2 as httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from serving.api.app import create_app
from serving.api.gate import Admission
from serving.api.keys import Keys
from serving.api.telemetry import Telemetry
from serving.config import ServiceConfig
from tests.support.serving_server import KEY, POLICY
from tests.support.serving_videos import data_url, jpeg
from tests.support.waiting import PATIENCE_S, get
from tests.unit.serving.test_api import messages

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


class NoBackend:
    """Nothing is asked of it: the description alone is wanted."""


description_only = create_app(
    ServiceConfig(api={"page": False}), NoBackend(), Keys([KEY]), Telemetry("none"), Admission()
)
schema = schemathesis.openapi.from_dict(description_only.openapi())


@schema.parametrize()
@settings(max_examples=25, suppress_health_check=list(HealthCheck))
def test_no_request_that_the_description_allows_or_forbids_breaks_the_service(case, service):
    headers = {"Authorization": f"Bearer {KEY}"}
    case.call_and_validate(base_url=service.url, headers=headers, checks=CHECKS, timeout=PATIENCE_S)


def test_the_description_has_every_route_and_the_errors(service):
    description = get(f"{service.url}/openapi.json").json()
    assert set(description["paths"]) == {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/compress",
        "/v1/models",
        "/metrics",
        "/healthz",
        "/readyz",
    }
    assert set(description["paths"]["/v1/compress"]["post"]["responses"]) >= {"200", "401", "404", "422", "503"}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/compress"])
def test_a_valid_answer_has_the_described_form(service, path):
    """The generated requests seldom hold a readable video, so that the good case is checked by hand."""
    description = get(f"{service.url}/openapi.json").json()
    body = {"model": POLICY, "messages": messages(url=data_url(jpeg(), "video/jpeg"))}
    answer = httpx.post(service.url + path, json=body, headers={"Authorization": f"Bearer {KEY}"}, timeout=PATIENCE_S)
    assert answer.status_code == 200
    name = description["paths"][path]["post"]["responses"]["200"]["content"]["application/json"]["schema"]["$ref"]
    required = description["components"]["schemas"][name.rpartition("/")[2]]
    assert set(answer.json()) == set(required["properties"]), json.dumps(answer.json())[:300]
