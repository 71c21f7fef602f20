import dataclasses
import math
from itertools import product

import pytest
import torch

from cacovid.config import ObjectiveConfig
from cacovid.objective.evidence import ANCHOR, GUESSED, TOKENS, log_likelihood
from cacovid.objective.loss import LossOutput, MetricSums, batch_loss
from cacovid.objective.memory import flatten
from cacovid.policy.base import PolicyOutput
from cacovid.records import Mode, RolloutRecord
from cacovid.seeding import generator
from tests.support.made_records import GRID, make_record

CONFIGS = {
    "evidence": ObjectiveConfig(kind="evidence", frame_weight=0.7, score_decay=0.01),
    "credit": ObjectiveConfig(kind="credit", frame_weight=0.7, score_decay=0.01),
    "clipped": ObjectiveConfig(kind="clipped", frame_weight=0.7, uniform_kl=0.05),
    "k3": ObjectiveConfig(kind="clipped", frame_weight=0.7, uniform_kl=0.4, kl="k3"),
    "current": ObjectiveConfig(kind="clipped", ratio="current", uniform_kl=0.4, kl="k3"),
}
KINDS = sorted(CONFIGS)
RECORDS = [make_record(0), make_record(1), make_record(2, equal_rewards=True), make_record(3, rates=(1 / 6,))]


