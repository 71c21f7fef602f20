"""The service that most tests of the API ask."""

from collections.abc import Iterator

import pytest

from tests.support.serving_server import Running, running, service_config


@pytest.fixture(scope="module")
def service() -> Iterator[Running]:
    """Without the page."""
    with running(service_config(api={"page": False})) as running_service:
        yield running_service


@pytest.fixture(scope="module")
def client(service):
    """OpenAI's own, of that service."""
    return service.client()
