"""Selection methods against slow references, their budgets, and question-awareness."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cacovid.errors import BadItem, NotDefined, UserError
from cacovid.evaluation.awareness import area_under_curve, question_awareness
from cacovid.methods.baselines.divprune import DivPrune, max_min_diverse
from cacovid.methods.baselines.evs import EVS
from cacovid.methods.baselines.oracle import OracleEvidence
from cacovid.methods.baselines.random_tokens import RandomTokens
from cacovid.methods.baselines.text_cosine import TextCosine
from cacovid.methods.baselines.uniform import UniformTokens
from cacovid.methods.baselines.vidcom2 import VidCom2
from cacovid.methods.protocol import Baseline
from cacovid.methods.registry import BASELINES
from cacovid.methods.selection import budget
from cacovid.records import TokenGrid
from tests.support.evaluation_cases import made_case


def draw(tokens: int, width: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randn(tokens, width, generator=torch.Generator().manual_seed(seed))


def slow_divprune(features: torch.Tensor, count: int) -> list[int]:
    """From the definition, distance matrix and double loop."""
    rows = [[float(x) for x in row] for row in features.double()]

    def distance(a: list[float], b: list[float]) -> float:
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        return 1 - dot / (sum(x * x for x in a) ** 0.5 * sum(y * y for y in b) ** 0.5)

    everyone = range(len(rows))
    table = [[distance(rows[i], rows[j]) for j in everyone] for i in everyone]
    chosen = [max(everyone, key=lambda i: min(table[i][j] for j in everyone if j != i))]
    while len(chosen) < count:
        rest = [i for i in everyone if i not in chosen]
        chosen.append(max(rest, key=lambda i: min(table[i][j] for j in chosen)))
    return chosen


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("count", [1, 2, 7, 30])
def test_divprune_agrees_with_its_definition(seed: int, count: int) -> None:
    features = draw(30, seed=seed)
    assert max_min_diverse(features, count).tolist() == slow_divprune(features, count)


def test_divprune_takes_every_token_once_even_among_duplicates() -> None:
    features = torch.ones(5, 4)
    assert sorted(max_min_diverse(features, 5).tolist()) == [0, 1, 2, 3, 4]
    assert max_min_diverse(torch.ones(1, 4), 1).tolist() == [0]


def test_divprune_computes_nearest_neighbours_in_blocks() -> None:
    features = draw(1030, width=4)
    features[:, 0] += 10
    for lone in (3, 1027):  # in the first and in the second block
        turned = features.clone()
        turned[lone] = -features[lone]
        assert int(max_min_diverse(turned, 1)[0]) == lone


@settings(max_examples=40, deadline=None)
@given(
    frames=st.integers(1, 5),
    rows=st.integers(1, 4),
    columns=st.integers(1, 4),
    retention=st.floats(0.01, 1.0),
    seed=st.integers(0, 99),
)
def test_every_method_keeps_exactly_the_budget_in_ascending_order(
    frames: int, rows: int, columns: int, retention: float, seed: int
) -> None:
    grid = TokenGrid(frames, rows, columns)
    case = made_case(draw(grid.tokens, seed=seed), grid, evidence=(grid.tokens - 1,))
    methods: list[Baseline] = [DivPrune(), TextCosine(lambda _: torch.eye(6)), UniformTokens(), RandomTokens()]
    methods += [OracleEvidence(), EVS(), VidCom2()]
    assert {type(method) for method in methods} == {each for each in BASELINES.values() if issubclass(each, Baseline)}
    for method in methods:
        try:
            kept = method.select(case, retention)
        except NotDefined:
            assert case.budget(retention) < {"evs": grid.per_frame, "vidcom2": grid.frames}[method.name]
            continue
        assert kept.dtype == torch.int64
        assert len(kept) == budget(retention, grid.tokens)
        assert kept.tolist() == sorted(set(kept.tolist()))
        assert int(kept[0]) >= 0
        assert int(kept[-1]) < grid.tokens


def test_random_tokens_depend_on_seed_question_and_ratio_alone() -> None:
    grid = TokenGrid(4, 5, 5)
    features = draw(100)
    first = RandomTokens().select(made_case(features, grid), 0.2)
    assert torch.equal(first, RandomTokens().select(made_case(features + 1, grid), 0.2))
    assert not torch.equal(first, RandomTokens().select(made_case(features, grid, seed=1), 0.2))
    assert not torch.equal(first, RandomTokens().select(made_case(features, grid, item_id="other"), 0.2))


def test_uniform_tokens_are_equally_spaced() -> None:
    kept = UniformTokens().select(made_case(draw(100), TokenGrid(4, 5, 5)), 0.1)
    assert kept.tolist() == [5, 15, 25, 35, 45, 55, 65, 75, 85, 95]


def test_text_cosine_takes_the_best_question_token_whatever_its_length() -> None:
    words = {"what?": torch.tensor([[0.0, 0.0, 9.0, 0.0], [0.0, 0.5, 0.1, 0.0]])}
    case = made_case(torch.eye(4), TokenGrid(1, 2, 2), text=torch.eye(4))  # the prompt's own text is not asked
    method = TextCosine(words.__getitem__)
    assert method.token_scores(case) == pytest.approx(torch.tensor([0.0, 0.5 / 0.26**0.5, 1.0, 0.0]))
    assert method.select(case, 0.5).tolist() == [1, 2]


def test_text_cosine_sets_a_question_without_tokens_aside() -> None:
    case = made_case(torch.eye(4), TokenGrid(1, 2, 2))
    with pytest.raises(BadItem, match=r"'q': 'what\?' has no token"):
        TextCosine(lambda _: torch.zeros(0, 4)).select(case, 0.5)


def test_the_oracle_keeps_evidence_first_and_fills_evenly() -> None:
    grid = TokenGrid(4, 5, 5)
    case = made_case(draw(100), grid, evidence=(3, 50, 97))
    assert OracleEvidence().select(case, 0.02).tolist() == [3, 97]
    kept = OracleEvidence().select(case, 0.07).tolist()
    assert {3, 50, 97} <= set(kept)
    assert max(b - a for a, b in zip([-1, *kept], [*kept, 100], strict=True)) < 40


def test_the_oracle_refuses_questions_without_evidence_or_of_another_grid() -> None:
    with pytest.raises(UserError, match="needs evidence"):
        OracleEvidence().select(made_case(draw(8), TokenGrid(2, 2, 2)), 0.5)
    with pytest.raises(UserError, match=r"token cell 8 lies beyond the 8 tokens"):
        OracleEvidence().select(made_case(draw(8), TokenGrid(2, 2, 2), evidence=(8,)), 0.5)


@settings(max_examples=100, deadline=None)
@given(
    positive=st.lists(st.integers(-3, 3), min_size=1, max_size=12),
    negative=st.lists(st.integers(-3, 3), min_size=1, max_size=12),
)
def test_the_area_agrees_with_counting_pairs(positive: list[int], negative: list[int]) -> None:
    pairs = [(p > n) + 0.5 * (p == n) for p in positive for n in negative]
    area = area_under_curve(torch.tensor(positive).float(), torch.tensor(negative).float())
    assert area == pytest.approx(sum(pairs) / len(pairs))


def test_awareness_compares_the_asked_object_with_other_objects_only() -> None:
    case = made_case(draw(8), TokenGrid(2, 2, 2), evidence=(1, 5), others=(2, 3))
    scores = torch.tensor([99.0, 4.0, 3.0, 1.0, 99.0, 2.0, 99.0, 99.0])
    assert question_awareness(case, scores) == pytest.approx(0.75)
    assert question_awareness(made_case(draw(8), TokenGrid(2, 2, 2), evidence=(1,)), scores) is None


def test_divprune_ignores_the_length_of_features() -> None:
    features = draw(30)
    case = made_case(features, TokenGrid(5, 3, 2))
    scaled = made_case(features * torch.linspace(0.1, 10, 30)[:, None], TokenGrid(5, 3, 2))
    assert torch.equal(DivPrune().select(case, 0.3), DivPrune().select(scaled, 0.3))
