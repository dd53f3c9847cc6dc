"""The HTML of our pages: what a trace's section holds, and how it is rendered.

Everything that comes from a trace is text, and jinja2 escapes it; only pictures drawn by us enter as markup.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jinja2
from markupsafe import Markup

from analyze.plots.style import CSS
from analyze.words.numbers import number
from analyze.words.plain_text import plain
from collect import __version__

__all__ = [
    "NO_NAME",
    "Check",
    "HealthView",
    "KeeperRow",
    "KeepersView",
    "Layer",
    "LegendView",
    "MapBlock",
    "MapView",
    "Picture",
    "Spot",
    "StackView",
    "State",
    "TraceView",
    "UserRow",
    "UserView",
    "plain",
    "render",
]

State = Literal["good", "bad", "doubt", "none"]

NO_NAME = "without a name"

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Check:
    """One check of a trace: passed ("good"), failed ("bad"), could not be decided ("doubt"), or something to know that is neither ("none")."""

    name: str
    state: State
    text: str


@dataclass(frozen=True)
class Picture:
    """An SVG of ours, what it shows, and the files beside the page that hold the same."""

    svg: Markup
    caption: str
    files: Sequence[str] = ()


@dataclass(frozen=True)
class Layer:
    """All cells of a block that are in one state: SVG paths of their area and of their marks; `key` is of a colour of `plots.style.CSS`,
    `opacity` how much of it covers what lies below."""

    key: str
    area: str
    marks: str
    dark_mark: bool = False
    opacity: float = 1.0


@dataclass(frozen=True)
class Spot:
    """A cell of a block that can be pointed at, and what is said of it."""

    x: int
    y: int
    text: str


@dataclass(frozen=True)
class MapBlock:
    """A piece of physical memory; `giga_split`: a 1G entry of it was split meanwhile."""

    label: str
    layers: Sequence[Layer]
    spots: Sequence[Spot]
    giga_split: bool


@dataclass(frozen=True)
class LegendView:
    """An entry of a legend; `marks` is an SVG path within a cell of 1 x 1."""

    key: str
    marks: str
    text: str
    dark_mark: bool = False


@dataclass(frozen=True)
class MapView:
    """The map of physical memory: `cell` and `line` are how much a cell and a line of cells stand for."""

    blocks: Sequence[MapBlock]
    legend: Sequence[LegendView]
    cell: str
    line: str
    n_unnamed: int
    """Cells in 4K entries that cannot be pointed at."""
    any_giga: bool
    shaded: bool
    """Cells stand for several frames: those in 4K from before have as much of that colour as there is of it."""
    files: Sequence[str] = ()


@dataclass(frozen=True)
class UserRow:
    """One name and process of a user of the direct map."""

    name: str
    process: str
    n_2m: int
    n_1g: int
    held: str


@dataclass(frozen=True)
class UserView:
    """One user of the direct map; `key` is a key of `plots.style.USERS`."""

    key: str
    label: str
    n_2m: int
    n_1g: int
    held: str
    rows: Sequence[UserRow] = ()
    more: str = ""
    """What was left out, in words."""

    @property
    def unnamed(self) -> bool:
        """Whether its only row has nothing to add but the processes."""
        return len(self.rows) == 1 and self.rows[0].name == NO_NAME


@dataclass(frozen=True)
class StackView:
    key: str
    summary: str
    frames: Sequence[str]


@dataclass(frozen=True)
class HealthView:
    """The health of a trace: what may be concluded from it, and what was counted."""

    verdict: Check
    conclusions: Sequence[Check]
    facts: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class KeeperRow:
    """A cause that keeps frames in 4K entries; `key` is a key of `plots.style.USERS`."""

    key: str
    cause: str
    frames: str
    alone: str
    pages: str


@dataclass(frozen=True)
class KeepersView:
    """What keeps frames in 4K entries."""

    states: str
    rows: Sequence[KeeperRow]
    more: str
    healing: Sequence[str]
    own: KeeperRow | None = None
    """Our recorder's share, in no row; None where it has none."""


@dataclass(frozen=True)
class TableView:
    """A table: its first column is text, the others numbers."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class PagesView:
    """What the page events tell, and how much memory was free in blocks of which size."""

    sentences: Sequence[str]
    tables: Sequence[TableView]
    free: Picture | None


@dataclass(frozen=True)
class TraceView:
    """All that a page says of one trace, in the order in which it says it."""

    slug: str
    title: str
    subtitle: str
    happened: str
    """First sentence of the answer: what was split, and by whom."""
    left: str
    """Second sentence: what that left of the map."""
    health: HealthView
    verdict: Check
    checks: Sequence[Check]
    levels: Picture
    map: MapView
    overview: Sequence[str]
    """Files of the one picture that says it alone."""
    users: Sequence[UserView]
    users_note: str
    kept: KeepersView
    pages: PagesView | None
    stacks: Sequence[StackView]
    limits: Sequence[str]
    provenance: Sequence[tuple[str, str]]

    @property
    def answer(self) -> str:
        return f"{self.happened} {self.left}"


def render(template: str, *, templates: Sequence[Path] = (), **context: Any) -> str:
    """Fill in a template of ours, or of `templates`, which may extend ours."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([TEMPLATES, *templates]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    return environment.get_template(template).render(tool_version=__version__, plot_css=Markup(CSS), **context)
