import pytest

from cacovid.config import SamplingConfig
from cacovid.records import Mode
from cacovid.sampling.adaptive_rate import adapt_rate
from tests.support.made_records import scored

CONFIG = SamplingConfig(rate=0.04, rate_min=0.03, rate_max=0.1)


def after(*rewards: float, rate: float = 0.04) -> float:
    return adapt_rate(rate, [scored(list(rewards), [Mode.TOKEN] * len(rewards))], CONFIG)


@pytest.mark.parametrize(
    ("rewards", "rate", "expected"),
    [
        ((1, 1, 1, 0.5), 0.08, 0.04),  # mean 0.875 halves
        ((1, 1, 1, 0.49), 0.08, 0.08),
        ((0, 0, 0, 0.5), 0.04, 0.08),  # mean 0.125 doubles
        ((0, 0, 0, 0.51), 0.04, 0.04),
        ((1, 1, 1, 1), 0.04, 0.03),  # bounded below
        ((0, 0, 0, 0), 0.08, 0.1),  # bounded above
    ],
)
def test_rate_follows_the_mean_token_reward(rewards, rate, expected):
    assert after(*rewards, rate=rate) == pytest.approx(expected)


def test_only_token_samples_count_and_all_iterations_do():
    memory = [
        scored([1, 1, 0, 0], [Mode.TOKEN, Mode.TOKEN, Mode.FRAME, Mode.CONTENT]),
        scored([0, 0], [Mode.TOKEN, Mode.TOKEN]),
    ]
    assert adapt_rate(0.08, memory[:1], CONFIG) == pytest.approx(0.04)
    assert adapt_rate(0.08, memory, CONFIG) == pytest.approx(0.08)


def test_the_first_iteration_keeps_the_rate():
    assert adapt_rate(0.04, [], CONFIG) == 0.04
