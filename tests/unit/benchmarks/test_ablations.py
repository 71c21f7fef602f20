"""The ablations' variants, their steps, their processes and their table; tests/integration trains one."""

import inspect
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.ablations.__main__ import main
from benchmarks.ablations.side_by_side import ENDING, Ended, Job, ended_like_ctrl_c, run_side_by_side
from benchmarks.ablations.summary import Summary, table
from benchmarks.ablations.variants import VARIANTS, Variant, chosen, read_variants, runs_of
from benchmarks.ablations.work import Figures, Work
from benchmarks.table import markdown
from cacovid.config import EvaluationConfig, TrainConfig
from cacovid.errors import UserError

SHIPPED = read_variants(VARIANTS)
TWO = '[[variant]]\nname = "a"\ngroup = "g"\n[[variant]]\nname = "{}"\ngroup = "g"\nlike = "{}"\n'
ONE = '[[variant]]\nname = "a"\ngroup = "g"\n'


def work(variant: Variant, out: Path = Path("out"), **changes: object) -> Work:
    given = {"out": out, "run": runs_of([variant])[0], "seed": 1, "answers": 6_144, "every": 1_024, "clips": 50}
    return Work(**{**given, **changes})


@pytest.mark.parametrize("variant", SHIPPED, ids=lambda each: each.name)
def test_every_variant_is_a_run_of_the_same_number_of_answers(variant: Variant) -> None:
    config = work(variant).config(variant.measured())
    assert config.run.steps * config.combinations_per_step() == pytest.approx(6_144, rel=0.03)
    assert config.evaluation.every * config.combinations_per_step() == pytest.approx(1_024, rel=0.3)
    assert config.run.steps * config.run.items_per_step <= 2 * config.data.train_clips, "no question comes twice"
    assert config.run.seed == 1
    assert config.actors.places == config.learners.count == 0


def test_a_run_has_as_many_answers_as_the_default_s_unless_told_otherwise() -> None:
    default = TrainConfig()
    answers = inspect.signature(main).parameters["answers"].default
    assert answers == default.run.steps * default.combinations_per_step()


def test_every_choice_of_the_method_has_a_group() -> None:
    assert {each.group for each in SHIPPED} >= {
        *("objective", "network", "KL to uniform", "ratio", "exploration", "OCSS", "modes", "reward"),
        *("inner iterations", "replay", "tokens a frame", "learning rate", "selection", "positions"),
    }


def test_the_ratio_to_the_drawing_policy_gets_as_many_updates_and_questions_as_the_newest_one_s() -> None:
    by_name = {each.name: each for each in SHIPPED}
    ratios = [by_name[name] for name in ("clipped-current", "clipped-drawing", "clipped-drawing-5")]
    configs = [work(each).config(each.trained()) for each in ratios]
    assert [each.total_updates() for each in configs] == [96, 96, 95]
    assert [each.run.steps * each.run.items_per_step for each in configs] == [192, 192, 152]


def test_the_base_is_the_default_and_what_is_measured_otherwise_shares_its_runs() -> None:
    base, *others = SHIPPED
    assert (base.name, base.config, base.set, base.measure) == ("base", "embedded", (), ())
    runs = runs_of(SHIPPED)
    assert runs[0].owner == base
    measured = {each.name for each in others if each.measure}
    assert measured == {"global", "half-uniform", "frame-budgets", "original", "contiguous"}
    assert measured < {each.name for each in runs[0].variants}
    assert sum(len(run.variants) for run in runs) == len(SHIPPED)
    assert all(each.trained() == run.owner.trained() for run in runs for each in run.variants)


def test_steps_and_evaluations_follow_from_the_answers() -> None:
    variant = Variant(name="a", group="g", set=("sampling.group=4", "run.items_per_step=8"))
    config = work(variant, answers=330, every=70).config(variant.trained())
    assert (config.run.steps, config.evaluation.every) == (10, 2)
    assert work(variant, answers=1, every=1).config(variant.trained()).run.steps == 1


