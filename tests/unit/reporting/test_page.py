"""The report's HTML: all sections, nothing from outside, nothing that comes from files is markup."""

import base64
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from cacovid.errors import UserError
from cacovid.records import VideoQuestion
from cacovid.reporting.charts import run_charts
from cacovid.reporting.page import Report, render
from cacovid.reporting.records import Answered, Gallery, RunRecord
from cacovid.reporting.results import Evaluated, Results
from cacovid.reporting.worst import worst_questions
from cluster.training.run_record import is_run, run_record
from tests.support.made_report import made_results, made_run

HOSTILE = "\"><script>alert(1)</script><img src=x onerror=alert(1)> {{ 7 * 7 }} & '"


def parsed(html: str) -> ElementTree.Element:
    """The document, which is well-formed XML too."""
    return ElementTree.fromstring(html.removeprefix("<!DOCTYPE html>"))


def answered(right: bool, text: str = "what?") -> Answered:
    pictures = {"kept tokens": Image.new("RGB", (2000, 10)), "token scores": Image.new("RGB", (9, 9))}
    return Answered("id", text, (f"A. {text}", "B. b"), "A", "B", "A", right, True, 0.25, 3, 9, pictures)


def whole(tmp_path: Path, text: str = "q") -> Report:
    evaluated = Evaluated.read(made_results(tmp_path / "results", label=text))
    items = {"q2": VideoQuestion("q2", "v", text, (text, "b"), "A", "multiple choice", "made")}
    run = run_record(made_run(tmp_path / "run", **{"evaluation/accuracy_0.1": 0.5}))
    record = RunRecord(text, run.rows, run.config + f"# {text}", {**run.facts, text: text})
    gallery = Gallery(text, 0.05, 9, [answered(True, text)], [answered(False, text)], [answered(False, text)], 2)
    return Report(text, [record], [(evaluated, worst_questions(evaluated.rows, items))], [gallery])


def test_a_whole_report_is_well_formed_and_has_all_sections(tmp_path: Path) -> None:
    page = parsed(render(whole(tmp_path)))
    sections = [section.attrib["id"] for section in page.iter("section")]
    assert sections == ["training", "results", "gallery", "worst", "configuration", "environment"]
    text = " ".join(page.itertext())
    for part in (
        "12 of 24",  # steps
        "commit 0123456789ab",
        "Accuracy while training",
        "75.0 ± 2.0",
        "+25.0 to uniform",
        "p 0.030 (< 0.001)",
        "with 30.0 %",  # more tokens than the column says
        "n. d.",
        "from 3 of 9 tokens",
        "right from all tokens, wrong from the kept ones",
        "what trained policies fail on most",
        "items_per_step",
        "transformers",
    ):
        assert part in text, part
    assert "secret-host" not in text
    best = [cell.text for cell in page.iter("td") if cell.attrib.get("class") == "best"]
    assert best == ["75.0 ± 2.0"] * 2  # not the one with more tokens


def test_nothing_is_loaded_and_nothing_runs(tmp_path: Path) -> None:
    page = parsed(render(whole(tmp_path)))
    assert not list(page.iter("script"))
    assert not list(page.iter("link"))
    for element in page.iter():
        for name in ("src", "href", "srcset", "data", "action"):
            address = element.attrib.get(name, "#")
            assert address.startswith(("#", "data:image/")), address
        assert not any(name.startswith("on") for name in element.attrib)
    style = next(page.iter("style")).text or ""
    assert "url(" not in style
    assert "@import" not in style
    policy = next(each for each in page.iter("meta") if "http-equiv" in each.attrib)
    assert policy.attrib["content"].startswith("default-src 'none'")


def test_charts_follow_the_scheme_and_load_nothing(tmp_path: Path) -> None:
    page = parsed(render(whole(tmp_path)))
    images = [image.attrib["src"] for image in page.iter("img")]
    charts = [base64.b64decode(each.partition(",")[2]).decode() for each in images if "svg" in each[:20]]
    assert len(charts) == 7  # five of the run, two of the results
    for svg in charts:
        ElementTree.fromstring(svg)
        assert "prefers-color-scheme:dark" in svg
        outside = {found for found in re.findall(r"https?://[^\"' ]+", svg) if "www.w3.org/" not in found}
        assert not outside
        assert not re.search(r"(fill|stroke): #0a0b0c", svg)  # every colour of ours is a variable


def test_pictures_are_no_wider_than_a_page(tmp_path: Path) -> None:
    html = render(whole(tmp_path))
    assert html.count("data:image/webp;base64,") == 4
    assert len(html) < 400_000


