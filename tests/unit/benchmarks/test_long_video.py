"""An hour of video fits into little memory, with the same result as at once."""

import pytest

from benchmarks.long_video import measure

PEAK_MB = 300  # stated in docs/benchmarks.md


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_hour_at_one_frame_a_second_is_compressed_within_the_stated_memory() -> None:
    chunks, whole = measure(3600, [64, None])
    assert chunks.tokens == whole.tokens == 3600 * 36
    assert chunks.kept == whole.kept
    assert chunks.peak_mb < PEAK_MB < whole.peak_mb
