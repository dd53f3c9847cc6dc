"""What a map holds at one moment, in sums: by level, by zone, by attributes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analyze.directmap import DirectMap, Runs
from analyze.history import History
from analyze.losses import Doubt, lost_for
from analyze.words.attributes import attribute_words
from analyze.zones import Zones, pages_by_zone, zones_of
from collect.schema import ATTRS_HARDWARE, LEAF_PAGES, Level

__all__ = ["LEVEL_NAMES", "StateSummary", "summarize_state"]

LEVEL_NAMES = {int(Level.NONE): "hole", int(Level.K4): "4K", int(Level.M2): "2M", int(Level.G1): "1G"}

_LEVELS = (int(Level.G1), int(Level.M2), int(Level.K4))


@dataclass
class StateSummary:
    """The map at one moment, summed up; pages are of 4 KiB.

    Attributes:
        ts_ns: the moment.
        levels: by level ("1G", "2M", "4K"): n_leaves, n_pages.
        zones: one row per zone and level that has pages: zone, level, n_pages.
        attributes: one row per level and attribute word, accessed and dirty left out (the CPU sets these by itself): level,
            attrs, flags, n_leaves, n_pages; most pages first.
        n_split_frames: 2M frames that 4K entries map, some or all of them.
        n_changes: direct-map changes in effect since START.
        n_all_changes: those of the whole trace.
        n_under_way: calls that had begun and were not in effect yet: some of their pages may have changed already.
        lost: events that the recording lost, up to its end, which put the map in doubt.
    """

    ts_ns: int
    levels: pd.DataFrame
    zones: pd.DataFrame
    zone_note: str
    attributes: pd.DataFrame
    n_split_frames: int
    n_changes: int
    n_all_changes: int
    n_under_way: int
    lost: int

    def to_json(self) -> dict[str, Any]:
        return {
            "ts_ns": self.ts_ns,
            "levels": self.levels.to_dict("records"),
            "zones": self.zones.to_dict("records"),
            "zone_note": self.zone_note,
            "attributes": self.attributes.to_dict("records"),
            "split_frames": self.n_split_frames,
            "changes_in_effect": self.n_changes,
            "changes": self.n_all_changes,
            "calls_under_way": self.n_under_way,
            "lost_events": self.lost,
        }


def summarize_state(history: History, ts_ns: int) -> StateSummary:
    """Sum up the map at a moment. Raises TraceError for one that the trace does not cover."""
    state = history.peek(ts_ns)
    runs = state.runs()
    direct = history.course.changes.direct
    return StateSummary(
        ts_ns=ts_ns,
        levels=_levels(state),
        zones=_zones(runs, zones := zones_of(history.trace)),
        zone_note=zones.note,
        attributes=_attributes(runs),
        n_split_frames=len(state.split_frames()),
        n_changes=int(direct[history.rows_between(history.span.first_ns - 1, ts_ns)].sum()),
        n_all_changes=int(direct.sum()),
        n_under_way=len(history.under_way(ts_ns)),
        lost=lost_for(history.trace.manifest["losses"], Doubt.MAP),
    )


def _levels(state: DirectMap) -> pd.DataFrame:
    counts = state.counts()
    return pd.DataFrame(
        {
            "level": [LEVEL_NAMES[level] for level in _LEVELS],
            "n_leaves": [counts[level] for level in _LEVELS],
            "n_pages": [counts[level] * LEAF_PAGES[level] for level in _LEVELS],
        }
    )


def _zones(runs: Runs, zones: Zones) -> pd.DataFrame:
    rows = [
        (name, LEVEL_NAMES[level], int(pages[level]))
        for name, pages in pages_by_zone(runs, zones)
        for level in _LEVELS
        if pages[level]
    ]
    return pd.DataFrame(rows, columns=["zone", "level", "n_pages"])


def _attributes(runs: Runs) -> pd.DataFrame:
    seen = runs.attrs & ~np.uint64(ATTRS_HARDWARE)
    summed = (
        pd.DataFrame({"level": runs.level, "attrs": seen, "n_leaves": runs.n_leaves})
        .groupby(["level", "attrs"], sort=True)["n_leaves"]
        .sum()
        .reset_index()
    )
    n_pages = summed["n_leaves"].to_numpy(np.int64) * np.array(LEAF_PAGES, np.int64)[summed["level"].to_numpy()]
    table = pd.DataFrame(
        {
            "level": [LEVEL_NAMES[level] for level in summed["level"].tolist()],
            "attrs": summed["attrs"],
            "flags": attribute_words(summed["attrs"].tolist()),
            "n_leaves": summed["n_leaves"],
            "n_pages": n_pages,
        }
    )
    return table.sort_values("n_pages", ascending=False, kind="stable", ignore_index=True)
