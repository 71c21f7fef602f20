"""Configuration files and overrides."""

import tomllib
from pathlib import Path

import pytest

from cacovid.config import TrainConfig
from cacovid.config_files import load_config, parse_override, to_toml, with_overrides
from cacovid.errors import UserError

SHIPPED = sorted((Path(__file__).parents[2] / "configs").rglob("*.toml"))


def test_there_are_shipped_configs() -> None:
    assert {"embedded.toml", "paper.toml", "paper-published.toml", "paper-credit.toml"} <= {
        path.name for path in SHIPPED
    }


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_config_loads_and_survives_a_round_trip(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    (tmp_path / "again.toml").write_text(to_toml(config))
    assert load_config(tmp_path / "again.toml") == config


@pytest.mark.parametrize("name", ["paper-published", "llava-onevision-7b-paper"])
def test_the_published_configs_have_the_papers_numbers(name: str) -> None:
    """AAAI 2026, training settings."""
    config = load_config(next(path for path in SHIPPED if path.stem == name))
    sampling, objective, optimizer = config.sampling, config.objective, config.optimizer
    assert (config.policy.kind, objective.kind, sampling.modes) == ("paper", "clipped", "mixed")
    assert sampling.max_frame_prob == 3
    assert (sampling.group, sampling.rate, sampling.group_size, sampling.max_group_prob) == (32, 0.02, 2, 2.0)
    assert (sampling.frame_ratio, sampling.inner_iterations, sampling.explore, sampling.temperature) == (0.125, 5, 0, 1)
    assert (sampling.halve_above, sampling.double_below) == (0.875, 0.125)
    assert (sampling.rate_min, sampling.rate_max) == (0.01, 0.12)
    assert (objective.eps_low, objective.eps_high, objective.uniform_kl, objective.ratio) == (0.2, 0.28, 0, "drawing")
    assert not objective.replays()
    assert (optimizer.lr, optimizer.weight_decay, optimizer.grad_norm, optimizer.schedule) == (1e-6, 0.01, 5, "cosine")
    assert (optimizer.eps, optimizer.backbone_scale, config.selection.max_frame_share) == (1e-8, 0.1, 1.5)
    assert config.updates_per_step() == 5
    assert (config.selection.rule, config.selection.scored_share) == ("frame-budgets", 0.5)
    assert config.policy.attention == "full"
    assert config.actors.staleness == (0 if name == "paper-published" else 1)


def test_embedded_config_is_the_default() -> None:
    path = next(path for path in SHIPPED if path.stem == "embedded")
    assert load_config(path) == TrainConfig()


def test_the_default_asks_a_tenth_of_the_answers_of_the_one_before() -> None:
    before, plain = (load_config(path) for path in SHIPPED if path.stem in ("embedded-credit", "embedded"))
    answers, answers_before = (each.run.steps * each.combinations_per_step() for each in (plain, before))
    assert answers * 10 == answers_before
    assert plain.policy == before.policy


def test_written_config_explains_every_field() -> None:
    lines = [line for line in to_toml(TrainConfig()).splitlines() if "=" in line]
    assert all(line.rpartition("# ")[2] for line in lines)
    assert tomllib.loads(to_toml(TrainConfig()))["run"]["seed"] == 0


def test_text_with_quotes_and_newlines_survives(tmp_path: Path) -> None:
    config = with_overrides(TrainConfig(), {"data.instruction": 'say "A"\nor \\B'})
    (tmp_path / "config.toml").write_text(to_toml(config))
    assert load_config(tmp_path / "config.toml").data.instruction == 'say "A"\nor \\B'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("run.seed=3", ("run.seed", 3)),
        ("optimizer.lr=1e-3", ("optimizer.lr", 1e-3)),
        ("sampling.tokens_per_frame=[1, 2]", ("sampling.tokens_per_frame", [1, 2])),
        ("model.path=/some/where", ("model.path", "/some/where")),
        ("policy.question_aware=false", ("policy.question_aware", False)),
    ],
)
def test_overrides_read_toml_values_or_text(text: str, expected: tuple[str, object]) -> None:
    assert parse_override(text) == expected


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("run.seed", "section.field=value"),
        ("seed=3", "names no field"),
        ("run.sed=3", r"run\.sed: unknown field"),
        ("runs.seed=3", "runs: unknown field"),
        ("run.seed=-1", r"run\.seed: .*found -1"),
        ("sampling.rate_min=0.5", "rate_max"),
        ("learners.zero_stage=4", r"learners\.zero_stage"),
    ],
)
def test_wrong_override_names_value_and_place(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(None, [override])


def test_frame_budgets_do_not_go_by_a_head_that_nothing_trains() -> None:
    by_frames = ["policy.kind=paper", "selection.rule=frame-budgets"]
    with pytest.raises(UserError, match=r"set sampling\.modes='mixed' or policy\.frame_scores='tokens'"):
        load_config(None, by_frames)
    load_config(None, [*by_frames, "sampling.modes=mixed"])
    load_config(None, [*by_frames, "policy.frame_scores=tokens"])


def test_the_adaptive_rate_starts_within_its_range() -> None:
    assert load_config(None, ["sampling.rate=0.3"]).sampling.rate == 0.3  # not in use
    with pytest.raises(UserError, match=r"sampling\.rate=0\.3 lies outside .* 0\.01 to 0\.12"):
        load_config(None, ["sampling.rate=0.3", "sampling.tokens_per_frame=[]"])


def test_broken_toml_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_text("[run\nseed = 1")
    with pytest.raises(UserError, match=r"broken\.toml is not valid TOML") as caught:
        load_config(path)
    assert "\n" not in str(caught.value)


def test_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read the config"):
        load_config(tmp_path / "none.toml")
