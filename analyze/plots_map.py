"""A map of physical memory: one cell for each 2M frame, and who split it.

Memory of up to 24 GiB is drawn as blocks of 64 x 8 cells, a block for each GiB; more of it as one line of cells for each
GiB; and beyond 256 lines a cell stands for several frames and shows the first of them that was split.
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

from analyze.plots_style import FAINT, INK, LEVELS, PAPER, USERS, Look, drawing, settled

__all__ = ["HOLE", "LEAF_1G", "LEAF_2M", "SPLIT_BEFORE", "USER_STATES", "map_figure"]

HOLE, LEAF_1G, LEAF_2M, SPLIT_BEFORE = 0, 1, 2, 3
USER_STATES: dict[str, int] = {name: 4 + i for i, name in enumerate(USERS)}
"""State of a frame that was split during the recording, by the user who did it first."""

FRAMES_PER_GIB = 512
MAX_BLOCKS = 24
MAX_LINES = 256


@dataclass(frozen=True)
class _Grid:
    """Where the cells lie: blocks of `across` x `down` cells, `columns` blocks side by side."""

    across: int
    down: int
    columns: int
    n_blocks: int
    frames_per_cell: int

    def corner(self, block: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Cell coordinates of the first cell of a block; blocks run across, then down."""
        gap_x, gap_y = (4, 3) if self.down > 1 else (0, 0)
        return (block % self.columns) * (self.across + gap_x), (block // self.columns) * (self.down + gap_y)


def _grid(n_frames: int) -> _Grid:
    n_gib = max(1, -(-n_frames // FRAMES_PER_GIB))
    if n_gib <= MAX_BLOCKS:
        return _Grid(64, 8, 2, n_gib, 1)
    per_cell = -(-n_gib // MAX_LINES)
    return _Grid(FRAMES_PER_GIB, 1, 1, -(-n_gib // per_cell), per_cell)


def map_figure(states: npt.NDArray[np.uint8], split_1g: npt.NDArray[np.int64]) -> Figure:
    """The figure.

    Args:
        states: state of each 2M frame of physical memory, from address 0 on: HOLE, LEAF_1G, LEAF_2M, SPLIT_BEFORE or a
            value of USER_STATES.
        split_1g: numbers (physical address / 1 GiB) of the 1G entries that were split; their blocks get a thick outline.
    """
    grid = _grid(len(states))
    cells = _cells(states, grid)
    kept = np.flatnonzero((cells != HOLE).any(axis=1)) if grid.down > 1 else np.arange(grid.n_blocks)
    cells = cells[kept]
    lines = -(-max(len(kept), 1) // grid.columns)
    height = lines * (11 * 0.058 if grid.down > 1 else 0.024) + 1.1
    with drawing():
        figure = Figure(figsize=(8.6, max(height, 2.0)), layout="constrained")
        axes = figure.subplots()
        _draw_blocks(axes, kept, grid, split_1g)
        for state, look in _looks().items():
            _draw_state(axes, cells, state, look, grid)
        _legend(figure, states)
        axes.set_title(_title(grid, len(split_1g)), loc="left", fontsize=10, fontweight="bold")
        return settled(figure)


def _looks() -> dict[int, Look]:
    levels = {LEAF_1G: LEVELS["1G"], LEAF_2M: LEVELS["2M"], SPLIT_BEFORE: LEVELS["4K"]}
    return levels | {state: USERS[name] for name, state in USER_STATES.items()}


def _cells(states: npt.NDArray[np.uint8], grid: _Grid) -> npt.NDArray[np.uint8]:
    """States as [block, cell]; where a cell stands for several frames, the split that comes last in the legend wins."""
    size = grid.across * grid.down
    padded = np.full(grid.n_blocks * size * grid.frames_per_cell, HOLE, np.uint8)
    padded[: len(states)] = states
    cells: npt.NDArray[np.uint8] = padded.reshape(-1, grid.frames_per_cell).max(axis=1).reshape(grid.n_blocks, size)
    return cells


def _title(grid: _Grid, n_split_1g: int) -> str:
    if grid.frames_per_cell > 1:
        return f"Physical memory: a cell for each {2 * grid.frames_per_cell} MiB, and who split the 2M frames in it"
    outlined = "; outlined: its 1G entry was split" if n_split_1g and grid.down > 1 else ""
    return f"Physical memory: a cell for each 2M frame, and who split it{outlined}"


def _draw_blocks(axes: Axes, kept: npt.NDArray[np.int64], grid: _Grid, split_1g: npt.NDArray[np.int64]) -> None:
    """Outlines, and the physical address where each block begins."""
    xs, ys = grid.corner(np.arange(len(kept), dtype=np.int64))
    step = 1 if grid.down > 1 else max(1, len(kept) // 16)
    broken = np.isin(kept, split_1g)
    for i, (x, y) in enumerate(zip(xs.tolist(), ys.tolist(), strict=True)):
        if grid.down > 1:
            edge, width = (INK, 1.6) if broken[i] else (FAINT, 0.6)
            axes.add_patch(
                Rectangle((x, y), grid.across, grid.down, facecolor="none", edgecolor=edge, linewidth=width, zorder=1)
            )
        if i % step == 0:
            gib = int(kept[i]) * grid.frames_per_cell
            inside = grid.columns == 1 or x == 0
            axes.annotate(
                f"{gib} GiB",
                (x if inside else x + grid.across, y + grid.down / 2),
                xytext=(-5 if inside else 5, 0),
                textcoords="offset points",
                ha="right" if inside else "left",
                va="center",
                fontsize=8,
                annotation_clip=False,
            )
    axes.set_xlim(-0.5, int(xs.max(initial=0)) + grid.across + 0.5)
    axes.set_ylim(int(ys.max(initial=0)) + grid.down + 0.5, -0.5)
    axes.set_axis_off()


def _draw_state(axes: Axes, cells: npt.NDArray[np.uint8], state: int, look: Look, grid: _Grid) -> None:
    """All cells of one state as one path, and over them the marks of the state as another."""
    block, cell = np.nonzero(cells == state)
    if len(block) == 0:
        return
    x0, y0 = grid.corner(block.astype(np.int64))
    x, y = x0 + cell % grid.across, y0 + cell // grid.across
    run_x, run_y, run_n = _runs(x, y)
    axes.add_patch(
        PathPatch(_boxes(run_x, run_y, run_n), facecolor=look.light, edgecolor=look.light, linewidth=0.3, zorder=2)
    )
    if grid.down > 1 and look.mark:
        axes.add_patch(PathPatch(_marks(x, y, look.mark), facecolor="none", edgecolor=PAPER, linewidth=0.9, zorder=3))


def _runs(
    x: npt.NDArray[np.int64], y: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Neighbours on one line, joined: first x, y, cells."""
    starts = np.flatnonzero(np.concatenate([[True], (np.diff(y) != 0) | (np.diff(x) != 1)]))
    return x[starts], y[starts], np.diff(np.append(starts, len(x)))


def _boxes(x: npt.NDArray[np.int64], y: npt.NDArray[np.int64], n: npt.NDArray[np.int64]) -> Outline:
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
    "|": [(0.5, 0.15, 0.5, 0.85)],
    "x": [(0.2, 0.2, 0.8, 0.8), (0.2, 0.8, 0.8, 0.2)],
}


def _marks(x: npt.NDArray[np.int64], y: npt.NDArray[np.int64], mark: str) -> Outline:
    ends = [
        np.stack([np.stack([x + a, y + b], 1), np.stack([x + c, y + d], 1)], 1).reshape(-1, 2)
        for a, b, c, d in _STROKES[mark]
    ]
    points = np.concatenate(ends)
    return Outline(points, np.tile([Outline.MOVETO, Outline.LINETO], len(points) // 2))


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
            line = Line2D(x, y, color=PAPER, linewidth=1.2)
            line.set_transform(trans)
            artists.append(line)
        return artists


def _legend(figure: Figure, states: npt.NDArray[np.uint8]) -> None:
    """One swatch for each state that occurs, with the number of its frames."""
    counts = np.bincount(states, minlength=256)
    labels = {LEAF_1G: "in a 1G entry", LEAF_2M: "2M entry", SPLIT_BEFORE: "4K when we came"}
    labels |= {state: f"split by {USERS[name].label}" for name, state in USER_STATES.items()}
    looks = {state: look for state, look in _looks().items() if counts[state]}
    if not looks:
        return
    handles = {state: Rectangle((0, 0), 1, 1) for state in looks}
    figure.legend(
        list(handles.values()),
        [f"{labels[state]}: {counts[state]}" for state in looks],
        handler_map={handles[state]: _Swatch(look) for state, look in looks.items()},
        loc="outside lower left",
        ncols=min(4, len(looks)),
        frameon=False,
        fontsize=8,
        handlelength=1.1,
        handleheight=1.1,
        columnspacing=1.6,
    )