def test_hostile_texts_stay_texts(tmp_path: Path) -> None:
    html = render(whole(tmp_path, HOSTILE))
    page = parsed(html)
    assert not list(page.iter("script"))
    assert all("onerror" not in image.attrib for image in page.iter("img"))
    assert "<script>" not in html
    texts = [element.text for element in page.iter() if element.text and "alert(1)" in element.text]
    assert len(texts) > 10
    assert all("{{ 7 * 7 }}" in text for text in texts)


def test_an_empty_report_says_what_is_missing() -> None:
    text = " ".join(parsed(render(Report("nothing"))).itertext())
    assert "No pictures: they need" in text
    assert "Not known: they need rows.parquet" in text
    assert "No run was given" in text


def test_a_run_without_a_step_and_pictures_that_lie_there(tmp_path: Path) -> None:
    run = run_record(made_run(tmp_path / "run", steps=0))
    page = parsed(render(Report("r", [run], pictures={"kept-1": Image.new("RGB", (9, 9))})))
    text = " ".join(page.itertext())
    assert "No step is finished yet" in text
    assert "kept-1" in text


def test_several_runs_share_their_charts(tmp_path: Path) -> None:
    runs = [run_record(made_run(tmp_path / name)) for name in ("one", "two")]
    text = " ".join(parsed(render(Report("r", runs))).itertext())
    assert "one: the policy's own choice" in text
    assert "two: the policy's own choice" in text


def test_accuracy_by_question_type_has_a_chart_for_each_retention(tmp_path: Path) -> None:
    kinds = {
        f"evaluation/{kind}accuracy_{kept}": 0.5
        for kind in ("", "order_", "ocr-2_")
        for kept in (1, 0.1, 0.05)
        if kind or kept < 1
    }
    charts = run_charts([run_record(made_run(tmp_path, **kinds, **{"evaluation/full_accuracy": 1.0}))])
    lines = {chart.title: [key.label for key in chart.keys] for chart in charts if "Accuracy" in chart.title}
    assert lines == {
        "Accuracy while training": ["5 % kept", "10 % kept"],
        "Accuracy by question type, 5 % kept": ["ocr-2", "order"],
        "Accuracy by question type, 10 % kept": ["ocr-2", "order"],
    }


@pytest.mark.parametrize("compared", [True, False])
def test_results_of_later_releases_are_read(tmp_path: Path, compared: bool) -> None:
    folder = made_results(tmp_path, compared=compared, later={"invented": {"later": [1]}, "agreement": 0.9})
    evaluated = Evaluated.read(folder)
    assert evaluated.results.methods == ["ours", "uniform", "fastv-behind", "evs"]
    assert bool(evaluated.rows) == compared
    parsed(render(Report("r", evaluations=[(evaluated, worst_questions(evaluated.rows, {}))])))


def test_worst_questions_are_those_that_policies_fail_on() -> None:
    def row(question: str, method: str, reward: float | None) -> dict[str, object]:
        return {"question": question, "method": method, "retention": 0.1, "reward": reward}

    rows = [
        row("good", "mine", 1.0),
        row("half", "mine", 1.0),
        row("half", "mine", 0.0),
        *(row("hard", name, 0.0) for name in ("mine", "all tokens", "uniform", "untrained")),
        *(row("lost", name, float(name != "mine")) for name in ("mine", "all tokens", "uniform", "random")),
        row("lost", "evs", None),
    ]
    found = worst_questions(rows, {})
    assert [(each.id, each.right, each.others, each.full) for each in found] == [
        ("lost", 0.0, 1.0, 1.0),
        ("hard", 0.0, 0.0, 0.0),
        ("half", 0.5, None, None),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"{}", "model: Field required"), (b"[1]", "content:"), (b"{", "content:"), (b'{"rows": 3}', "results.json")],
)
def test_foreign_results_are_refused_in_one_line(content: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        Results.parse(content, "results.json")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["times.json", "rows.parquet"])
def test_damaged_files_are_refused_in_one_line(tmp_path: Path, name: str) -> None:
    (made_results(tmp_path) / name).write_bytes(b"PAR1 or not")
    with pytest.raises(UserError, match=name) as refused:
        Evaluated.read(tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("line", ["[]\n", "{}\n", "no json\n", '{"step": "x"}\n'])
def test_foreign_figures_are_refused_in_one_line(tmp_path: Path, line: str) -> None:
    run = made_run(tmp_path / "run")
    (run / "metrics.jsonl").write_text(line)
    assert is_run(run)
    with pytest.raises(UserError, match=r"metrics\.jsonl") as refused:
        run_record(run)
    assert "\n" not in str(refused.value)