@pytest.mark.parametrize("size", [{"answers": 330}, {"every": 512}, {"clips": 10}])
def test_runs_of_another_size_lie_in_another_folder(size: dict[str, int]) -> None:
    base = SHIPPED[0]
    assert work(base, **size).root != work(base).root
    assert work(base, **size).root.parent == work(base).root.parent


def test_a_variant_begins_with_the_one_that_it_is_like(tmp_path: Path) -> None:
    clipped, mixed = (next(each for each in SHIPPED if each.name == name) for name in ("clipped", "clipped-mixed"))
    assert mixed.set == (*clipped.set, "sampling.modes=mixed")
    for text, message in (
        (TWO.format("a", "a"), "two variants are called 'a': rename one"),
        (TWO.format("b", "c"), "b is like 'c', which is no variant above it"),
        ("[[variant]]\nname = 'B b'\ngroup = ''", "variant.0.name: String should match pattern"),
        ("[[variant", "is not valid TOML"),
        ("variant = []", "variant: Tuple should have at least 1 item"),
    ):
        (tmp_path / "variants.toml").write_text(text)
        with pytest.raises(UserError, match=message):
            read_variants(tmp_path / "variants.toml")
    with pytest.raises(UserError, match="cannot read the variants"):
        read_variants(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ONE + 'config = "embedded-2"', "a: config='embedded-2' trains on 'embedded-2', but .* of 'embedded' alone"),
        (ONE + 'config = "smolvlm2-2.2b"', "trains on 'data/train.parquet', but .* with data.train='embedded'"),
        (ONE + 'config = "nope"', "a: cannot read the config .*nope.toml"),
        (ONE + 'set = ["evaluation.retentions=[0.1]"]', r"a: 'evaluation.retentions=\[0.1\]' would measure it unlike"),
        (ONE + 'measure = [" evaluation.clips=9"]', "leave it out; --every and --clips hold for all runs"),
        (ONE + 'measure = ["selection.rule=x"]', "a: selection.rule: Input should be 'global'"),
        (TWO.format("b", "a") + 'config = "paper"', "b is like 'a', whose config is 'embedded', .* one of the two"),
        (TWO.format("b", "a") + 'set = ["evaluation.every=1"]', "b: 'evaluation.every=1' would measure"),
    ],
)
def test_a_variant_that_is_no_run_of_these_ablations_is_refused_before_any(
    tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "variants.toml").write_text(text)
    with pytest.raises(UserError, match=message):
        read_variants(tmp_path / "variants.toml")


def test_only_some_variants_keep_the_order_of_the_table() -> None:
    assert [each.name for each in chosen(SHIPPED, ["clipped", "base"])] == ["base", "clipped"]
    assert chosen(SHIPPED, []) == list(SHIPPED)


def test_an_unknown_variant_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.ablations", "--out", str(tmp_path / "out"), "--only", "base,nope"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: unknown variant 'nope': choose of base, credit, clipped, ")
    assert ended.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def figures(accuracy: float, awareness: float | None, reached: int | None) -> Figures:
    at = {0.1: accuracy, 0.05: accuracy / 2, 0.02: 0.0}
    return Figures(settings="", answers=12_288, full_accuracy=0.5, accuracy=at, awareness=awareness, reached=reached)


def test_the_table_has_means_and_standard_deviations_over_the_seeds() -> None:
    seeds = [figures(0.4, 0.9, 1_024), figures(0.45, 0.95, None), figures(0.5, 1.0, 2_048)]
    base, rule = Variant(name="base", group="default"), Variant(name="rule", group="s", measure=("selection.rule=x",))
    summaries = [Summary(base, "base", seeds), Summary(rule, "base", seeds[:1]), Summary(base, "base", [])]
    heads, rows = table(summaries, EvaluationConfig())
    assert heads[2:] == ["seeds", "answers", "10 %", "5 %", "2 %", "AUC", "98 % at 5 % after"]
    three = ["3", "12,288", "90.0 ± 10.0", "45.0 ± 5.0", "0.0 ± 0.0", "0.950 ± 0.050", "1,024 / - / 2,048"]
    assert rows[0] == ["base", "default", *three]
    assert rows[1] == ["rule (base)", "s", "1", "12,288", "80.0", "40.0", "0.0", "0.900", "-"]
    assert rows[2] == ["base", "default", "0", *["-"] * 6]
    lines = markdown(heads, rows).splitlines()
    assert lines[1] == "| --- |" + " ---: |" * 8
    assert lines[2].startswith("| base | default | 3 | 12,288 | 90.0 ± 10.0 |")


