"""``cacovid evaluate``, ``compress`` and ``data`` as a user types them."""

import json
import re
import shutil
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers as hf  # its names load lazily, after torchvision has been mended
from PIL import Image
from torch.nn.modules.module import register_module_forward_pre_hook

from cacovid.config import ModelConfig, TrainConfig
from cacovid.data.table import read_questions, write_questions
from cacovid.embedded.items import first_clips
from cacovid.errors import UserError
from cacovid.evaluation import blind
from cacovid.evaluation.blind import blind_reward
from cacovid.models.adapter import VideoLLM
from cacovid.models.loading import load_video_llm
from cacovid.policy.base import CompressionPolicy
from cacovid.policy.build import policy_for
from cacovid.records import VideoQuestion
from cluster.commands.main import main
from cluster.commands.shared import labelled_policies, numbers
from tests.support.tiny_models import save_tiny_model
from tests.support.video_files import grey_levels, write_video


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a policy for a tiny model, three videos and their table."""
    made = tmp_path_factory.mktemp("commands")
    save_tiny_model("llava_onevision", made / "model")
    config = ModelConfig(path=str(made / "model"), num_frames=4)
    policy_for(load_video_llm(config), TrainConfig(model=config)).save_pretrained(made / "run" / "policy")
    items = []
    for number in range(3):
        write_video(made / f"v{number}.mp4", grey_levels(8), size=(64, 64))
        item = VideoQuestion(
            f"q{number}", f"v{number}.mp4", "what is it?", ("red", "blue"), "AB"[number % 2], "multiple choice", "made"
        )
        items += [item, replace(item, id=f"r{number}", question="what colour is it?")]
    write_questions(made / "table.parquet", items)
    return made


def cacovid(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run the command line in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", ["cacovid", *map(str, arguments)])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The single line on stderr of a command that must end with exit code 2."""
    assert cacovid(monkeypatch, *arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_evaluate_prints_a_table_and_writes_the_reports(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = ("evaluate", "--policy", folder / "run", "--data", folder / "table.parquet", "--out", out)
    assert cacovid(monkeypatch, *arguments, "--retention", "1,0.1", "--clips", 2) == 0
    printed = capsys.readouterr().out
    for method in ("policy", "untrained", "divprune", "text-cosine", "uniform", "random"):
        assert method in printed
    assert "oracle" not in printed  # the table has no evidence
    content = json.loads((out / "results.json").read_text())
    assert (content["clips"], content["questions"]) == (2, 4)
    assert (out / "results.md").is_file()
    assert Image.open(out / "results.png").width > 500
    again = refused(monkeypatch, capsys, *arguments)
    assert "in use" in again
    assert cacovid(monkeypatch, *arguments, "--retention", "1,0.1", "--clips", 2) == 0  # nothing is left to measure
    assert "going on: 4 of 4" in capsys.readouterr().out
    assert json.loads((out / "results.json").read_text()) == content
    assert cacovid(monkeypatch, *arguments, "--retention", "0.1", "--methods", "random", "--overwrite") == 0
    assert len(json.loads((out / "results.json").read_text())["rows"]) == 1


def test_evaluate_says_what_the_training_of_a_policy_cost(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(folder / "run", run)
    (run / "config.toml").write_text("[evaluation]\nevery = 1\n")
    measured = {"step": 6, "combinations": 3584, "evaluation/accuracy_0.05": 0.97, "evaluation/full_accuracy": 0.98}
    (run / "metrics.jsonl").write_text(json.dumps(measured) + "\n")
    arguments = ("evaluate", "--policy", f"mine={run}", "--data", folder / "table.parquet", "--methods", "policy")
    assert cacovid(monkeypatch, *arguments, "--retention", "0.1", "--clips", 1, "--out", tmp_path / "out") == 0
    assert "mine: combinations until 98 % at 5 % on the run's own clips: 3,584 (step 7)" in capsys.readouterr().out


def test_evaluate_puts_several_policies_in_one_table_and_skips_bad_items(
    monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path
) -> None:
    items = read_questions(folder / "table.parquet")
    items[0] = replace(items[0], video=str(folder / "gone.mp4"))
    write_questions(tmp_path / "table.parquet", items)
    policy = folder / "run" / "policy"
    arguments = ("evaluate", "--policy", f"one={policy}", "--policy", f"two={policy}", "--methods", "policy")
    arguments += ("--data", tmp_path / "table.parquet", "--out", tmp_path / "out", "--retention", "0.2")
    assert cacovid(monkeypatch, *arguments) == 0
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row["method"] for row in content["rows"]] == ["one", "two"]
    assert content["rows"][0]["accuracy"] == content["rows"][1]["accuracy"]
    assert (content["questions"], content["skipped"]) == (5, 1)
    (line,) = (tmp_path / "out" / "skipped-evaluation.jsonl").read_text().splitlines()
    assert json.loads(line)["id"] == "q0"


def test_mistakes_in_evaluate_are_one_line_and_exit_code_two(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path
) -> None:
    def wrong(*arguments: object) -> str:
        return refused(monkeypatch, capsys, "evaluate", "--out", tmp_path / "out", *arguments)

    table, model = folder / "table.parquet", ("--model", folder / "model")
    assert "unknown method 'best'" in wrong("--methods", "best")
    assert "outside (0, 1]" in wrong("--retention", "0.5,1.5")
    assert "no list of numbers" in wrong("--retention", "much")
    assert "unknown selection rule 'best'" in wrong("--rule", "best")
    assert "unknown control 'best'" in wrong("--controls", "best")
    assert "exceeds --max-actors 2" in wrong("--actors", 3, "--max-actors", 2)
    assert "policy.json" in wrong("--policy", tmp_path)
    assert "no question table" in wrong(*model, "--data", tmp_path / "none.parquet")
    assert "needs a trained policy" in wrong(*model, "--data", table, "--methods", "policy", "--overwrite")
    assert "needs evidence" in wrong(*model, "--data", table, "--methods", "oracle", "--overwrite")
    assert "does not exist" in wrong("--model", "./nowhere", "--data", table)
    save_tiny_model("llava_onevision", tmp_path / "other", seed=1)
    assert "trained for the model" in wrong(
        "--policy", folder / "run", "--model", tmp_path / "other", "--data", table, "--overwrite"
    )
    assert not (tmp_path / "out" / "results.json").exists()


def test_compress_answers_from_both_and_draws(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path
) -> None:
    picture = tmp_path / "kept.png"
    arguments = (
        "compress",
        folder / "v0.mp4",
        "--question",
        "what is it?",
        "--policy",
        folder / "run",
        "--out",
        picture,
    )
    options = ("--option", "red", "--option", "blue", "--retention", "0.25")
    assert cacovid(monkeypatch, *arguments, *options) == 0
    printed = capsys.readouterr().out
    assert "9 (25.0 %)" in printed
    assert "A. red" in printed or "B. blue" in printed
    assert "prefill" in printed
    assert Image.open(picture).width > 500
    assert "exists" in refused(monkeypatch, capsys, *arguments)
    figures = ("--figures", tmp_path / "figures")
    assert cacovid(monkeypatch, *arguments, "--max-new-tokens", "3", "--overwrite", *figures) == 0
    printed = capsys.readouterr().out
    for name in ("frame-scores.png", "token-scores.png"):
        assert Image.open(tmp_path / "figures" / name).width > 500
        assert str(tmp_path / "figures" / name) in printed


def test_compress_reads_a_long_video_in_chunks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path
) -> None:
    arguments = ("compress", folder / "v0.mp4", "--question", "what is it?", "--policy", folder / "run")
    more = ("--option", "red", "--option", "blue", "--frames", 8)
    shown = []
    for name, extra in (("whole", ()), ("chunks", ("--chunk-frames", 3))):
        assert cacovid(monkeypatch, *arguments, *more, *extra, "--out", tmp_path / f"{name}.png") == 0
        shown.append(capsys.readouterr().out)
        assert Image.open(tmp_path / f"{name}.png").width > 100
    whole, chunks = ([line for line in each.splitlines() if "video tokens" in line] for each in shown)
    assert whole == chunks
    assert "prefill" in shown[0]
    assert "prefill" not in shown[1]


def test_compress_times_nothing_cold_but_the_reading_of_the_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path
) -> None:
    """On a clock that stands still but for forward passes: a module's first one lasts a minute, others 2 s."""
    now, seen = 0.0, set()

    def forward(module: torch.nn.Module, inputs: object) -> None:
        nonlocal now
        if isinstance(module, CompressionPolicy | hf.SiglipVisionModel | hf.Qwen2Model):
            now += 2.0 if type(module) in seen else 60.0
            seen.add(type(module))

    monkeypatch.setattr("cacovid.compressor.time", SimpleNamespace(perf_counter=lambda: now))
    watching = register_module_forward_pre_hook(forward)
    try:
        arguments = ("--question", "what is it?", "--option", "red", "--option", "blue", "--policy", folder / "run")
        assert cacovid(monkeypatch, "compress", folder / "v0.mp4", *arguments, "--out", tmp_path / "kept.png") == 0
    finally:
        watching.remove()
    printed = capsys.readouterr().out
    assert len(seen) == 3
    rows = {
        cells[0]: cells[1:] for line in printed.splitlines() if len(cells := re.split(r"\s*[│┃]\s*", line)[1:-1]) == 3
    }
    assert rows["prefill"] == rows["encode"] == ["2000.0 ms", "2000.0 ms"]
    assert rows["policy"] == ["2000.0 ms", "-"]


