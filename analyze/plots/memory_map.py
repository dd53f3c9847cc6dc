"""A map of physical memory for paper: one cell for each 2M frame, and who split it.

Lines of 64 cells (128 MiB) run from address 0 down; with more memory lines become longer, up to 512 cells (1 GiB), and then a
cell stands for several frames and shows the one of them that comes last in the legend; of those in 4K from before, how much of it is.
Lines without memory are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.legend_handler import HandlerBase
from matplotlib.lines import Line2D
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path as Outline
from matplotlib.transforms import Transform

from analyze.frame_states import (
    HOLE,
    LEAF_1G,
    LEAF_2M,
    QUARTERS,
    SPLIT_ATTACHING,
    SPLIT_BEFORE,
    USER_STATES,
    Cells,
    cells_of,
)
from analyze.plots.style import ATTACHING, FAINT, INK, LEVELS, PAPER, USERS, Look, drawing, settled
from analyze.words.numbers import count, number

__all__ = ["STATE_LABELS", "STATE_LOOKS", "draw_map", "map_figure", "map_height", "map_is_shaded", "map_legend"]

FRAMES_PER_GIB = 512
MAX_LINES = 96
LINE_INCHES = 0.052
MAX_TICKS = 14
_WIDEST = 512
_MARKED = 128
"""Cells of a line up to which marks can be seen."""
_GAP = 1.6
"""Lines left free where lines without memory are left out."""

STATE_LOOKS: dict[int, Look] = {
    LEAF_1G: LEVELS["1G"],
    LEAF_2M: LEVELS["2M"],
    SPLIT_BEFORE: LEVELS["4K"],
    SPLIT_ATTACHING: ATTACHING,
    **{state: USERS[name] for name, state in USER_STATES.items()},
}
"""Of each state of a frame (`analyze.frame_states`), in the order of the legend."""

STATE_LABELS: dict[int, str] = {
    LEAF_1G: "in a 1G entry",
    LEAF_2M: "in a 2M entry",
    SPLIT_BEFORE: "4K before the recording",
    **{state: f"split by {look.label}" for state, look in STATE_LOOKS.items() if state > SPLIT_BEFORE},
}
"""What a legend calls it."""


@dataclass(frozen=True)
class _Lines:
    """How memory is cut into lines; `kept` are those that hold memory, `top` is where each is drawn."""

    across: int
    per_cell: int
    kept: npt.NDArray[np.int64]
    top: npt.NDArray[np.float64]

    @property
    def frames(self) -> int:
        """Frames of a line."""
        return self.across * self.per_cell

    @property
    def bottom(self) -> float:
        return float(self.top[-1]) + 1.0 if len(self.top) else 1.0


def _lines(states: npt.NDArray[np.uint8]) -> _Lines:
    across, per_cell = 64, 1
    while -(-len(states) // (across * per_cell)) > MAX_LINES:
        across, per_cell = (across * 2, per_cell) if across < _WIDEST else (across, per_cell * 2)
    frames = across * per_cell
    there = np.unique(np.flatnonzero(states != HOLE) // frames)
    top = np.arange(len(there)) + _GAP * np.concatenate([[0], np.cumsum(np.diff(there) > 1)])[: len(there)]
    return _Lines(across, per_cell, there.astype(np.int64), top.astype(np.float64))


def map_figure(states: npt.NDArray[np.uint8], split_1g: npt.NDArray[np.int64]) -> Figure:
    """The figure.

    Args:
        states: state of each 2M frame of physical memory, from address 0 on (`analyze.frame_states`).
        split_1g: numbers (physical address / 1 GiB) of the 1G entries that were split; they get a thick outline.
    """
    with drawing():
        figure = Figure(figsize=(8.6, map_height(states) + 1.35), layout="constrained")
        axes = figure.subplots()
        draw_map(axes, states, split_1g)
        map_legend(figure, states)
        axes.set_title(_title(_lines(states), len(split_1g)), loc="left", fontsize=10, fontweight="bold")
        return settled(figure)


def map_height(states: npt.NDArray[np.uint8]) -> float:
    """Inches that the lines of a map need."""
    return max(_lines(states).bottom * LINE_INCHES, 0.8)


def map_is_shaded(states: npt.NDArray[np.uint8]) -> bool:
    """Whether cells stand for several frames, and so tell how much of them was in 4K before."""
    return _lines(states).per_cell > 1


def draw_map(axes: Axes, states: npt.NDArray[np.uint8], split_1g: npt.NDArray[np.int64]) -> None:
    """Draw it, with physical addresses at both axes."""
    lines = _lines(states)
    cells = _cells(states, lines)
    _axes(axes, lines)
    for line, top in zip(lines.kept, lines.top, strict=True):
        whole = min(lines.across, -(-(len(states) - int(line) * lines.frames) // lines.per_cell))
        axes.add_patch(Rectangle((0, top), whole, 1, facecolor="none", edgecolor=FAINT, linewidth=0.25, zorder=1))
    for state, look in STATE_LOOKS.items():
        _draw_state(axes, cells, state, look, lines)
    _outline(axes, split_1g, lines)


def _cells(states: npt.NDArray[np.uint8], lines: _Lines) -> Cells:
    """As [line, cell]; where a cell stands for several frames, the split that comes last in the legend wins."""
    n_lines = int(lines.kept[-1]) + 1 if len(lines.kept) else 0
    cells = cells_of(states, lines.per_cell, n_lines * lines.across)
    return Cells(*(column.reshape(n_lines, lines.across)[lines.kept] for column in cells))


def _title(lines: _Lines, n_split_1g: int) -> str:
    outlined = "; outlined: its 1G entry was split" if n_split_1g and lines.frames <= FRAMES_PER_GIB else ""
    if lines.per_cell > 1:
        return f"Physical memory: a cell for {2 * lines.per_cell} MiB, and who split a 2M frame of it; grey: how much of it is in 4K"
    return f"Physical memory: a cell for each 2M frame, and who split it{outlined}"


def _axes(axes: Axes, lines: _Lines) -> None:
    per_gib = FRAMES_PER_GIB / lines.frames
    n_gib = max(1, round(len(lines.kept) / per_gib))
    step = 1 << max(0, int(np.ceil(np.log2(n_gib / MAX_TICKS))))
    starts = [i for i, line in enumerate(lines.kept.tolist()) if (line / per_gib) % step == 0]
    gaps = [i for i in range(1, len(lines.kept)) if lines.kept[i] - lines.kept[i - 1] > 1]
    marked = sorted({*starts, *gaps, *([0] if len(lines.kept) else [])})
    axes.set_yticks([float(lines.top[i]) for i in marked], [f"{lines.kept[i] / per_gib:g}" for i in marked])
    mib = 2 * lines.frames
    unit, of_unit = ("MiB", mib) if lines.frames <= FRAMES_PER_GIB else ("GiB", mib / 1024)
    axes.set_xticks(np.linspace(0, lines.across, 5), [f"{of_unit * i / 4:g}" for i in range(5)])
    axes.set_ylabel("physical address [GiB]")
    axes.set_xlabel(f"offset within the line [{unit}]")
    axes.set_xlim(-0.2, lines.across + 0.2)
    axes.set_ylim(lines.bottom + 0.3, -0.3)
    axes.tick_params(length=2.5)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)


def _outline(axes: Axes, split_1g: npt.NDArray[np.int64], lines: _Lines) -> None:
    """A thick line around each 1G entry that was split, where it is at least one line."""
    per_gib = FRAMES_PER_GIB // lines.frames
    if not per_gib:
        return
    for giga in np.unique(split_1g).tolist():
        own = np.flatnonzero(lines.kept // per_gib == giga)
        if len(own):
            top = float(lines.top[own[0]])
            height = float(lines.top[own[-1]]) + 1 - top
            axes.add_patch(
                Rectangle((0, top), lines.across, height, facecolor="none", edgecolor=INK, linewidth=1.3, zorder=4)
            )


def _draw_state(axes: Axes, cells: Cells, state: int, look: Look, lines: _Lines) -> None:
    """All cells of one state as one path, and over them the marks of the state as another.

    Of those in 4K from before, as much of the colour as there is of it, over that of 2M entries.
    """
    own = cells.state == state
    if state == SPLIT_BEFORE and lines.per_cell > 1:
        _fill(axes, own, LEVELS["2M"].light, lines)
        for quarters in range(1, QUARTERS + 1):
            _fill(axes, own & (cells.quarters == quarters), look.light, lines, quarters / QUARTERS)
    else:
        _fill(axes, own, look.light, lines)
    line, x = np.nonzero(own)
    if len(line) and lines.across <= _MARKED and look.mark:
        width = 0.9 if lines.across == 64 else 0.5
        axes.add_patch(
            PathPatch(
                _marks(x, lines.top[line], look.mark),
                facecolor="none",
                edgecolor=_mark_colour(look),
                linewidth=width,
                zorder=3,
            )
        )


def _fill(axes: Axes, own: npt.NDArray[np.bool_], colour: str, lines: _Lines, alpha: float = 1.0) -> None:
    """The cells `own`, as one path."""
    line, x = np.nonzero(own)
    if len(line):
        box = _boxes(*_runs(x, lines.top[line]))
        edge = colour if alpha == 1 else "none"  # an edge would be drawn over the neighbour's
        axes.add_patch(PathPatch(box, facecolor=colour, edgecolor=edge, linewidth=0.2, zorder=2, alpha=alpha))


def _runs(
    x: npt.NDArray[np.int64], y: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Neighbours on one line, joined: first x, y, cells."""
    starts = np.flatnonzero(np.concatenate([[True], (np.diff(y) != 0) | (np.diff(x) != 1)]))
    return x[starts], y[starts], np.diff(np.append(starts, len(x)))