def logits(records: list[RolloutRecord], scale: float = 0.5, seed: int = 0) -> PolicyOutput:
    """Float64 logits near the old ones, so that some ratios leave the clip range and some do not."""
    draw = generator("logits", seed)

    def near(old: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(old.shape, generator=draw, dtype=torch.float64)
        return (old.double() + scale * noise).requires_grad_()

    return PolicyOutput(
        near(torch.stack([record.old_token_logits for record in records])),
        near(torch.stack([record.old_frame_logits for record in records])),
    )


def samples(record: RolloutRecord, iterations: int) -> list[tuple[list[bool], list[bool], bool, float]]:
    """(token mask, frame mask, frame sample?, advantage) of every combination, by plain loops."""
    result = []
    for scored in record.iterations[:iterations]:
        for row in range(scored.reward.shape[0]):
            is_frame = int(scored.combinations.modes[row]) == Mode.FRAME
            same = [
                float(other.reward[i])
                for other in record.iterations[:iterations]
                if other.combinations.rate == scored.combinations.rate
                for i in range(other.reward.shape[0])
                if (int(other.combinations.modes[i]) == Mode.FRAME) == is_frame
            ]
            mean = sum(same) / len(same)
            std = math.sqrt(sum((reward - mean) ** 2 for reward in same) / len(same))
            advantage = 0.0 if len(set(same)) == 1 else (float(scored.reward[row]) - mean) / (std + 1e-4)
            kept = set(scored.combinations.kept[row].tolist())
            mask = [token in kept for token in range(GRID.tokens)]
            result.append((mask, scored.combinations.frames[row].tolist(), is_frame, advantage))
    return result


def slow_clipped_units(new, old, masks, advantages, config, weighted) -> float:
    total = 0.0
    for mask, advantage in zip(masks, advantages, strict=True):
        mean = sum(mask) / len(mask)
        terms, weights = 0.0, 0.0
        for unit, kept in enumerate(mask):
            now = torch.log_softmax(new[unit].double(), dim=0)[int(kept)]
            before = torch.log_softmax(old[unit].double(), dim=0)[int(kept)]
            ratio = math.exp((now - before).item())
            clipped = min(max(ratio, 1 - config.eps_low), 1 + config.eps_high)
            weight = ((1 - mean) if kept else mean) if weighted else 1.0
            terms += weight * -min(ratio * advantage, clipped * advantage)
            weights += weight
        total += terms / weights
    return total / max(len(masks), 1)


def slow_clipped(new: PolicyOutput, record: RolloutRecord, iterations: int, config: ObjectiveConfig) -> float:
    rows = samples(record, iterations)
    if all(advantage == 0 for *_, advantage in rows):
        return 0.0
    tokens = [(mask, advantage) for mask, _, is_frame, advantage in rows if not is_frame]
    frames = [(mask, advantage) for _, mask, is_frame, advantage in rows if is_frame]
    loss = slow_clipped_units(
        new.token_logits[0], record.old_token_logits, *map(list, zip(*tokens, strict=True)), config, True
    )
    loss += config.frame_weight * slow_clipped_units(
        new.frame_logits[0], record.old_frame_logits, *map(list, zip(*frames, strict=True)), config, False
    )
    kl = slow_kl(new.token_logits[0], [mask for mask, _ in tokens], config, True)
    kl += config.frame_weight * slow_kl(new.frame_logits[0], [mask for mask, _ in frames], config, False)
    return loss + config.uniform_kl * kl


def slow_kl(new, masks, config, weighted) -> float:
    if config.kl == "exact":
        return sum(p * math.log(2 * p) for p in torch.softmax(new, dim=-1).flatten().tolist()) / len(new)
    total = 0.0
    for mask in masks:
        mean, terms, weights = sum(mask) / len(mask), 0.0, 0.0
        for unit, kept in enumerate(mask):
            ratio = 0.5 / torch.softmax(new[unit].double(), dim=0)[int(kept)].item()
            weight = ((1 - mean) if kept else mean) if weighted else 1.0
            terms += weight * (ratio - 1 - math.log(ratio))
            weights += weight
        total += terms / weights
    return total / len(masks)


def slow_credit_units(scores, masks, advantages, config) -> float:
    total, weights = 0.0, 0.0
    for unit in range(len(masks[0])):
        kept = [a for mask, a in zip(masks, advantages, strict=True) if mask[unit]]
        dropped = [a for mask, a in zip(masks, advantages, strict=True) if not mask[unit]]
        if kept and dropped:
            credit = sum(kept) / len(kept) - sum(dropped) / len(dropped)
            weight = len(kept) / (len(kept) + 1)
            total += weight * (scores[unit].item() - config.credit_scale * credit) ** 2
            weights += weight
    return total / weights


def slow_credit(new: PolicyOutput, record: RolloutRecord, iterations: int, config: ObjectiveConfig) -> float:
    rows = samples(record, iterations)
    if all(advantage == 0 for *_, advantage in rows):
        return 0.0
    tokens = [(mask, advantage) for mask, _, is_frame, advantage in rows if not is_frame]
    frames = [(mask, advantage) for _, mask, is_frame, advantage in rows if is_frame]
    loss = slow_credit_units(new.token_scores[0], *zip(*tokens, strict=True), config)
    loss += config.frame_weight * slow_credit_units(new.frame_scores[0], *zip(*frames, strict=True), config)
    return loss + config.score_decay * new.token_scores[0].square().mean().item()


def slow_evidence(new: PolicyOutput, record: RolloutRecord, iterations: int, config: ObjectiveConfig) -> float:
    rewards = [float(each) for scored in record.iterations[:iterations] for each in scored.reward]
    rows = samples(record, iterations)
    if all(advantage == 0 for *_, advantage in rows):
        return 0.0
    scores = new.token_scores[0].tolist()
    prior = [math.exp(each) / sum(map(math.exp, scores)) for each in scores]
    believed = [0.0] * GRID.tokens
    for token in range(GRID.tokens):
        for m, guess in product(TOKENS, GUESSED):
            likelihood = 1.0
            for (mask, *_), reward in zip(rows, rewards, strict=True):
                another = 1 - (1 - sum(p for p, kept in zip(prior, mask, strict=True) if kept)) ** (m - 1)
                chance = 0.95 if mask[token] else another * 0.95 + (1 - another) * guess
                likelihood *= chance**reward * (1 - chance) ** (1 - reward)
            believed[token] += prior[token] * likelihood
    total = sum(believed)
    where = [sum(believed[t * GRID.per_frame : (t + 1) * GRID.per_frame]) / total for t in range(GRID.frames)]
    frames = new.frame_scores[0].tolist()
    frame_loss = -sum(w * (f - math.log(sum(map(math.exp, frames)))) for w, f in zip(where, frames, strict=True))
    decay = config.score_decay * sum(each**2 for each in scores) / len(scores)
    anchor = ANCHOR * (sum(scores) / len(scores)) ** 2
    return -math.log(total) + config.frame_weight * frame_loss + decay + anchor


@pytest.mark.parametrize("iterations", [1, 2, 3])
@pytest.mark.parametrize("scale", [0.5, 4.0])
@pytest.mark.parametrize("kind", KINDS)
def test_losses_equal_the_hand_written_loops(kind, scale, iterations):
    slow = {"evidence": slow_evidence, "credit": slow_credit}.get(kind, slow_clipped)
    for seed, record in enumerate(RECORDS):
        output = logits([record], scale, seed=seed)
        if kind == "current":  # the same as if this policy had drawn
            old = dict(
                zip(("old_token_logits", "old_frame_logits"), (part[0].detach() for part in output), strict=True)
            )
            record = dataclasses.replace(record, **old)
        result = batch_loss(output, [record], iterations, CONFIGS[kind])
        assert result.loss.item() == pytest.approx(slow(output, record, iterations, CONFIGS[kind]), abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_sums_its_records(kind):
    output = logits(RECORDS)
    together = batch_loss(output, RECORDS, 3, CONFIGS[kind])
    alone = [
        batch_loss(PolicyOutput(*(part[i : i + 1] for part in output)), [record], 3, CONFIGS[kind])
        for i, record in enumerate(RECORDS)
    ]
    assert together.loss.item() == pytest.approx(sum(one.loss.item() for one in alone))
    added = sum((one.metrics for one in alone), MetricSums({}, 0))
    assert added.count == together.metrics.count == 4
    assert added.means() == pytest.approx(together.metrics.means())
    assert together.metrics.sums["informative"] == 3
    assert together.metrics.sums["loss"] == pytest.approx(together.loss.item())


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_equal_finite_differences(kind):
    if kind == "current":
        pytest.skip("the ratio is 1 wherever it is computed: see the test of its gradient")
    if kind == "evidence":
        pytest.skip("what the combinations tell is taken as it is, not led to say more: see the test of its gradient")
    output = logits(RECORDS)

    def loss(tokens: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
        return batch_loss(PolicyOutput(tokens, frames), RECORDS, 3, CONFIGS[kind]).loss

    assert torch.autograd.gradcheck(loss, tuple(output))


@pytest.mark.parametrize("kind", KINDS)
def test_uninformative_records_have_no_loss_and_no_gradient(kind):
    record = make_record(5, equal_rewards=True)
    output = logits([record])
    result = batch_loss(output, [record], 3, CONFIGS[kind])
    result.loss.backward()
    assert result.loss.item() == 0
    assert result.metrics.count == 1
    assert output.token_logits.grad.eq(0).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saturated_logits_leave_finite_losses_and_gradients(kind, dtype):
    record = make_record(6)
    saturated = 1000 * torch.randn(GRID.tokens, 2, generator=generator("near"))
    record = dataclasses.replace(record, old_token_logits=saturated)
    tokens = (1000 * torch.randn(1, GRID.tokens, 2, generator=generator("far"))).to(dtype).requires_grad_()
    frames = torch.zeros(1, GRID.frames, 2, dtype=dtype, requires_grad=True)
    batch_loss(PolicyOutput(tokens, frames), [record], 3, CONFIGS[kind]).loss.backward()
    assert tokens.grad.isfinite().all()


def test_the_evidence_gradient_moves_the_policy_from_its_belief_to_what_the_rewards_make_of_it():
    record = make_record(7, modes="token", rates=(1 / 6,), group=4)
    config = CONFIGS["evidence"].model_copy(update={"score_decay": 0.0})
    output = logits([record])
    batch_loss(output, [record], 1, config).loss.backward()
    prior = output.token_scores.detach().softmax(dim=-1)
    believed = prior * log_likelihood(prior, flatten([record], 1)).exp()
    mean = output.token_scores.detach().mean()
    expected = prior - believed / believed.sum() + 2 * ANCHOR * mean / GRID.tokens
    torch.testing.assert_close(output.token_logits.grad[..., 1], expected)
    torch.testing.assert_close(output.token_logits.grad[..., 0], -expected)
    assert expected.sum() == pytest.approx(2 * ANCHOR * mean.item()), "a shift of all scores is led back, else unfelt"


def test_one_right_answer_points_to_the_tokens_kept_and_a_wrong_one_away():
    even = torch.full((1, GRID.tokens), 1 / GRID.tokens, dtype=torch.float64)
    record = make_record(7, modes="token", rates=(1 / 6,), group=4)
    (scored,) = record.iterations
    memory = flatten([record], 1)
    first = int(memory.size[0])
    kept = torch.isin(torch.arange(GRID.tokens), scored.combinations.kept[0].long())
    alone = dataclasses.replace(memory, size=torch.tensor([first, 0, 0, 0]), kept=memory.kept[:first])
    right, wrong = (
        log_likelihood(even, dataclasses.replace(alone, reward=torch.tensor([reward, 0.5, 0.5, 0.5]).double()))[0]
        for reward in (1.0, 0.0)
    )
    assert right[kept].min() > right[~kept].max()
    assert wrong[kept].max() < wrong[~kept].min()


def test_the_clipped_gradient_vanishes_outside_the_clip_range_only_where_it_would_go_further():
    record = make_record(7, modes="token", rates=(1 / 6,), group=4)
    memory = flatten([record], 1)
    far = torch.zeros(1, GRID.tokens, 2, dtype=torch.float64)
    far += record.old_token_logits
    far[..., 1] += 30  # every keep ratio is above 1 + eps_high or next to 1, every drop ratio near 0
    far.requires_grad_()
    batch_loss(
        PolicyOutput(far, torch.zeros(1, 4, 2)), [record], 1, CONFIGS["clipped"].model_copy(update={"uniform_kl": 0.0})
    ).loss.backward()
    best = int(memory.advantage.argmax())
    lone = set(record.iterations[0].combinations.kept[best].tolist())
    for row in range(4):
        if row != best:
            lone -= set(record.iterations[0].combinations.kept[row].tolist())
    assert all(abs(float(far.grad[0, token].sum())) < 1e-9 for token in lone)


def test_by_the_current_policy_the_gradient_is_the_policy_gradient_however_old_the_record():
    """That of A * log p(decision), as if each record had been drawn by the policy as it is; nothing is clipped."""
    config = CONFIGS["current"].model_copy(update={"uniform_kl": 0.0})
    output = logits(RECORDS, scale=30.0)
    batch_loss(output, RECORDS, 3, config).loss.backward()
    plain = [part.detach().requires_grad_() for part in output]
    total = 0.0
    for row, record in enumerate(RECORDS):
        both = [(0, False, 0), (1, True, 1)]
        for part, of_frames, which in both:
            rows = [sample for sample in samples(record, 3) if sample[2] == of_frames]
            for sample in rows:
                mask, advantage = torch.tensor(sample[which]), sample[3]
                taken = torch.log_softmax(plain[part][row], dim=-1).gather(1, mask.long()[:, None])[:, 0]
                mean = mask.double().mean()
                weight = torch.ones(len(mask)) if of_frames else torch.where(mask, 1 - mean, mean)
                total = total - advantage * (weight * taken).sum() / weight.sum() / len(rows)
    total.backward()
    for ours, theirs in zip(output, plain, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-9, rtol=1e-6)
        assert float(ours.grad.abs().max()) > 1e-3


def test_by_the_current_policy_records_without_old_logits_learn_beside_others():
    """Those that come back from the replay buffer after a resume are encoded again, without a policy."""
    bare = [
        dataclasses.replace(RECORDS[0], old_token_logits=torch.empty(0, 2), old_frame_logits=torch.empty(0, 2)),
        *RECORDS[1:],
    ]
    ours, theirs = logits(RECORDS, scale=3.0), logits(RECORDS, scale=3.0)
    for output, records in ((ours, bare), (theirs, RECORDS)):
        batch_loss(output, records, 3, CONFIGS["current"]).loss.backward()
    assert torch.equal(ours.token_logits.grad, theirs.token_logits.grad)


def test_a_saturated_policy_is_pulled_back_by_the_estimate_and_hardly_by_the_exact_kl():
    record = make_record(10, modes="token", rates=(1 / 6,))
    pulls = {}
    for kl in ("exact", "k3"):
        tokens = torch.zeros(1, GRID.tokens, 2, dtype=torch.float64)
        tokens[..., 1] = -12.0  # every token is all but dropped for good
        tokens.requires_grad_()
        config = CONFIGS["current"].model_copy(update={"kl": kl, "uniform_kl": 1000.0})
        batch_loss(PolicyOutput(tokens, torch.zeros(1, 4, 2)), [record], 1, config).loss.backward()
        pulls[kl] = float(-tokens.grad[..., 1].sum())
    assert pulls["exact"] < 1
    assert pulls["k3"] > 1000 * pulls["exact"]


def test_token_only_records_have_no_frame_loss():
    record = make_record(8, modes="token")
    for config in CONFIGS.values():
        output = logits([record])
        result = batch_loss(output, [record], 3, config)
        result.loss.backward()
        assert result.metrics.sums["frame_loss"] == 0
        assert output.frame_logits.grad.eq(0).all()


def test_combinations_that_keep_everything_teach_nothing_but_do_no_harm():
    record = make_record(9, modes="token", rates=(1.0,))
    for kind, config in CONFIGS.items():
        output = logits([record])
        result = batch_loss(output, [record], 1, config.model_copy(update={"score_decay": 0.0, "uniform_kl": 0.0}))
        assert result.metrics.sums["token_loss"] == 0 or kind == "evidence"  # as likely wherever the evidence lies
        assert math.isfinite(result.loss.item())
        result.loss.backward()
        shift = output.token_logits.grad.mean(dim=1, keepdim=True)  # of all scores alike: it chooses the same tokens
        assert kind == "evidence" or shift.eq(0).all()
        torch.testing.assert_close(output.token_logits.grad, shift.expand_as(output.token_logits))


def test_metrics_of_unlike_losses_do_not_add_up():
    with pytest.raises(KeyError, match="ratio"):
        MetricSums({"loss": 1.0}, 1) + MetricSums({"ratio": 1.0}, 1)


def test_loss_output_of_a_batch_is_a_plain_sum():
    output = batch_loss(logits(RECORDS[:1]), RECORDS[:1], 1, CONFIGS["credit"])
    assert isinstance(output, LossOutput)
    assert output.loss.shape == ()