def test_mistakes_in_compress_are_one_line_and_exit_code_two(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.mp4").write_text("this is no video\n" * 99)

    def wrong(video: Path, *arguments: object) -> str:
        given = ("--question", "what is it?", "--policy", folder / "run", "--out", tmp_path / "kept.png", *arguments)
        return refused(monkeypatch, capsys, "compress", video, *given)

    assert "no such video" in wrong(folder / "none.mp4")
    assert "cannot be decoded" in wrong(tmp_path / "text.mp4")
    assert "outside (0, 1]" in wrong(folder / "v0.mp4", "--retention", "0")
    assert "leaves no choice" in wrong(folder / "v0.mp4", "--option", "red")
    assert "ends in .png" in wrong(folder / "v0.mp4", "--out", tmp_path / "kept.gif")
    assert not (tmp_path / "kept.png").exists()


def test_data_check_counts_and_names_what_is_unusable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path
) -> None:
    assert cacovid(monkeypatch, "data", "check", folder / "table.parquet") == 0
    assert "64x64 (3)" in capsys.readouterr().out
    items = read_questions(folder / "table.parquet")
    items[0] = replace(items[0], video=str(folder / "gone.mp4"))
    items[1] = replace(items[1], answer="Z")
    write_questions(tmp_path / "table.parquet", items)
    listed = tmp_path / "skipped.jsonl"
    assert cacovid(monkeypatch, "data", "check", tmp_path / "table.parquet", "--skipped", listed) == 1
    printed = capsys.readouterr().out
    assert "no such video file" in printed
    assert "answer 'Z' is no option" in printed
    assert {json.loads(line)["id"] for line in listed.read_text().splitlines()} == {"q0", "r0"}