def python(name: str, code: str, folder: Path) -> Job:
    return Job(name, [sys.executable, "-c", code], folder / "logs" / f"{name}.log")


MEET = """
import pathlib, time
mine, other = map(pathlib.Path, {!r})
mine.touch()
while not other.exists(): time.sleep(0.01)
"""


def test_jobs_run_side_by_side_and_one_that_fails_stops_no_other(tmp_path: Path) -> None:
    one, other = str(tmp_path / "one"), str(tmp_path / "other")
    jobs = [
        python("one", MEET.format([one, other]), tmp_path),
        python("other", MEET.format([other, one]), tmp_path),
        python("bad", "import sys; sys.exit('no')", tmp_path),
        python("last", "print(1)", tmp_path),
    ]
    ended: list[Ended] = []
    running: list[int] = []
    run_side_by_side(jobs, 2, ended.append, lambda jobs: running.append(len(jobs)))
    assert max(running) == 2
    assert {each.job.name: each.code for each in ended} == {"one": 0, "other": 0, "bad": 1, "last": 0}
    assert jobs[2].last_line() == "no"
    assert (tmp_path / "logs" / "last.log").read_text() == "1\n"


SAVES = """
import signal, sys, time
asked = []
signal.signal(signal.SIGINT, lambda *_: asked.append(1))
print("ready", flush=True)
while not asked: time.sleep(0.01)
print("saved", flush=True)
"""


@pytest.fixture
def default_handlers() -> Iterator[None]:
    """Whatever the tests themselves were started under, nohup for one."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in ENDING}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("default_handlers")
@pytest.mark.parametrize("number", ENDING)
def test_an_interruption_lets_jobs_save_and_begins_no_other(tmp_path: Path, number: signal.Signals) -> None:
    log = tmp_path / "logs" / "saves.log"

    def interrupt(ended: Ended) -> None:
        os.kill(os.getpid(), number)

    waits = f"import pathlib, time\nwhile 'ready' not in pathlib.Path({str(log)!r}).read_text(): time.sleep(0.01)"
    jobs = [python("saves", SAVES, tmp_path), python("waits", waits, tmp_path), python("never", "", tmp_path)]
    with pytest.raises(KeyboardInterrupt), ended_like_ctrl_c():
        run_side_by_side(jobs, 2, interrupt, lambda jobs: None)
    assert log.read_text() == "ready\nsaved\n"
    assert not (tmp_path / "logs" / "never.log").exists()


@pytest.mark.usefixtures("default_handlers")
def test_a_closed_terminal_s_second_signal_ends_nothing_and_handlers_come_back() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with ended_like_ctrl_c():
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGHUP)
    assert [signal.getsignal(number) for number in ENDING] == [signal.SIG_IGN, signal.SIG_DFL]


@pytest.mark.slow
def test_a_run_that_fails_is_told_with_its_reason(tmp_path: Path) -> None:
    root = work(SHIPPED[0], tmp_path / "out", answers=4).root
    root.mkdir(parents=True)
    (root / "clips").touch()  # in the way of the clips' folder
    command = [sys.executable, "-m", "benchmarks.ablations", "--out", str(tmp_path / "out"), "--answers", "4"]
    ended = subprocess.run([*command, "--seeds", "1", "--only", "base"], capture_output=True, text=True)
    assert ended.returncode == 2
    log = root / "logs" / "base-0.log"
    assert ended.stderr.startswith("error: 1 of the runs failed: base-0: FileExistsError: ")
    assert ended.stderr.endswith(f"({log})\n")
    assert "base-0 failed in" in ended.stdout
    assert (root / "ablations.md").read_text().splitlines()[2].startswith("| base | default | 0 | - |")


def test_a_file_in_place_of_the_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(UserError, match="cannot make the folder"):
        main(tmp_path / "out")
