"""The map of physical memory for the page: blocks of cells that flow with its width, and for each cell in 4K entries who split it and who keeps it.

Nothing in the page runs: a cell that can be named is a radio button of the page's own, so that a mouse, a finger, Tab and the arrow keys,
and a screen reader all reach it. `analyze.plots.memory_map` draws the same for paper.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt

from analyze.analysis import Analysis
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
    frame_states,
    splits_of_2m,
)
from analyze.plots.memory_map import STATE_LABELS, STATE_LOOKS
from analyze.plots.style import MARKS, USERS
from analyze.report.keepers import cause_text
from analyze.report.page import Layer, LegendView, MapBlock, MapView, Spot, plain
from analyze.who import Who
from analyze.words.numbers import BYTES_PER_PAGE, count, enumeration, memory, number
from collect.schema import HUGE_FRAME_PAGES, LEAF_PAGES, Level

__all__ = ["ACROSS", "DOWN", "MAX_BLOCKS", "MAX_SPOTS", "map_view"]

ACROSS, DOWN = 32, 16
"""Cells of a block: 512, so a cell of a block of 1 GiB is a 2M frame; on a telephone as wide as a fingertip is fine."""
MAX_BLOCKS = 32
"""More memory than so many GiB: a block stands for several of them, a cell for as many frames."""
MAX_SPOTS = 1000
"""Cells with a name; a quarter of a kilobyte each in the page."""
MAX_NAMES = 3

_CELLS = ACROSS * DOWN
_KEYS = {
    LEAF_1G: "level-1G",
    LEAF_2M: "level-2M",
    SPLIT_BEFORE: "level-4K",
    SPLIT_ATTACHING: "user-collector",
    **{state: f"user-{name}" for name, state in USER_STATES.items()},
}
_WHY = {
    "residue": "kept by no page, though some lack the global bit (G)",
    "alike": "kept by no page: one entry could map it as it is",
    "never_whole": "never was one entry",
}


def map_view(analysis: Analysis, kept: Who) -> MapView:
    """Blocks, legend and names; `kept` is of the end."""
    states = frame_states(analysis)
    n_gib = max(1, -(-len(states) // _CELLS))
    per_cell = 1 << max(0, int(np.ceil(np.log2(n_gib / MAX_BLOCKS))))
    n_blocks = -(-n_gib // per_cell)
    cells = cells_of(states, per_cell, n_blocks * _CELLS)
    of_block = [Cells(*(column[i * _CELLS : (i + 1) * _CELLS] for column in cells)) for i in range(n_blocks)]
    names, n_unnamed = _spots(analysis, kept, states, per_cell)
    splits = analysis.attribution.splits
    gigas = set((splits.loc[splits["level"] == Level.G1, "pfn"] // LEAF_PAGES[Level.G1] // per_cell).tolist())
    blocks = [
        MapBlock(
            label=f"{number(block * per_cell)} GiB",
            layers=_layers(of_block[block]),
            spots=names.get(block, []),
            giga_split=block in gigas,
        )
        for block in range(n_blocks)
        if (of_block[block].state != HOLE).any()
    ]
    counts = np.bincount(states, minlength=256)
    return MapView(
        blocks=blocks,
        legend=[
            LegendView(key, _marks(state), f"{STATE_LABELS[state]}: {number(int(counts[state]))}", _dark(state))
            for state, key in _KEYS.items()
            if counts[state]
        ],
        cell=memory(per_cell * HUGE_FRAME_PAGES),
        line=memory(per_cell * HUGE_FRAME_PAGES * ACROSS),
        n_unnamed=n_unnamed,
        any_giga=bool(gigas),
        shaded=per_cell > 1,
    )


def _marks(state: int) -> str:
    return MARKS.get(STATE_LOOKS[state].mark, "")


def _dark(state: int) -> bool:
    return bool(_marks(state)) and STATE_LOOKS[state].dark_mark


def _layers(cells: Cells) -> list[Layer]:
    """A path for each state that occurs: runs of cells, and over them a stroke in each cell of a user with a mark.

    Cells in 4K from before of which only a part is: as much of that colour over that of 2M entries.
    """
    layers = []
    for state, key in _KEYS.items():
        own = cells.state == state
        if state != SPLIT_BEFORE:
            layers += _layer(own, state, key)
            continue
        layers += _layer(own & (cells.quarters < QUARTERS), LEAF_2M, _KEYS[LEAF_2M])
        for quarters in range(1, QUARTERS + 1):
            layers += _layer(own & (cells.quarters == quarters), state, key, quarters / QUARTERS)
    return layers


def _layer(own: npt.NDArray[np.bool_], state: int, key: str, opacity: float = 1.0) -> list[Layer]:
    """The cells `own` in one colour; nothing where there are none."""
    at = np.flatnonzero(own)
    if not len(at):
        return []
    x, y = at % ACROSS, at // ACROSS
    starts = np.flatnonzero(np.concatenate([[True], (np.diff(at) != 1) | (np.diff(y) != 0)]))
    widths = np.diff(np.append(starts, len(at)))
    area = "".join(f"M{x[i]} {y[i]}h{n}v1h-{n}z" for i, n in zip(starts.tolist(), widths.tolist(), strict=True))
    strokes = _marks(state)
    marks = [f"M{i} {j}" for i, j in zip(x.tolist(), y.tolist(), strict=True)] if strokes else []
    return [Layer(key, area, "".join(start + strokes for start in marks), _dark(state), opacity)]


def _spots(
    analysis: Analysis, kept: Who, states: npt.NDArray[np.uint8], per_cell: int
) -> tuple[dict[int, list[Spot]], int]:
    """Cells with names, by block, in order of address; and how many are left without. Frames split meanwhile go before older ones."""
    split = np.flatnonzero(states >= SPLIT_BEFORE)
    cell_of = split // per_cell
    cells = np.unique(cell_of)
    recorded = np.unique(cell_of[states[split] > SPLIT_BEFORE])
    older = np.setdiff1d(cells, recorded)
    named = np.sort(np.concatenate([recorded, older])[:MAX_SPOTS])
    told = _Told(analysis, kept, states, split[np.isin(cell_of, named)])
    found: dict[int, list[Spot]] = {}
    bounds = np.searchsorted(cell_of, np.stack([named, named + 1]))
    for cell, first, end in zip(named.tolist(), *bounds.tolist(), strict=True):
        frames = split[first:end]
        text = told.frame(int(frames[0])) if per_cell == 1 else told.cell(cell, per_cell, frames)
        block, within = divmod(cell, _CELLS)
        found.setdefault(block, []).append(Spot(within % ACROSS, within // ACROSS, plain(text, 300)))
    return found, len(cells) - len(named)


class _Told:
    """What is known of frames, in words."""

    def __init__(
        self, analysis: Analysis, kept: Who, states: npt.NDArray[np.uint8], frames: npt.NDArray[np.int64]
    ) -> None:
        self._attaching = set(np.flatnonzero(states == SPLIT_ATTACHING).tolist())
        self._emulated = bool(analysis.trace.manifest["cpu"].get("emulated"))
        self._start_ns = int(analysis.trace.manifest["ts_start_ns"])
        wanted = set(frames.tolist())
        of_2m = splits_of_2m(analysis)
        self._split = {int(row["frame"]): row for row in of_2m[of_2m["frame"].isin(wanted)].to_dict("records")}
        whys = kept.frames[kept.frames["frame"].isin(wanted)]
        self._why = dict(zip(whys["frame"].tolist(), whys["state"].tolist(), strict=True))
        special = kept.special
        live = special[~special["residue"].astype(bool) & special["kept"] & special["frame"].isin(wanted)]
        self._pages: dict[int, Counter[str]] = {}
        counts = live.groupby(["frame", "user", "cause"]).size().reset_index(name="n")
        for frame, user, cause, n in counts.itertuples(index=False, name=None):
            self._pages.setdefault(int(frame), Counter())[cause_text(user, cause)] += int(n)

    def frame(self, frame: int) -> str:
        """Of one frame: "4.123 GiB: split by modules (usbcore, by modprobe); kept by 3 pages of module usbcore"."""
        return f"{_address(frame)}: {self._who(frame)}; {self._keeper(frame)}"

    def cell(self, cell: int, per_cell: int, frames: npt.NDArray[np.int64]) -> str:
        """Of a cell that stands for several frames."""
        users = Counter(self._user(frame) for frame in frames.tolist())
        by_whom = enumeration([f"{n} {user}" for user, n in users.most_common()])
        pages: Counter[str] = Counter()
        for frame in frames.tolist():
            pages.update(self._pages.get(frame, {}))
        keeper = f"kept by {_pages_of(pages)}" if pages else "kept by no page"
        of_all = f"{len(frames)} of {count(per_cell, 'frame')} in 4K"
        return f"{memory(per_cell * HUGE_FRAME_PAGES)} from {_address(cell * per_cell)}: {of_all}, {by_whom}; {keeper}"

    def _user(self, frame: int) -> str:
        row = self._split.get(frame)
        if row is not None:
            return f"split by {USERS.get(str(row['user']), USERS['other']).label}"
        return STATE_LABELS[SPLIT_ATTACHING] if frame in self._attaching else "split before the recording"

    def _who(self, frame: int) -> str:
        row = self._split.get(frame)
        if row is None:
            return self._user(frame)
        name, comm = str(row["name"]), str(row["comm"])
        more = ", by ".join(part for part in (name if name != comm else "", comm) if part)
        when = "" if self._emulated else f" after {max(0.0, (int(row['ts_ns']) - self._start_ns) / 1e9):.1f} s"
        return f"{self._user(frame)}{f' ({more})' if more else ''}{when}"

    def _keeper(self, frame: int) -> str:
        pages = self._pages.get(frame)
        return f"kept by {_pages_of(pages)}" if pages else _WHY.get(self._why.get(frame, ""), "kept by no page")


def _pages_of(pages: Counter[str]) -> str:
    most = pages.most_common(MAX_NAMES)
    more = len(pages) - len(most)
    return enumeration([f"{count(n, 'page')} of {cause}" for cause, n in most]) + (f" and {more} more" if more else "")


def _address(frame: int) -> str:
    return f"{frame * HUGE_FRAME_PAGES * BYTES_PER_PAGE / (1 << 30):.3f} GiB"
