"""The page in a real browser: Debian's chromium, driven by playwright."""

import pytest
from playwright.sync_api import Page, expect

from serving.page.samples import draw_samples
from tests.support.browser import chromium, needs_chromium
from tests.support.serving_server import KEY, Running, running, service_config
from tests.support.serving_videos import clip_bytes
from tests.support.waiting import PATIENCE_S, wait_until

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def browser():
    with chromium() as launched:
        expect.set_options(timeout=1000 * PATIENCE_S)
        yield launched


@pytest.fixture(scope="module")
def service():
    with running(service_config(), draw_samples(2), keys=()) as running_service:
        yield running_service


@pytest.fixture
def page(browser, service: Running):
    """A fresh page; whatever the browser complains about fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(1000 * PATIENCE_S)
    opened = context.new_page()
    complaints: list[str] = []
    opened.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.goto(service.url)
    yield opened
    context.close()
    assert not complaints


def ask_about_a_sample(page: Page) -> None:
    page.get_by_role("button", name="clip 1").click()
    expect(page.locator("#question")).not_to_have_value("")
    page.get_by_role("button", name="Ask").click()
    expect(page.locator("#outcome")).to_be_visible()


def kept_of_frames(page: Page) -> list[int]:
    """Kept tokens as the frames' captions tell them."""
    return [int(text.split()[0]) for text in page.locator("figcaption span:last-child").all_inner_texts()]


def test_a_sample_is_asked_about_and_both_answers_are_compared(page: Page):
    ask_about_a_sample(page)
    for place in ("#compressed", "#whole"):
        assert page.locator(f"{place} .answer").inner_text().strip()
        assert page.locator(f"{place} tr").count() == 5
    assert page.locator("#whole td").nth(1).inner_text() == "288"
    assert page.locator("#compressed td").nth(1).inner_text() == "28"
    expect(page.locator("#saved")).to_contain_text("260 video tokens (90 %)")


def test_kept_tokens_and_budget_bars_follow_the_slider(page: Page):
    ask_about_a_sample(page)
    expect(page.locator("#frames canvas")).to_have_count(8)
    assert "28 of 288" in page.locator("#keptline").inner_text()
    page.locator("#retention").evaluate("slider => { slider.value = 75; slider.dispatchEvent(new Event('input')); }")
    expect(page.locator("#keptline")).to_contain_text("91 of 288")
    wait_until(lambda: sum(kept_of_frames(page)) == 91)  # the frames are drawn after the line has changed
    shown = kept_of_frames(page)
    widths = page.locator(".bar div").evaluate_all("bars => bars.map(bar => parseFloat(bar.style.width))")
    assert widths[shown.index(max(shown))] == 100.0


def test_kept_tokens_are_in_full_light_and_the_others_dimmed(page: Page):
    ask_about_a_sample(page)
    light = page.evaluate(
        """() => [...document.querySelectorAll("canvas")].map(canvas => {
            const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            let bright = 0;
            for (let i = 0; i < data.length; i += 4) bright += Math.max(data[i], data[i + 1], data[i + 2]) > 200;
            return bright / (data.length / 4);
        })"""
    )
    shown = kept_of_frames(page)
    most, least = shown.index(max(shown)), shown.index(min(shown))
    assert light[most] > light[least]


def test_an_own_file_is_asked_about(page: Page, tmp_path):
    (tmp_path / "mine.mp4").write_bytes(clip_bytes(1))
    page.locator("#file").set_input_files(tmp_path / "mine.mp4")
    expect(page.locator("#chosen")).to_have_text("mine.mp4")
    expect(page.get_by_role("button", name="Ask")).to_be_disabled()
    page.locator("#question").fill("what color is the ring object?\nA. red\nB. blue")
    page.get_by_role("button", name="Ask").click()
    expect(page.locator("#outcome")).to_be_visible()


def test_a_file_that_is_no_video_is_told(browser, service: Running, tmp_path):
    page = browser.new_page()
    page.goto(service.url)
    (tmp_path / "notes.txt").write_text("no video")
    page.locator("#file").set_input_files(tmp_path / "notes.txt")
    page.locator("#question").fill("what?")
    page.get_by_role("button", name="Ask").click()
    expect(page.get_by_role("alert")).to_contain_text("the video cannot be used")
    expect(page.get_by_role("button", name="Ask")).to_be_enabled()
    page.close()


def test_after_a_refusal_no_earlier_answer_passes_for_the_new_one_and_a_phone_shows_all_of_it(
    browser, service: Running
):
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto(service.url)
    ask_about_a_sample(page)
    expect(page.locator("#frames canvas")).to_have_count(8)
    boxes = [page.locator("#frames canvas").nth(place).bounding_box() for place in (0, 1, 7)]
    assert boxes[0]["y"] == boxes[1]["y"], "two frames in a row"
    assert max(box["x"] + box["width"] for box in boxes) <= 390
    assert page.evaluate("() => document.documentElement.scrollWidth") == 390

    page.locator("#question").fill("what <|im_end|> is it?")
    page.get_by_role("button", name="Ask").click()
    expect(page.get_by_role("alert")).to_contain_text("control token")
    for place in ("#outcome", "#kept"):
        expect(page.locator(place)).to_be_hidden()
    page.close()


def test_markup_in_a_question_stays_text(page: Page):
    page.get_by_role("button", name="clip 1").click()
    expect(page.locator("#question")).not_to_have_value("")  # else the sample's question would come after ours
    page.locator("#question").fill("\n".join(f"{letter}. <b>bold</b><img src=x onerror=alert(1)>" for letter in "ABCD"))
    page.get_by_role("button", name="Ask").click()
    expect(page.locator("#whole .answer")).to_contain_text("<b>bold</b><img")
    assert page.locator(".answer b, .answer img").count() == 0


def test_a_service_with_keys_asks_for_one(browser):
    with running(service_config(), draw_samples(1)) as service:
        page = browser.new_page()
        page.goto(service.url)
        expect(page.locator("#key")).to_be_visible()
        page.locator("#key").fill(KEY)
        page.locator("#key").press("Tab")
        expect(page.locator("#model option")).to_have_count(2)
        ask_about_a_sample(page)
        page.close()
