"""The default policy, sampler and objective together must learn what a synthetic reward asks for.

Each clip shows four objects of sixteen kinds among clutter; the question's text names one of them and the
reward is certain when a token of it is retained, else a guess among four. Nothing but rewards is seen.
"""

import torch

from cacovid.config import ObjectiveConfig, PolicyConfig, SamplingConfig
from cacovid.objective.loss import batch_loss
from cacovid.objective.memory import flatten
from cacovid.objective.replay import ReplayBuffer
from cacovid.policy.base import CompressionPolicy
from cacovid.policy.batch import collate
from cacovid.policy.build import build_policy
from cacovid.records import PolicyInput, RolloutRecord, ScoredCombinations, TokenGrid
from cacovid.sampling.ocss import sample_combinations
from cacovid.sampling.rates import rate_of, step_tokens
from cacovid.seeding import generator

GRID = TokenGrid(frames=4, rows=4, columns=4)
WIDTH, KINDS, SHOWN, CELLS = 32, 16, 4, 3
CONFIG = SamplingConfig()
DEFAULT = ObjectiveConfig()


class World:
    """Kinds of objects with a look (in the video) and a name (in the text) that have nothing in common."""

    def __init__(self, seed: int) -> None:
        draw = generator("world", seed)
        self.looks = torch.randn(KINDS, WIDTH, generator=draw)
        self.names = torch.randn(KINDS, WIDTH, generator=draw)
        self.words = torch.randn(4, WIDTH, generator=draw)
        self.clutter = torch.randn(20, WIDTH, generator=draw)

    def item(self, *seed: int | str) -> tuple[PolicyInput, torch.Tensor, torch.Tensor]:
        """A policy input, the tokens of the asked object, the tokens of the others."""
        draw = generator("item", *seed)
        kinds = torch.randperm(KINDS, generator=draw)[:SHOWN]
        cells = torch.randperm(GRID.tokens, generator=draw)[: SHOWN * CELLS].view(SHOWN, CELLS)
        features = self.clutter[torch.randint(20, (GRID.tokens,), generator=draw)].clone()
        features[cells.flatten()] = self.looks[kinds].repeat_interleave(CELLS, dim=0)
        features += 0.3 * torch.randn(features.shape, generator=draw)
        text = torch.cat([self.words[:2], self.names[kinds[:1]], self.words[2:]])
        columns = torch.arange(GRID.tokens + 5)
        item = PolicyInput(features, text, columns[: GRID.tokens], columns[GRID.tokens :], columns[None], GRID)
        return item, cells[0], cells[1:].flatten()


def roll_out(policy: CompressionPolicy, world: World, step: int) -> list[RolloutRecord]:
    tokens = step_tokens(CONFIG, generator("tokens", step))
    drawn = [world.item("train", step, number) for number in range(16)]
    output = policy.logits([item for item, _, _ in drawn])
    records = []
    for number, (item, asked, _) in enumerate(drawn):
        draw = generator("rollout", step, number)
        logits = output.token_logits[number], output.frame_logits[number]
        combinations = sample_combinations(*logits, item.features, GRID, CONFIG, rate_of(tokens, GRID), draw)
        seen = torch.isin(combinations.kept.long(), asked).any(dim=1)
        guess = torch.rand(CONFIG.group, generator=draw) < 0.25
        reward = (seen | guess).float()
        scored = ScoredCombinations(combinations, reward, reward)
        records.append(RolloutRecord(f"{step}-{number}", step, step, item, *logits, (scored,)))
    return records


def train(policy: CompressionPolicy, world: World, steps: int, objective: ObjectiveConfig = DEFAULT) -> None:
    optimizer = torch.optim.AdamW(policy.parameters(), lr=5e-3, weight_decay=1e-4)
    replay: ReplayBuffer[RolloutRecord] = ReplayBuffer(3000, 10**9)
    for step in range(steps):
        for record in roll_out(policy, world, step):
            if flatten([record], 1).informative():
                replay.add(record.item_id, record.input.nbytes(), record)
        for update in range(4):
            records = replay.draw(48, generator("replay", step, update))
            result = batch_loss(policy(collate([record.input for record in records])), records, 1, objective)
            optimizer.zero_grad()
            (result.loss / result.metrics.count).backward()
            torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
            optimizer.step()


def question_awareness(policy: CompressionPolicy, world: World) -> float:
    """Mean AUC of the asked object's tokens against the other objects', on unseen clips."""
    drawn = [world.item("held out", number) for number in range(100)]
    scores = policy.logits([item for item, _, _ in drawn]).token_scores
    areas = [
        (row[asked][:, None] > row[others][None, :]).float().mean()
        for row, (_, asked, others) in zip(scores, drawn, strict=True)
    ]
    return float(torch.stack(areas).mean())


def test_late_becomes_aware_of_the_question():
    world = World(0)
    policy = build_policy(PolicyConfig(), WIDTH, seed=0)
    assert question_awareness(policy, world) < 0.65
    train(policy, world, steps=20)
    assert question_awareness(policy, world) > 0.9


def test_so_does_it_with_the_clipped_objective_near_the_uniform_policy_and_not_without_the_kl():
    """The newest policy's ratio on replayed records: nothing but the KL keeps the scores from saturating."""
    aware = []
    for weight in (1.0, 0.0):
        world = World(0)
        policy = build_policy(PolicyConfig(), WIDTH, seed=0)
        objective = ObjectiveConfig(kind="clipped", ratio="current", kl="k3", uniform_kl=weight)
        train(policy, world, steps=20, objective=objective)
        aware.append(question_awareness(policy, world))
    assert aware[0] > 0.9
    assert aware[1] < 0.75


def test_late_without_the_text_cannot():
    world = World(0)
    policy = build_policy(PolicyConfig(question_aware=False), WIDTH, seed=0)
    train(policy, world, steps=15)
    assert 0.4 < question_awareness(policy, world) < 0.6


def test_training_repeats_exactly():
    runs = []
    for _ in range(2):
        policy = build_policy(PolicyConfig(), WIDTH, seed=1)
        train(policy, World(1), steps=2)
        runs.append(torch.cat([parameter.detach().flatten() for parameter in policy.parameters()]))
    assert torch.equal(*runs)
