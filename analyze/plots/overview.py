"""One picture that says it alone: a sentence, the map of physical memory by whose doing it is, and under it when it happened."""

from __future__ import annotations

import textwrap

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from analyze.plots.levels import SplitsOverTime, draw_users, users_present
from analyze.plots.memory_map import draw_map, map_height, map_is_shaded, map_legend
from analyze.plots.style import drawing, settled

__all__ = ["overview_figure"]

_TITLE_WIDTH = 88
"""Characters of a line of the sentence at 11 points."""
_NOTE_WIDTH = 112


def overview_figure(
    sentence: str,
    note: str,
    states: npt.NDArray[np.uint8],
    split_1g: npt.NDArray[np.int64],
    splits: SplitsOverTime,
    duration_s: float,
) -> Figure:
    """The figure.

    Args:
        sentence: what happened, to which memory, and whose doing it was.
        note: where it was recorded, and how it was checked.
        states, split_1g: as `analyze.plots.memory_map.map_figure` takes them.
        splits, duration_s: as `analyze.plots.levels.levels_figure` takes them.
    """
    title = textwrap.wrap(sentence, _TITLE_WIDTH)
    small = textwrap.wrap(note, _NOTE_WIDTH)
    rows = max(len(users_present(splits)), 1)
    above = 0.2 * len(title) + 0.16 * len(small) + 0.12
    of_map, of_users = map_height(states) + 0.55, 0.38 * rows + 0.7
    with drawing():
        height = above + of_map + of_users + 0.75
        layout = ConstrainedLayoutEngine(rect=(0.0, 0.0, 1.0, 1.0 - above / height), h_pad=0.06)
        figure = Figure(figsize=(8.6, height), layout=layout)
        top, bottom = figure.subplots(2, 1, height_ratios=[of_map, of_users])
        draw_map(top, states, split_1g)
        outlined = "; outlined: a 1G entry that was split" if len(split_1g) else ""
        shaded = "; grey: how much is in 4K" if map_is_shaded(states) else ""
        top.set_title(
            f"Where: physical memory, at the end{outlined}{shaded}", loc="left", fontsize=9.5, fontweight="bold"
        )
        draw_users(bottom, splits, duration_s)
        bottom.set_title(
            "When: a tick for each 2M entry split, ◆ for a 1G entry, rising with the count",
            loc="left",
            fontsize=9.5,
            fontweight="bold",
        )
        map_legend(figure, states)
        figure.text(
            0.008, 1.0 - 0.06 / height, "\n".join(title), fontsize=11, fontweight="bold", va="top", linespacing=1.3
        )
        figure.text(
            0.008,
            1.0 - (0.06 + 0.2 * len(title) + 0.05) / height,
            "\n".join(small),
            fontsize=8.5,
            va="top",
            linespacing=1.3,
        )
        return settled(figure)
