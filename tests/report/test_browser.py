"""The page in a real browser: nothing is blocked, nothing is wider than the screen or cut off in print."""

import chromium
import numpy as np
import pytest
from made_runs import make_comparison, make_run
from PIL import Image

from diffsight.report.compared import comparison_page
from diffsight.report.page import make_report, write_report

pytestmark = pytest.mark.skipif(chromium.PROGRAM is None, reason="needs Chromium: apt-get install chromium")

WIDER = """[...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll') && !e.closest('svg'))
.filter(e => e.getBoundingClientRect().right > innerWidth + 1).map(e => e.tagName + '.' + e.className).join(' ')"""
BROKEN = """e => { const inside = document.createRange(); inside.selectNodeContents(e)
return !/\\s/.test(e.innerText) && inside.getClientRects().length > 1 && !e.querySelector('svg') }"""
PRINTED = (
    """[...document.querySelectorAll('table')].filter(e => e.getBoundingClientRect().right > innerWidth + 1).length"""
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium.Browser(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture(scope="module")
def page(scored, photographs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    long = make_run(
        folder / "a-run-with-a-name-that-is-rather-long-and-cannot-be-broken",
        classes=[f"kind{'-of-a-thing' * 6}-{number}" for number in range(30)],
        images=300,
        failures=[{"id": "x" * 200, "reason": "y" * 300}],
    )
    write_report(make_report([scored], data=photographs), folder / "real.html")
    write_report(make_report([long, make_run(folder / "b", images=12)]), folder / "several.html")
    (folder / "compared.html").write_text(comparison_page(make_comparison(methods=30), folder), encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", ["real.html", "several.html", "compared.html"])
@pytest.mark.parametrize("width", [320, 360, 1280])
def test_nothing_is_wider_than_the_screen(browser, page, name, width):
    browser.open(page / name, width=width)
    assert browser.value("document.scrollingElement.scrollWidth <= innerWidth")
    assert browser.value(WIDER) == ""


def test_the_table_of_methods_needs_no_scrolling_and_on_a_phone_keeps_their_names(browser, page):
    browser.open(page / "compared.html", width=1280)
    assert browser.value("document.querySelectorAll('.scroll').length") == 5
    assert browser.value("[...document.querySelectorAll('.scroll')].every(e => e.scrollWidth <= e.clientWidth)")
    assert browser.value(f"[...document.querySelectorAll('.wide td')].filter({BROKEN}).map(e => e.innerText)") == []
    browser.open(page / "compared.html", width=390)
    left = "document.querySelector('.wide tbody th').getBoundingClientRect().left"
    before = browser.value(left)
    browser.value("document.querySelector('.scroll').scrollLeft = 300")
    assert browser.value("document.querySelector('.scroll').scrollLeft") == 300
    assert browser.value(left) == before


@pytest.mark.parametrize("name", ["real.html", "several.html"])
def test_nothing_is_blocked_or_asked_for(browser, page, name):
    browser.open(page / name, width=1280)
    asked = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
    assert [url[:11] for url in asked if not url.startswith("file:")] == ["data:image/"] * (len(asked) - 1)
    assert [event for event in browser.events if event["method"] == "Log.entryAdded"] == []
    assert browser.value("[...document.images].every(image => image.naturalWidth > 0)")
    assert browser.value("document.compatMode") == "CSS1Compat"


def test_light_and_dark_are_readable(browser, page, tmp_path):
    """Text against what is behind it, by the contrast of WCAG 2."""
    light = {}
    for dark in (False, True):
        browser.open(page / "real.html", width=1280, dark=dark)
        browser.screenshot(tmp_path / "page.png", whole=False)
        light[dark] = np.asarray(Image.open(tmp_path / "page.png").convert("L")).mean() / 255
        panel = colour(browser, "getComputedStyle(document.querySelector('section')).backgroundColor")
        for chosen in ("h1", "dt", ".subtitle", ".section-title", "td", ".caption", "figcaption", ".main .value"):
            text = colour(browser, f"getComputedStyle(document.querySelector({chosen!r})).color")
            assert contrast(text, panel) >= 4.5, (dark, chosen)
        drawn = colour(browser, "getComputedStyle(document.querySelector('svg.chart text')).fill")
        assert contrast(drawn, panel) >= 4.5
    assert light[False] > 0.8
    assert light[True] < 0.3


def test_numbers_stand_to_the_right_and_fit_in_print(browser, page):
    browser.open(page / "compared.html", width=720, media="print")
    assert browser.value(PRINTED) == 0
    browser.open(page / "real.html", width=720, media="print")
    assert browser.value(PRINTED) == 0
    assert browser.value("getComputedStyle(document.querySelector('tbody td.n')).textAlign") == "right"
    assert browser.value("getComputedStyle(document.querySelector('.scroll')).overflowX") == "visible"
    assert browser.pdf().startswith(b"%PDF")


def colour(browser, expression):
    text = browser.value(expression)
    return [float(part) for part in text[text.index("(") + 1 : -1].split(",")[:3]]


def contrast(one, other):
    def luminance(rgb):
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in np.array(rgb) / 255]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)
