"""An hour of video fits into little memory, with the same result as at once."""

import pytest

from benchmarks.compressed_video import compress
from benchmarks.long_video import measure
from benchmarks.served_video import serve

PEAK_MB = 300  # stated in docs/benchmarks.md and docs/serving.md


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_hour_at_one_frame_a_second_is_compressed_within_the_stated_memory() -> None:
    chunks, whole = measure(3600, [64, None], compress)
    assert chunks.tokens == whole.tokens == 3600 * 36
    assert chunks.kept == whole.kept
    assert chunks.peak_mb < PEAK_MB < whole.peak_mb


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_so_it_is_by_the_service() -> None:
    """That it keeps what the whole video at once keeps is held by tests/unit/serving/test_chunks.py."""
    (chunks,) = measure(3600, [64], serve)
    assert chunks.tokens == 3600 * 36
    assert chunks.peak_mb < PEAK_MB
