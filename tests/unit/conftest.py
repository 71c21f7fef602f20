"""What several files of unit tests start from; models are imported by those that ask for one."""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from cacovid.models.adapter import VideoLLM
    from serving.engine.engine import Engine


@pytest.fixture
def llm() -> "VideoLLM":
    """The tiny random Video-LLM of ``engine``."""
    from tests.support.serving_engine import KIND, tiny_llm

    return tiny_llm(KIND)


@pytest.fixture
def engine() -> "Engine":
    """An engine with one policy, 'trained', and the model alone, 'plain'."""
    from tests.support.serving_engine import engine_of

    return engine_of()
