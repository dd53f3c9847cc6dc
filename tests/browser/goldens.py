"""Golden screenshots: small pictures of the whole page, made anew by `python3 -m tests.browser.goldens`, looked at, and committed.

They are a third of the page's size: enough to see that something moved, vanished or lost its colour, and too little to see how one
version of a browser draws a letter's edge.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from analyze.analysis import analyse
from replay.judgement import judge
from replay.report import write_replay_report
from replay.run import run_policies
from tests.browser.chromium import Browser, Page, opened, started

__all__ = ["FOLDER", "SHOTS", "apart", "shot", "write_page_of_a_sample"]

FOLDER = Path(__file__).parent / "goldens"
SHOTS = {"phone-375": (375, False), "tablet-768": (768, False), "wide-1280": (1280, False), "dark-1280": (1280, True)}
"""By name: width in CSS pixels, and whether the dark theme is asked for."""
SMALLER = 3
POLICIES = ("none", "gfp-unmapped", "none+merge", "clairvoyant")
SAMPLE = Path(__file__).parents[2] / "sample_traces" / "6.1-churn"
FONT = 'body { font-family: "DejaVu Sans", sans-serif !important; }'
"""The page takes the reader's own font; a picture to compare needs the same everywhere."""


def write_page_of_a_sample(folder: Path) -> Path:
    """Report and replay of a real recording."""
    folder.mkdir(exist_ok=True)
    analysis = analyse(SAMPLE)
    results = run_policies(SAMPLE, POLICIES, rebuilt=analysis.rebuilt)
    return write_replay_report(analysis, results, judge(results), folder).page


def with_font(page: Page) -> None:
    page.js(f"document.head.appendChild(Object.assign(document.createElement('style'), {{textContent: {FONT!r}}})), 1")


def shot(browser: Browser, path: Path, width: int, *, dark: bool) -> npt.NDArray[np.uint8]:
    """The whole page, made smaller, as [y, x, rgb]."""
    with opened(browser, path, width, dark=dark) as page:
        with_font(page)
        picture = Image.fromarray(page.picture(whole=True))
    small = picture.resize((picture.width // SMALLER, picture.height // SMALLER), Image.Resampling.BOX)
    return np.asarray(small, np.uint8)


def apart(a: npt.NDArray[np.uint8], b: npt.NDArray[np.uint8]) -> float:
    """How far two pictures are apart: share of tiles of 8 x 8 whose mean colour differs by more than a twelfth; 1 where the sizes do
    by more than a fiftieth."""
    if abs(a.shape[0] - b.shape[0]) > 0.02 * b.shape[0] or a.shape[1] != b.shape[1]:
        return 1.0
    height, width = min(a.shape[0], b.shape[0]) // 8 * 8, a.shape[1] // 8 * 8
    tiles = [
        p[:height, :width].astype(float).reshape(height // 8, 8, width // 8, 8, 3).mean(axis=(1, 3)) for p in (a, b)
    ]
    return float((np.abs(tiles[0] - tiles[1]).max(axis=2) > 256 / 12).mean())


def main() -> int:
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, started() as browser:
        path = write_page_of_a_sample(Path(folder) / "out")
        for name, (width, dark) in SHOTS.items():
            picture = Image.fromarray(shot(browser, path, width, dark=dark))
            picture.quantize(64, dither=Image.Dither.NONE).save(FOLDER / f"{name}.png", optimize=True)
            print(FOLDER / f"{name}.png", (FOLDER / f"{name}.png").stat().st_size)
    return 0


if __name__ == "__main__":
    sys.exit(main())
