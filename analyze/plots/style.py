"""How our pictures look: one colour and one mark for each user, one grey for each level, light and dark.

Colours for users are those of Okabe and Ito ("Color Universal Design", 2008), which people with any colour vision tell
apart; their lightness differs too, and every user has a mark of its own, so that a picture survives a grey printer.

Inside a page, the same SVG serves both themes: each colour is written as `var(--dm-NAME, #light)`, and `CSS` sets the names.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from analyze.users import USER_LABELS

__all__ = ["ATTACHING", "CSS", "LEVELS", "MARKS", "USERS", "Look", "drawing", "inline_svg", "save", "settled"]


@dataclass(frozen=True)
class Look:
    """How one thing is drawn: its label, its colours on white and on black, and its mark within a cell of the map."""

    label: str
    light: str
    dark: str
    mark: str = ""
    """One of "" (solid), "." "/" "\\" "-" "=" "|" "x" (drawn over the cell)."""

    @property
    def dark_mark(self) -> bool:
        """Whether its mark is dark in both themes, for its colours are light."""
        red, green, blue = (int(self.light[i : i + 2], 16) for i in (1, 3, 5))
        return 0.299 * red + 0.587 * green + 0.114 * blue > 140  # ITU-R BT.601


_USERS = {
    "module": ("#0072b2", "#3fa0dd", ""),
    "bpf": ("#d55e00", "#f0803a", "."),
    "kprobe": ("#cc79a7", "#dc92bb", "/"),
    "ftrace": ("#009e73", "#22bd92", "\\"),
    "secretmem": ("#e69f00", "#f2b632", "|"),
    "collector": ("#56b4e9", "#a6dcff", "-"),
    "other": ("#40454c", "#b9bec6", "x"),
}

USERS: dict[str, Look] = {name: Look(label, *_USERS[name]) for name, label in USER_LABELS.items()}
"""Users of the direct map, by the name that attribution gives them."""

ATTACHING = Look("our recorder while attaching", *_USERS["collector"][:2], "=")
"""What our recorder split before the recording started: its colour, and a mark of its own."""

LEVELS: dict[str, Look] = {
    "1G": Look("1G entries", "#e4eaf0", "#252d37"),
    "2M": Look("2M entries", "#c2cfdc", "#3c4b5c"),
    "4K": Look("4K entries", "#7b92aa", "#7890aa"),
}

MARKS: dict[str, str] = {
    ".": "m.36 .5h.28m-.14-.14v.28",
    "/": "m.2 .8l.6-.6",
    "\\": "m.2 .2l.6 .6",
    "-": "m.15 .5h.7",
    "=": "m.15 .27h.7m-.7 .46h.7",
    "|": "m.5 .15v.7",
    "x": "m.2 .2l.6 .6m0-.6l-.6 .6",
}
"""Strokes of each mark as an SVG path from the upper left corner of a cell of 1 x 1."""

_INK = Look("text and axes", "#1c2128", "#e3e7ec")
_FAINT = Look("grid and outlines", "#b7bec7", "#4a525d")
_PAPER = Look("background", "#ffffff", "#14181d")

_THEME: dict[str, Look] = {
    "ink": _INK,
    "faint": _FAINT,
    "paper": _PAPER,
    **{f"level-{name}": look for name, look in LEVELS.items()},
    **{f"user-{name}": look for name, look in USERS.items()},
}

INK, FAINT, PAPER = _INK.light, _FAINT.light, _PAPER.light


def _variables(dark: bool) -> str:
    return " ".join(f"--dm-{name}: {look.dark if dark else look.light};" for name, look in _THEME.items())


CSS = f"""\
:root {{ {_variables(False)} }}
@media screen and (prefers-color-scheme: dark) {{ :root {{ {_variables(True)} }} }}
{" ".join(f".c-{name} {{ fill: var(--dm-{name}); }}" for name in _THEME if "-" in name)}
"""
"""Sets every colour that `inline_svg` names, and a class for each level and user. Paper stays light: the dark set is for screens only."""

_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: small, sharp, searchable
    "svg.hashsalt": "directmap",  # the same input gives the same bytes
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Liberation Sans", "Arial", "Helvetica", "sans-serif"],
    "font.size": 9.0,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.parse_math": False,  # a name from a trace may hold dollar signs
    "pdf.fonttype": 42,
}


@contextmanager
def drawing() -> Iterator[None]:
    """Matplotlib with our settings, and with none of the user's own."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        yield


def settled(figure: Figure) -> Figure:
    """The figure with its layout worked out once and for all, for working it out takes most of the time of saving it."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure as the suffix of `path` says (.svg, .pdf, .png), on white, the same bytes for the same figure."""
    dates: dict[str, dict[str, str | None]] = {
        ".svg": {"Date": None, "Creator": None},
        ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
        ".png": {"Software": None},
    }
    with drawing():
        figure.savefig(path, metadata=dates[path.suffix], facecolor=PAPER, dpi=200)


def inline_svg(figure: Figure, name: str, description: str) -> str:
    """A figure as an <svg> element for a page that holds `CSS`: transparent, scaled to its place, in the page's theme.

    Args:
        name: ASCII word that keeps the ids of several pictures on a page apart.
        description: what a reader hears who does not see the picture.
    """
    buffer = io.StringIO()
    with drawing():
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg\b[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg\b[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{name}-", text)
    # A hundredth of a point is finer than any screen; six digits would double the page.
    text = re.sub(r'\bd="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), text)
    for variable, look in _THEME.items():
        text = text.replace(look.light, f"var(--dm-{variable}, {look.light})")
    label = _escape(description)
    return text.replace("<svg", f'<svg role="img" aria-label="{label}" class="plot"', 1)


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")