def _boxes(x: npt.NDArray[np.int64], y: npt.NDArray[np.float64], n: npt.NDArray[np.int64]) -> Outline:
    corners = np.stack(
        [np.stack([x, y], 1), np.stack([x + n, y], 1), np.stack([x + n, y + 1], 1), np.stack([x, y + 1], 1)], 1
    )
    closed = np.concatenate([corners, corners[:, :1]], axis=1).reshape(-1, 2).astype(float)
    codes = np.tile([Outline.MOVETO, Outline.LINETO, Outline.LINETO, Outline.LINETO, Outline.CLOSEPOLY], len(x))
    return Outline(closed, codes)


_STROKES: dict[str, list[tuple[float, float, float, float]]] = {
    ".": [(0.36, 0.5, 0.64, 0.5), (0.5, 0.36, 0.5, 0.64)],
    "/": [(0.2, 0.8, 0.8, 0.2)],
    "\\": [(0.2, 0.2, 0.8, 0.8)],
    "-": [(0.15, 0.5, 0.85, 0.5)],
    "=": [(0.15, 0.27, 0.85, 0.27), (0.15, 0.73, 0.85, 0.73)],
    "|": [(0.5, 0.15, 0.5, 0.85)],
    "x": [(0.2, 0.2, 0.8, 0.8), (0.2, 0.8, 0.8, 0.2)],
}


