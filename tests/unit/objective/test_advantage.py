import pytest
import torch

from cacovid.objective.advantage import standardise
from cacovid.objective.memory import flatten
from cacovid.records import Mode, RolloutRecord, ScoredCombinations
from tests.support.made_records import make_input, make_record, scored


def record_of(*iterations: ScoredCombinations) -> RolloutRecord:
    item = make_input()
    return RolloutRecord("x", 0, 0, item, torch.zeros(24, 2), torch.zeros(4, 2), tuple(iterations))


def advantages(*iterations: ScoredCombinations) -> list[float]:
    return flatten([record_of(*iterations)], len(iterations)).advantage.tolist()


def expected(rewards: list[float]) -> list[float]:
    values = torch.tensor(rewards, dtype=torch.float64)
    return ((values - values.mean()) / (values.std(correction=0) + 1e-4)).tolist()


def test_token_and_frame_samples_are_standardised_apart():
    modes = [Mode.TOKEN, Mode.TOKEN, Mode.TOKEN, Mode.FRAME, Mode.FRAME]
    result = advantages(scored([1, 0, 0, 0.5, 0.25], modes))
    assert result[:3] == pytest.approx(expected([1, 0, 0]))
    assert result[3:] == pytest.approx(expected([0.5, 0.25]))


def test_the_content_sample_stands_with_the_token_samples():
    result = advantages(scored([1, 0, 0], [Mode.CONTENT, Mode.TOKEN, Mode.TOKEN]))
    assert result == pytest.approx(expected([1, 0, 0]))


def test_iterations_of_one_rate_share_a_group_and_those_of_another_do_not():
    modes = [Mode.TOKEN, Mode.TOKEN]
    memory = [scored([1, 0], modes, 0.1), scored([0, 0], modes, 0.1), scored([1, 0.9], modes, 0.2)]
    result = advantages(*memory)
    assert result[:4] == pytest.approx(expected([1, 0, 0, 0]))
    assert result[4:] == pytest.approx(expected([1, 0.9]))


def test_a_rate_whose_samples_are_all_right_teaches_nothing_beside_one_whose_are_all_wrong():
    modes = [Mode.TOKEN, Mode.TOKEN]
    record = record_of(scored([1, 1], modes, 0.2), scored([0, 0], modes, 0.1))
    assert not flatten([record], 2).informative()


def test_equal_rewards_give_exactly_zero():
    record = make_record(equal_rewards=True)
    memory = flatten([record], 3)
    assert memory.advantage.eq(0).all()
    assert not memory.informative().any()
    tenths = torch.full((6,), 0.1, dtype=torch.float64)  # the mean of six rounds to something else
    assert standardise(tenths, torch.zeros(6, dtype=torch.int64)).eq(0).all()


def test_only_the_memory_of_the_given_iterations_counts():
    modes = [Mode.TOKEN, Mode.TOKEN]
    record = record_of(scored([1, 1], modes), scored([1, 0], modes))
    assert not flatten([record], 1).informative()
    assert flatten([record], 2).informative()


def test_records_do_not_mix():
    records = [make_record(1), make_record(2, rates=(1 / 6,)), make_record(3)]
    together = flatten(records, 3)
    apart = torch.cat([flatten([record], 3).advantage for record in records])
    torch.testing.assert_close(together.advantage, apart)


def test_unused_group_numbers_do_no_harm():
    result = standardise(torch.tensor([1.0, 0.0]), torch.tensor([5, 5]))
    assert result.tolist() == pytest.approx(expected([1, 0]))
