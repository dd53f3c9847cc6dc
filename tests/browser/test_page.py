"""The page of a real recording in a real browser: nothing is complained of or asked for, every theme, width and paper is served."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.browser.chromium import EXECUTABLE, HOW_TO_RUN, Browser, Page, opened, started
from tests.browser.goldens import FOLDER, SHOTS, apart, shot, write_page_of_a_sample

pytestmark = pytest.mark.skipif(EXECUTABLE is None and not os.environ.get("DIRECTMAP_BROWSER"), reason=HOW_TO_RUN)

WIDTHS = (375, 768, 1280)
TOLERATED = 0.01
"""Share of tiles that may differ from a golden picture: another version of a browser moves a line of text here and there."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with started() as running:
        yield running


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page_of_a_sample(tmp_path_factory.mktemp("page") / "out")


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_complained_of_nothing_is_asked_for_and_the_page_fits(
    browser: Browser, path: Path, width: int, dark: bool
) -> None:
    with opened(browser, path, width, dark=dark) as page:
        assert page.complaints() == []
        assert page.requests() == []
        assert page.js("document.documentElement.scrollWidth") <= width, "the page itself never scrolls sideways"
        assert (
            page.js(
                "[...document.querySelectorAll('svg')].filter(s => !s.getBoundingClientRect().height && s.checkVisibility()).length"
            )
            == 0
        )


def test_a_page_that_asks_something_of_another_place_is_found_out(browser: Browser, path: Path) -> None:
    """So that the test above means something."""
    forged = path.parent / "forged.html"
    forged.write_text(
        path.read_text().replace("</main>", '<img src="https://example.invalid/x.png"><script>1</script></main>')
    )
    with opened(browser, forged, 800) as page:
        assert page.complaints()
    forged.write_text(forged.read_text().replace("Content-Security-Policy", "Nothing"))
    with opened(browser, forged, 800) as page:
        assert page.requests() == ["https://example.invalid/x.png"]
    forged.unlink()


@pytest.mark.parametrize("name", SHOTS)
def test_the_page_looks_as_it_did_when_somebody_looked(browser: Browser, path: Path, name: str) -> None:
    with opened(browser, path, 800) as page:
        if not page.js("""document.fonts.check('12px "DejaVu Sans"')"""):
            pytest.skip("no DejaVu Sans; to run this: apt-get install fonts-dejavu-core")
    golden = np.asarray(Image.open(FOLDER / f"{name}.png").convert("RGB"), np.uint8)
    width, dark = SHOTS[name]
    found = shot(browser, path, width, dark=dark)
    assert apart(found, golden) <= TOLERATED, "if it is meant: python3 -m tests.browser.goldens, and look at them"


def test_a_page_that_lost_its_map_or_its_colours_does_not_look_as_it_did(browser: Browser, path: Path) -> None:
    golden = np.asarray(Image.open(FOLDER / "wide-1280.png").convert("RGB"), np.uint8)
    whole = path.read_text()
    for old, new in (
        ('<svg viewBox="0 0 32 16"', '<svg style="visibility: hidden" viewBox="0 0 32 16"'),
        ("--dm-level-2M:", "--dm-level-x:"),
        ("h3 {", "h3 { display: none; } h4 {"),
    ):
        assert old in whole
        other = path.parent / "other.html"
        other.write_text(whole.replace(old, new))
        assert apart(shot(browser, other, 1280, dark=False), golden) > TOLERATED, new
        other.unlink()


def test_goldens_are_small() -> None:
    assert {file.stem for file in FOLDER.iterdir()} == set(SHOTS)
    assert all(file.stat().st_size < 300_000 for file in FOLDER.iterdir())


def test_the_dark_theme_is_dark_and_keeps_the_colours_of_users(browser: Browser, path: Path) -> None:
    light, dark = (shot(browser, path, 1280, dark=theme).astype(int) for theme in (False, True))
    assert np.median(light.sum(axis=2)) > 600 and np.median(dark.sum(axis=2)) < 150
    assert (dark.max(axis=2) - dark.min(axis=2) > 100).sum() > 500


# --- the map without a mouse ---------------------------------------------------------------------------------------

TIP = (
    "[...document.querySelectorAll('.tip')].filter(t => getComputedStyle(t).display != 'none').map(t => t.textContent)"
)


def tab_to_the_map(page: Page) -> int:
    """Presses of Tab until a cell has the focus."""
    for presses in range(1, 80):
        page.press("Tab")
        if page.js("document.activeElement.matches('.cells input')"):
            return presses
    raise AssertionError("Tab never reaches the map")


def test_tab_and_arrow_keys_name_one_cell_after_the_other(browser: Browser, path: Path) -> None:
    with opened(browser, path, 1280) as page:
        assert page.js(TIP) == []
        tab_to_the_map(page)
        (first,) = page.js(TIP)
        assert re.match(r"0\.000 GiB: split before the recording; ", first)
        assert page.js("document.activeElement.getBoundingClientRect().bottom <= innerHeight"), "it is scrolled to"
        named = [first]
        for _ in range(12):
            page.press("ArrowRight")
            named += page.js(TIP)
        addresses = [float(text.split()[0]) for text in named]
        assert len(set(addresses)) == 13 and addresses == sorted(addresses)
        page.press("ArrowLeft")
        assert page.js(TIP) == [named[-2]]
        page.press("Tab")
        assert page.js(TIP) == [], "the map is one stop of the Tab key"