def _marks(x: npt.NDArray[np.int64], y: npt.NDArray[np.float64], mark: str) -> Outline:
    ends = [
        np.stack([np.stack([x + a, y + b], 1), np.stack([x + c, y + d], 1)], 1).reshape(-1, 2)
        for a, b, c, d in _STROKES[mark]
    ]
    points = np.concatenate(ends)
    return Outline(points, np.tile([Outline.MOVETO, Outline.LINETO], len(points) // 2))


def _mark_colour(look: Look) -> str:
    return INK if look.dark_mark else PAPER


class _Swatch(HandlerBase):
    """Draws a cell in the legend as it looks in the map, mark and all."""

    def __init__(self, look: Look) -> None:
        super().__init__()
        self._look = look

    def create_artists(
        self,
        legend: Legend,
        orig_handle: Artist,
        xdescent: float,
        ydescent: float,
        width: float,
        height: float,
        fontsize: float,
        trans: Transform,
    ) -> list[Artist]:
        box = Rectangle(
            (-xdescent, -ydescent), width, height, facecolor=self._look.light, edgecolor=FAINT, linewidth=0.5
        )
        box.set_transform(trans)
        artists: list[Artist] = [box]
        for x0, y0, x1, y1 in _STROKES.get(self._look.mark, []):
            x, y = np.array([x0, x1]) * width - xdescent, (1 - np.array([y0, y1])) * height - ydescent
            line = Line2D(x, y, color=_mark_colour(self._look), linewidth=1.2)
            line.set_transform(trans)
            artists.append(line)
        return artists


def map_legend(figure: Figure, states: npt.NDArray[np.uint8]) -> None:
    """One swatch for each state that occurs, with the number of its frames, below the figure."""
    counts = np.bincount(states, minlength=256)
    looks = {state: look for state, look in STATE_LOOKS.items() if counts[state]}
    if not looks:
        return
    handles = {state: Rectangle((0, 0), 1, 1) for state in looks}
    figure.legend(
        list(handles.values()),
        [f"{STATE_LABELS[state]}: {number(int(counts[state]))}" for state in looks],
        handler_map={handles[state]: _Swatch(look) for state, look in looks.items()},
        loc="outside lower left",
        ncols=min(4, len(looks)),
        frameon=False,
        fontsize=8.5,
        handlelength=1.3,
        handleheight=1.3,
        columnspacing=1.6,
        title=f"Of {count(int(counts[LEAF_1G:].sum()), 'frame')} of 2 MiB, {number(int(counts[SPLIT_BEFORE:].sum()))} in 4K entries at the end:",
        alignment="left",
        title_fontproperties={"size": 8.5},
    )
