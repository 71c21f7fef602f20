"""The report in a real browser: light and dark, on a desk and on a phone."""

from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser

from cacovid.reporting.page import Report, write_page
from cacovid.reporting.records import Answered, Gallery
from cacovid.reporting.results import Evaluated
from cacovid.reporting.worst import worst_questions
from cluster.training.run_record import run_record
from tests.support.browser import chromium, needs_chromium
from tests.support.made_report import made_results, made_run

pytestmark = needs_chromium

# Contrast by WCAG 2 of every text against the nearest ground behind it; at least 4.5 can be read.
CONTRAST = """() => {
  const parts = colour => colour.match(/[\\d.]+/g).map(Number);
  const linear = v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => [r, g, b].map(v => linear(v / 255))
    .reduce((sum, v, at) => sum + v * [.2126, .7152, .0722][at], 0);
  const ground = element => {
    for (let at = element; at; at = at.parentElement) {
      const found = parts(getComputedStyle(at).backgroundColor);
      if (found.length < 4 || found[3] > 0) return found;
    }
    return [255, 255, 255];
  };
  const bad = [];
  for (const element of document.body.querySelectorAll("*")) {
    if (![...element.childNodes].some(node => node.nodeType === 3 && node.data.trim())) continue;
    const [a, b] = [light(parts(getComputedStyle(element).color)), light(ground(element))].sort((x, y) => y - x);
    if ((a + .05) / (b + .05) < 4.5) bad.push(`${element.tagName}.${element.className} ${(a + .05) / (b + .05)}`);
  }
  return [...new Set(bad)];
}"""


@pytest.fixture(scope="module")
def browser():
    with chromium() as launched:
        yield launched


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("report")
    pictures = {"kept tokens": Image.new("RGB", (1600, 400)), "token scores": Image.new("RGB", (90, 90))}
    long = "which_of_these_" * 12  # no place to break
    options = ("A. red", f"B. {long}")
    shown = [
        Answered("id", long, options, "A. red", long, "A. red", one, True, 0.2, 3, 9, pictures) for one in (True, False)
    ]
    evaluated = Evaluated.read(made_results(made / "results", label="a-policy-with-quite-a-long-name"))
    evaluations = [(evaluated, worst_questions(evaluated.rows, {}))]
    gallery = Gallery("ours", 0.05, 9, shown[:1], shown[1:], shown[1:])
    write_page(Report("A run", [run_record(made_run(made / "run"))], evaluations, [gallery]), made / "report.html")
    return made / "report.html"


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_is_readable_and_asks_nobody(browser: Browser, report: Path, width: int, scheme: str) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("request", lambda request: request.url.startswith("data:") or complaints.append(request.url))
    page.goto(report.as_uri())
    assert complaints == [report.as_uri()]
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate("[...document.images].every(each => each.complete && each.naturalWidth > 0)")
    assert page.evaluate("[...document.images].every(each => each.getBoundingClientRect().width > 60)")
    assert page.evaluate(CONTRAST) == []
    context.close()


def test_charts_change_with_the_scheme(browser: Browser, report: Path) -> None:
    seen = []
    for scheme in ("light", "dark"):
        context = browser.new_context(color_scheme=scheme)
        page = context.new_page()
        page.goto(report.as_uri())
        # The image alone on a ground of its own, so that nothing but its own lines can differ.
        page.evaluate("document.body.replaceChildren(document.images[0]); document.body.style.background = '#888'")
        seen.append(page.screenshot())
        context.close()
    assert seen[0] != seen[1]
