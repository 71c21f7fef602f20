"""``cacovid report`` as a user types it."""

import sys
from pathlib import Path

import pytest
from PIL import Image

from cacovid.config import ModelConfig, TrainConfig
from cacovid.data.table import write_questions
from cacovid.models.loading import load_video_llm
from cacovid.policy.build import policy_for
from cacovid.records import VideoQuestion
from cluster.commands.main import main
from tests.support.made_report import made_results, made_run
from tests.support.tiny_models import save_tiny_model
from tests.support.video_files import grey_levels, write_video


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a policy for a tiny model, an evaluation with its clips, and a table elsewhere."""
    made = tmp_path_factory.mktemp("report")
    save_tiny_model("llava_onevision", made / "model")
    config = ModelConfig(path=str(made / "model"), num_frames=4)
    policy_for(load_video_llm(config), TrainConfig(model=config)).save_pretrained(made_run(made / "run") / "policy")
    clips = made_results(made / "results") / "clips-held-out-2"
    clips.mkdir()
    write_video(clips / "v.mp4", grey_levels(8), size=(64, 64))
    items = [
        VideoQuestion(f"q{n}", "v.mp4", f"what is {n}?", ("red", "blue"), "AB"[n % 2], "multiple choice", "made")
        for n in range(6)
    ]
    write_questions(clips / "questions.parquet", items)
    gone = [VideoQuestion("gone", "gone.mp4", "what?", ("red", "blue"), "A", "multiple choice", "made")]
    write_questions(made / "gone.parquet", gone)
    return made


def cacovid(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run the command line in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", ["cacovid", "report", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_a_run_and_its_evaluation_become_one_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "report.html"
    assert cacovid(monkeypatch, folder / "run", folder / "results", "--out", out, "--pictures", "2") == 0
    assert f"wrote {out}" in capsys.readouterr().out
    html = out.read_text()
    assert "run at 5 %, 6 questions looked at" in html
    assert html.count("data:image/webp;base64,") == 3 * 4  # of two right and two wrong ones: a tiny model guesses
    assert "what is 1? A. red B. blue" in html  # of the evaluation's rows, by the clips' table
    assert str(folder) not in html.replace(str(folder / "model"), "")  # the configuration alone names folders


def test_pictures_of_the_folder_stand_in_for_a_gallery(
    monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path
) -> None:
    run = made_run(tmp_path / "run")
    (run / "pictures").mkdir()
    Image.new("RGB", (30, 30)).save(run / "pictures" / "kept-1.png")
    assert cacovid(monkeypatch, run, "--out", tmp_path / "r.html") == 0
    assert (tmp_path / "r.html").read_text().count("data:image/webp;base64,") == 1


def test_mistakes_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path
) -> None:
    def wrong(*arguments: object) -> str:
        given = arguments if "--out" in arguments else (*arguments, "--out", tmp_path / "r.html")
        assert cacovid(monkeypatch, *given) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1, lines
        assert not (tmp_path / "r.html").exists()
        return lines[0]

    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "config.toml").write_text("x = 1")
    (tmp_path / "there.html").touch()
    run = folder / "run"
    assert "neither a run" in wrong(tmp_path / "foreign")
    assert "neither a run" in wrong(tmp_path / "none")
    assert "exists" in wrong(run, "--out", tmp_path / "there.html")
    assert "no HTML file" in wrong(run, "--out", tmp_path / "r.png")
    assert "outside (0, 1]" in wrong(run, "--retention", "2")
    assert "none.parquet" in wrong(run, "--data", tmp_path / "none.parquet")
    assert "none of 1 questions" in wrong(run, "--data", folder / "gone.parquet")
    assert "policy.json" in wrong(run, folder / "results", "--policy", tmp_path / "foreign")
