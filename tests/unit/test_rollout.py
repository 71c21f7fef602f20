"""A rollout is a function of (seed, step, item, weights) and rewards what the model answers."""

import pytest
import torch

from cacovid.answering.scoring import score
from cacovid.config import DataConfig, ModelConfig, SamplingConfig, TrainConfig
from cacovid.data.reader import ItemReader
from cacovid.data.table import read_questions
from cacovid.embedded.dataset import TABLE, write_dataset
from cacovid.embedded.splits import split_seeds
from cacovid.errors import BadItem
from cacovid.policy.build import policy_for
from cacovid.records import Mode, Rollout, RolloutRecord, VideoQuestion
from cacovid.rollout import WHOLE, Part, RolloutRequest, roll_out
from cacovid.sampling.adaptive_rate import adapt_rate

SAMPLING = SamplingConfig(group=8)


@pytest.fixture(scope="module")
def item(tmp_path_factory: pytest.TempPathFactory) -> VideoQuestion:
    folder = tmp_path_factory.mktemp("clips")
    write_dataset(folder, split_seeds("development", 1))
    return read_questions(folder / TABLE)[0]


@pytest.fixture(scope="module")
def reader() -> ItemReader:
    return ItemReader.load(ModelConfig(), DataConfig())


def rolled(
    reader: ItemReader,
    item: VideoQuestion,
    sampling: SamplingConfig = SAMPLING,
    *,
    seed: int = 0,
    step: int = 3,
    tokens: int | None = 2,
    part: Part = WHOLE,
    explore: float = 0.0,
) -> RolloutRecord:
    policy = policy_for(reader.video_llm, TrainConfig()).eval()
    request = RolloutRequest(seed, step, 2, tokens, part, explore)
    return roll_out(reader.video_llm, policy, reader.encode(item), item, sampling, request)


def test_same_request_gives_the_same_record(reader: ItemReader, item: VideoQuestion) -> None:
    one, two = rolled(reader, item), rolled(reader, item)
    assert torch.equal(one.iterations[0].combinations.kept, two.iterations[0].combinations.kept)
    assert torch.equal(one.iterations[0].reward, two.iterations[0].reward)
    for other in (rolled(reader, item, seed=1), rolled(reader, item, step=4)):
        assert not torch.equal(one.iterations[0].combinations.kept, other.iterations[0].combinations.kept)


def test_record_says_where_it_comes_from(reader: ItemReader, item: VideoQuestion) -> None:
    record = rolled(reader, item)
    assert (record.item_id, record.step, record.policy_version) == (item.id, 3, 2)
    scored = record.iterations[0]
    assert scored.combinations.kept.shape == (8, 2 * record.input.grid.frames)
    assert scored.reward.shape == scored.likelihood.shape == (8,)
    assert record.nbytes() > record.input.nbytes()


def test_a_request_that_explores_draws_without_the_policy(reader: ItemReader, item: VideoQuestion) -> None:
    plain, explored = rolled(reader, item), rolled(reader, item, explore=1.0)
    first, second = (record.iterations[0].combinations.kept for record in (plain, explored))
    assert torch.equal(first[0], second[0])  # the policy's top
    assert not torch.equal(first[1:], second[1:])


@pytest.mark.parametrize("of", [2, 3, 8])
def test_parts_scored_apart_are_the_whole_rollout(reader: ItemReader, item: VideoQuestion, of: int) -> None:
    """With all three kinds of samples and several inner iterations; 3 does not divide the 8 combinations."""
    sampling = SamplingConfig(group=8, modes="mixed", inner_iterations=2)
    whole, _ = rolled(reader, item, sampling).parts()
    parts = [rolled(reader, item, sampling, part=Part(number, of)).parts()[0] for number in range(of)]
    assert all(len(part.iterations[0].reward) < 8 for part in parts)
    joined = Rollout.joined(parts)
    for one, other in zip(joined.iterations, whole.iterations, strict=True):
        assert torch.equal(one.combinations.kept, other.combinations.kept)
        assert torch.equal(one.combinations.modes, other.combinations.modes)
        assert torch.equal(one.combinations.frames, other.combinations.frames)
        assert one.combinations.rate == other.combinations.rate
        assert torch.equal(one.reward, other.reward)
        torch.testing.assert_close(one.likelihood, other.likelihood, atol=1e-6, rtol=1e-5)


def test_inner_iterations_draw_anew_from_the_same_logits(reader: ItemReader, item: VideoQuestion) -> None:
    sampling = SamplingConfig(group=8, modes="mixed", tokens_per_frame=(), inner_iterations=3, rate=0.1)
    record = rolled(reader, item, sampling, tokens=None)
    kept = [scored.combinations.kept for scored in record.iterations]
    assert len(kept) == 3
    assert kept[0].shape != kept[1].shape or not torch.equal(kept[0], kept[1])
    assert set(record.iterations[0].combinations.modes.tolist()) == {Mode.CONTENT, Mode.TOKEN, Mode.FRAME}


def test_every_inner_iteration_adapts_the_rate_to_the_rewards_so_far(reader: ItemReader, item: VideoQuestion) -> None:
    moving = {"halve_above": 1.0, "double_below": 1.0}  # any mean moves the rate
    sampling = SamplingConfig(group=8, tokens_per_frame=(), inner_iterations=3, rate=0.05, rate_max=0.3, **moving)
    memory = rolled(reader, item, sampling, tokens=None).iterations
    rates = [scored.combinations.rate for scored in memory]
    assert rates[0] == 0.05
    assert rates[1] != rates[0]
    assert rates[1:] == [adapt_rate(rates[i - 1], memory[:i], sampling) for i in (1, 2)]


def test_evidence_earns_the_reward_and_its_absence_does_not(reader: ItemReader, item: VideoQuestion) -> None:
    encoded = reader.encode(item)
    everything = torch.arange(encoded.grid.tokens)
    evidence = torch.tensor(item.evidence)
    others = torch.tensor([cell for cell in everything.tolist() if cell not in item.evidence])
    with_evidence = score(reader.video_llm, encoded, item, evidence[None])
    without = score(reader.video_llm, encoded, item, others[None])
    assert with_evidence.reward.item() == 1
    assert with_evidence.likelihood.item() > 0.5 > without.likelihood.item()
    logits = reader.video_llm.first_logits(encoded, evidence[None])[0]
    (right,) = reader.video_llm.option_tokens([item.answer])
    assert with_evidence.likelihood.item() == pytest.approx(logits.softmax(dim=0)[right].item())  # of all tokens


def test_answer_that_is_no_option_sets_the_item_aside(reader: ItemReader, item: VideoQuestion) -> None:
    wrong = VideoQuestion(**{**vars(item), "answer": "Q"})
    with pytest.raises(BadItem, match="'Q'"):
        rolled(reader, wrong)
