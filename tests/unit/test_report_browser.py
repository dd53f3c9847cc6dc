"""The page in a real browser: nothing is complained of, and both themes and all widths are drawn.

A page that asked anything of another place would break its own Content-Security-Policy, and the browser would say so on
its console; so an empty console is the test.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from analyze.report import write_report
from tests.machine import write_trace

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium; to run this: apt-get install chromium")

QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--enable-logging=stderr",
]
DARK = ["--force-dark-mode", "--blink-settings=preferredColorScheme=0"]
HEIGHT = 1500


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    return write_report(write_trace(folder / "trace", 7, scale=0.05), folder / "out")


def seen(page: Path, folder: Path, width: int, *options: str) -> tuple[np.ndarray, list[str]]:
    """A screenshot as [y, x, rgb], and what the browser's console says."""
    assert CHROMIUM is not None
    picture = folder / f"{width}.png"
    profile = f"--user-data-dir={folder / 'profile'}"
    size = f"--window-size={width},{HEIGHT}"
    command = [CHROMIUM, *QUIET, *options, profile, size, f"--screenshot={picture}", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL, check=False)
    assert picture.is_file(), done.stderr
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return np.asarray(Image.open(picture).convert("RGB"), np.int64), console


@pytest.mark.parametrize("width", [500, 800, 1280])
def test_the_console_is_empty_and_the_page_fits(page: Path, tmp_path: Path, width: int) -> None:
    picture, console = seen(page, tmp_path, width)
    assert console == []
    assert picture.shape == (HEIGHT, width, 3)
    background = picture[2, 2]
    assert (picture[:, -3:] == background).all(), "nothing runs over the right edge"
    assert (picture[: HEIGHT // 2] != background).any(axis=(1, 2)).mean() > 0.3, "and something is there"


def test_the_dark_theme_is_dark_and_keeps_the_colours_of_users(page: Path, tmp_path: Path) -> None:
    light, _ = seen(page, tmp_path, 1280)
    dark, console = seen(page, tmp_path, 1280, *DARK)
    assert console == []
    assert np.median(light.sum(axis=2)) > 600 and np.median(dark.sum(axis=2)) < 150
    vivid = dark.max(axis=2) - dark.min(axis=2) > 100
    assert vivid.sum() > 500


def test_a_page_that_asks_something_of_another_place_is_found_out(page: Path, tmp_path: Path) -> None:
    """So that the other tests mean something."""
    forged = tmp_path / "forged.html"
    forged.write_text(page.read_text().replace("</main>", '<img src="https://example.invalid/x.png"></main>'))
    assert seen(forged, tmp_path, 800)[1]