def test_a_screen_reader_hears_what_is_shown(browser: Browser, path: Path) -> None:
    with opened(browser, path, 1280) as page:
        tree = page.call("Accessibility.getFullAXTree")["nodes"]
        names = {str(n["name"].get("value")) for n in tree if n.get("role", {}).get("value") == "radio"}
        assert len(names) == page.js("document.querySelectorAll('.cells input').length") == 154
        assert any("kept by 2 pages of module usb_common" in name for name in names)


def test_the_mouse_names_the_cell_it_is_over(browser: Browser, path: Path) -> None:
    with opened(browser, path, 1280) as page:
        tab_to_the_map(page)
        place = """(() => {{ const i = [...document.querySelectorAll('.cells input')][{0}]; i.scrollIntoView({{block: 'center'}});
            const r = i.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2, i.nextElementSibling.textContent]; }})()"""
        for i in (40, 90):
            x, y, text = page.js(place.format(i))
            page.point(x, y)
            assert page.js(TIP) == [text], "that alone, although another has the focus"


def test_a_finger_is_wide_enough_for_a_cell_on_a_telephone(browser: Browser, path: Path) -> None:
    with opened(browser, path, 375) as page:
        size = page.js("(r => [r.width, r.height])(document.querySelector('.cells input').getBoundingClientRect())")
        assert min(size) >= 10


# --- what is wider than the screen ---------------------------------------------------------------------------------

SCROLLED = "[...document.querySelectorAll('.scroll, figure .frame')].filter(e => e.scrollWidth > e.clientWidth)"


def shown(page: Page, i: int) -> tuple[int, int, int, int]:
    """What can be seen of such a one, in its left half of the window: x, y, width, height."""
    box = f"(e => {{ e.scrollIntoView({{block: 'start'}}); return e.getBoundingClientRect(); }})({SCROLLED}[{i}])"
    x, y, width, height = page.js(f"(r => [r.x, r.y, r.width, r.height])({box})")
    return round(x), round(y), round(width), round(min(height, 800 - y))


def edges(page: Page, i: int) -> tuple[float, float]:
    """How much darker its left and its right edge are than the same a little further in, where nothing is drawn: the background alone."""
    page.js(f"{SCROLLED}[{i}].firstElementChild.style.visibility = 'hidden', 1")
    x, y, width, height = shown(page, i)
    grey = page.picture()[y + 4 : y + height - 4, x : x + width].astype(float).mean(axis=(0, 2))
    page.js(f"{SCROLLED}[{i}].firstElementChild.style.visibility = '', 1")
    return float(grey[24] - grey[1]), float(grey[-25] - grey[-2])


def test_on_a_telephone_a_shadow_shows_that_there_is_more_at_an_edge(browser: Browser, path: Path) -> None:
    with opened(browser, path, 375) as page:
        page.js("document.querySelectorAll('details').forEach(d => d.open = true), 1")
        n = page.js(f"{SCROLLED}.length")
        assert n >= 5
        for i in range(n):
            left, right = edges(page, i)
            assert abs(left) < 2 and right > 20, f"{i}: at its beginning there is more on the right alone"
            page.js(f"{SCROLLED}[{i}].scrollLeft = 1e6, 1")
            left, right = edges(page, i)
            assert left > 20 and abs(right) < 2, f"{i}: at its end on the left alone"


def test_where_all_is_seen_there_is_no_shadow(browser: Browser, path: Path) -> None:
    with opened(browser, path, 1280) as page:
        assert page.js(f"{SCROLLED}.length") == 0
        page.js(
            "document.querySelectorAll('.scroll').forEach(e => { e.firstElementChild.style.visibility = 'hidden'; }), 1"
        )
        x, y, width, height = page.js(
            "(r => [r.x, r.y, r.width, r.height].map(Math.round))((e => { e.scrollIntoView(); return e.getBoundingClientRect(); })"
            "(document.querySelector('.scroll')))"
        )
        assert np.ptp(page.picture()[y + 2 : min(y + height, 890) - 2, x + 2 : x + width - 2]) < 3


def test_keys_scroll_a_table_and_its_first_column_stays(browser: Browser, path: Path) -> None:
    with opened(browser, path, 375) as page:
        table = "[...document.querySelectorAll('.scroll')].find(e => e.scrollWidth > e.clientWidth)"
        page.js(f"window.table = {table}, table.focus(), 1")
        assert page.js("document.activeElement === table")
        heads = "[...table.querySelectorAll('th')].map(c => Math.round(c.getBoundingClientRect().x))"
        before = page.js(heads)
        for _ in range(40):
            page.press("ArrowRight")
        page.js("new Promise(done => setTimeout(done, 500))")
        after = page.js(heads)
        assert page.js("table.scrollLeft") > 0 and after[0] == before[0] and after[-1] < before[-1]
        assert page.js("table.querySelector('th:last-child').getBoundingClientRect().right") <= 375


# --- paper -----------------------------------------------------------------------------------------------------------


def test_it_prints_and_nothing_stays_folded(browser: Browser, path: Path) -> None:
    with opened(browser, path, 1280, dark=True) as page:
        data = page.pdf()
        assert data.startswith(b"%PDF-")
        assert 3 <= len(re.findall(rb"/Type\s*/Page\b", data)) <= 20
        page.call(
            "Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}]
        )
        assert page.js("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)", "paper is white"
        assert page.js(
            "[...document.querySelectorAll('details > :not(summary)')].every(e => e.checkVisibility({contentVisibilityAuto: true}))"
        )
        assert page.js(TIP) == []