def test_data_check_reports_evaluation_videos_in_the_training_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path
) -> None:
    table, report = folder / "table.parquet", tmp_path / "report.json"
    assert cacovid(monkeypatch, "data", "check", table, "--against", table, "--report", report) == 1
    printed = capsys.readouterr().out
    assert "leak (same file)" in printed
    assert "3 videos" in printed
    assert len(json.loads(report.read_text())["leaked"]) == 3


def test_data_show_prints_questions(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    assert cacovid(monkeypatch, "data", "show", folder / "table.parquet", "--rows", 2) == 0
    printed = capsys.readouterr().out
    assert "what colour is it?" in printed
    assert "2 of 6 questions" in printed
    wrong = refused(monkeypatch, capsys, "data", "show", folder / "table.parquet", "--problem-type", "essay")
    assert "'essay' is unknown: choose one of multiple choice" in wrong


def test_data_import_counts_what_it_rejects_and_writes_nothing_where_it_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    made = Path(__file__).parents[1] / "data/importers/fixtures/longvideobench"
    out, other = tmp_path / "t.parquet", tmp_path / "other.parquet"
    assert cacovid(monkeypatch, "data", "import", "longvideobench", made, "--out", out, "--videos", tmp_path) == 0
    printed = capsys.readouterr().out
    assert "2 questions on 2 videos (2 not found) imported, 2 rejected:" in printed
    assert "no published answer (1)" in printed
    assert (tmp_path / "t.rejected.jsonl").is_file()
    again = ("data", "import", "longvideobench", made, "--out", out)
    assert "exists" in refused(monkeypatch, capsys, *again)
    other = tmp_path / "other.parquet"
    assert "choose one of video-r1, video-mme" in refused(
        monkeypatch, capsys, "data", "import", "x", made, "--out", other
    )
    assert "is not MVBench" in refused(monkeypatch, capsys, "data", "import", "mvbench", made, "--out", other)
    assert not other.exists()


def test_the_blind_test_keeps_exactly_the_questions_that_need_the_video(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path
) -> None:
    items = read_questions(folder / "table.parquet")
    llm = load_video_llm(ModelConfig(path=str(folder / "model")))
    expected = [item.id for item in items if blind_reward(llm, item) == 0]
    assert 0 < len(expected) < len(items)
    out = tmp_path / "filtered" / "table.parquet"
    arguments = ("data", "blind-test", folder / "table.parquet", "--model", folder / "model", "--out", out)
    assert cacovid(monkeypatch, *arguments) == 0
    kept = read_questions(out)
    assert [item.id for item in kept] == expected
    assert all(Path(item.video).is_file() for item in kept)
    assert "exists" in refused(monkeypatch, capsys, *arguments)


def test_a_blind_test_that_was_killed_goes_on_where_it_was(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path
) -> None:
    whole, cut = tmp_path / "whole.parquet", tmp_path / "cut.parquet"
    arguments = ("data", "blind-test", folder / "table.parquet", "--model", folder / "model", "--out")
    assert cacovid(monkeypatch, *arguments, whole) == 0
    lines = (tmp_path / "whole.answers.jsonl").read_text().splitlines(keepends=True)
    assert len(lines) == 1 + 6
    log = tmp_path / "cut.answers.jsonl"
    log.write_text("".join(lines[:4]) + lines[4][:20])
    asked: list[str] = []

    def counted(llm: VideoLLM, item: VideoQuestion, instruction: str) -> float:
        asked.append(item.id)
        return blind_reward(llm, item, instruction)

    monkeypatch.setattr(blind, "blind_reward", counted)
    assert cacovid(monkeypatch, *arguments, cut) == 0
    assert len(asked) == 3
    assert log.read_text() == "".join(lines)
    assert read_questions(cut) == read_questions(whole)
    cut.unlink()
    other = refused(monkeypatch, capsys, *arguments, cut, "--instruction", "Answer.")
    assert "add --overwrite to begin anew" in other
    assert cacovid(monkeypatch, *arguments, cut, "--overwrite", "--instruction", "Answer.") == 0


def test_arguments_are_read_as_written(tmp_path: Path) -> None:
    assert numbers("1, 0.25,", "--retention") == [1.0, 0.25]
    (tmp_path / "run" / "policy").mkdir(parents=True)
    folders = labelled_policies([f"late={tmp_path / 'run'}", str(tmp_path / "a=b")])
    assert folders == {"late": tmp_path / "run" / "policy", "policy": tmp_path / "a=b"}
    with pytest.raises(UserError, match="label each"):
        labelled_policies(["a", "b"])


def test_questions_of_one_video_stay_together() -> None:
    items = [VideoQuestion(str(n), f"v{n % 2}", "?", (), "1", "numerical", "s") for n in range(6)]
    assert [item.id for item in first_clips(items, 1)] == ["0", "2", "4"]
    assert [item.id for item in first_clips(items, None)] == ["0", "2", "4", "1", "3", "5"]


def test_the_version_is_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert cacovid(monkeypatch, "--version") == 0
    assert capsys.readouterr().out.strip() == f"cacovid {version('cacovid')}"
