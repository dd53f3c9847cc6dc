"""The pages that keep a 2M frame in 4K entries: those whose attributes are not the ones the frame had as a leaf.

As of the end of the recording, or of any moment for which the caller has the state.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from analyze.changes import Changes
from analyze.directmap import FRAME, DirectMap
from analyze.jit import first_from, kernel
from analyze.reconstruct import Rebuild
from collect.schema import ATTRS_HARDWARE, Level, Pte

__all__ = ["END_NS", "last_change", "special_frames", "special_pages", "splits_by"]

_BATCH = 4096
"""Split frames that are looked at together: 16 MB of attribute words."""

END_NS = np.iinfo(np.int64).max
"""In place of a moment: the end of the recording."""

_SOFT = np.uint64(~ATTRS_HARDWARE & 0xFFFF_FFFF_FFFF_FFFF)
_G = np.uint64(int(Pte.G))


def special_pages(rebuilt: Rebuild, state: DirectMap | None = None, until_ns: int = END_NS) -> pd.DataFrame:
    """Special pages in order of page frame.

    Args:
        state: the map at `until_ns`; the final one if not given.
        until_ns: changes and splits that took effect later do not count.

    Columns: pfn, frame, attrs, original (of the leaf; both without accessed and dirty), residue (only G differs, which
    invalid and default leave behind for good: set_direct_map_default_noflush sets P and RW), row (of changes: the last
    one recorded that covers the page, also one from before START, which the snapshot shows already; -1: none).
    """
    state = state or rebuilt.final
    frames = state.split_frames()
    leaf = _Leaves(rebuilt, until_ns)
    parts = [_special_of(state, leaf, frames[i : i + _BATCH]) for i in range(0, max(len(frames), 1), _BATCH)]
    special = pd.concat(parts, ignore_index=True)
    changes = rebuilt.changes
    read_ns = rebuilt.window.hi if until_ns == END_NS else np.full_like(rebuilt.window.hi, END_NS)
    in_effect = changes.direct & (changes.effect_ns <= until_ns)
    row = last_change(special["pfn"].to_numpy(np.int64), changes, changes.order, in_effect, read_ns)
    return special.assign(row=row)


def special_frames(
    rebuilt: Rebuild, special: pd.DataFrame, state: DirectMap | None = None, until_ns: int = END_NS
) -> pd.DataFrame:
    """Each 2M frame that is split at the end, or in `state` at `until_ns`.

    Columns: frame, pfn, n_special (residue not counted), n_residue, n_holes (pages without an entry: memory ends there),
    alike (all 512 pages hold the same, accessed and dirty apart: one entry could map them), live (n_special > 0),
    split_row (the change that split it last; -1: before START).
    """
    state = state or rebuilt.final
    frames = state.split_frames()
    held = special.groupby("frame")["residue"].agg(["size", "sum"]).reindex(frames, fill_value=0)
    residue = held["sum"].to_numpy(np.int64)
    n_special = held["size"].to_numpy(np.int64) - residue
    n_holes, alike = np.zeros(len(frames), np.int64), np.zeros(len(frames), np.bool_)
    for i in range(0, len(frames), _BATCH):
        pages = state.pages_of(frames[i : i + _BATCH])
        n_holes[i : i + _BATCH] = (pages == 0).sum(axis=1)
        alike[i : i + _BATCH] = ((pages ^ pages[:, :1]) & _SOFT == 0).all(axis=1)
    splits = _splits_of_2m(rebuilt, until_ns)
    last = splits.assign(frame=splits["pfn"] // FRAME).drop_duplicates("frame", keep="last").set_index("frame")["row"]
    return pd.DataFrame(
        {
            "frame": frames,
            "pfn": frames * FRAME,
            "n_special": n_special,
            "n_residue": residue,
            "n_holes": n_holes,
            "alike": alike,
            "live": n_special > 0,
            "split_row": last.reindex(frames, fill_value=-1).to_numpy(np.int64),
        }
    )


def splits_by(rebuilt: Rebuild, until_ns: int) -> pd.DataFrame:
    """`Rebuild.splits` of changes in effect at a moment."""
    effect_ns = rebuilt.changes.effect_ns[rebuilt.splits["row"].to_numpy(np.int64)]
    splits: pd.DataFrame = rebuilt.splits.loc[effect_ns <= until_ns]
    return splits


def _splits_of_2m(rebuilt: Rebuild, until_ns: int) -> pd.DataFrame:
    splits = splits_by(rebuilt, until_ns)
    return splits[splits["level"] == Level.M2]


class _Leaves:
    """What the leaves of split frames held: as they were split; for those split before START the usual word, or the commonest."""

    def __init__(self, rebuilt: Rebuild, until_ns: int) -> None:
        self._usual = _usual(rebuilt.start.map)
        splits = _splits_of_2m(rebuilt, until_ns)
        known = pd.Series(splits["attrs"].to_numpy(np.uint64) & _SOFT, index=splits["pfn"] // FRAME)
        self._known = known[~known.index.duplicated(keep="last")]

    def original(self, frames: npt.NDArray[np.int64], pages: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        """One word per frame, whose pages (n, 512) hold `pages`."""
        ordered = np.sort(pages, axis=1)
        commonest = ordered[:, FRAME // 2]  # the median is the majority where there is one
        has_usual = (pages == self._usual).any(axis=1)
        original: npt.NDArray[np.uint64] = np.where(has_usual, self._usual, commonest)
        at = self._known.index.get_indexer(pd.Index(frames))
        return np.where(at >= 0, self._known.to_numpy(np.uint64)[at], original) if len(self._known) else original


def _special_of(state: DirectMap, leaf: _Leaves, frames: npt.NDArray[np.int64]) -> pd.DataFrame:
    pages = state.pages_of(frames) & _SOFT
    original = leaf.original(frames, pages)
    differ = (pages ^ original[:, None]) & _SOFT
    frame, page = np.nonzero((differ != 0) & (pages != 0))
    return pd.DataFrame(
        {
            "pfn": frames[frame] * FRAME + page,
            "frame": frames[frame],
            "attrs": pages[frame, page],
            "original": original[frame],
            "residue": differ[frame, page] == _G,
        }
    )


def _usual(state: DirectMap) -> np.uint64:
    """The attribute word of most large leaves; 0 where there is none."""
    m = state.entries
    whole = state.frame_levels()
    leaves = m.frame_code[: len(whole)][whole == Level.M2]
    gigas = m.giga_code[m.giga_level == Level.G1]
    weight = np.bincount(leaves, minlength=1) if len(leaves) else np.zeros(1, np.int64)
    for code in gigas:
        weight = np.pad(weight, (0, max(0, int(code) + 1 - len(weight))))
        weight[code] += FRAME
    return np.uint64(m.attrs[int(weight.argmax())] & _SOFT)


def last_change(
    pages: npt.NDArray[np.int64],
    changes: Changes,
    order: npt.NDArray[np.int64],
    direct: npt.NDArray[np.bool_],
    read_ns: npt.NDArray[np.int64],
) -> npt.NDArray[np.int64]:
    """For each of ascending `pages`, the row of the last change that covers it and began before its frame was read; or -1.

    Args:
        order: rows that count, in order of effect.
        direct: of all rows, those that count.
        read_ns: per 2M frame.
    """
    row, following = np.full(len(pages), -1, np.int64), np.arange(len(pages) + 1)
    _last_change(
        pages, row, following, order, direct, changes.columns["ts_ns"],
        changes.first_pfn, changes.n_done, changes.pfns, changes.pfns_start, read_ns,
    )  # fmt: skip
    return row


@kernel
def _last_change(
    pages: npt.NDArray[np.int64],
    row_of: npt.NDArray[np.int64],
    following: npt.NDArray[np.int64],
    order: npt.NDArray[np.int64],
    direct: npt.NDArray[np.bool_],
    entry_ns: npt.NDArray[np.int64],
    first_pfn: npt.NDArray[np.int64],
    n_done: npt.NDArray[np.int64],
    pfns: npt.NDArray[np.int64],
    pfns_start: npt.NDArray[np.int64],
    read_ns: npt.NDArray[np.int64],
) -> None:
    """Fills `row_of`; `following` holds each index of pages and one more, and becomes a union-find: the next page without a row."""
    n = len(pages)
    for place in range(len(order) - 1, -1, -1):
        row = order[place]
        if not direct[row]:
            continue
        begin, stop = pfns_start[row], pfns_start[row + 1]
        n_ranges = n_done[row] if stop > begin else 1
        for i in range(n_ranges):
            first = pfns[begin + i] if stop > begin else first_pfn[row]
            end = first + (1 if stop > begin else n_done[row])
            at = first_from(pages, first)
            while True:
                while following[at] != at:
                    following[at] = following[following[at]]
                    at = following[at]
                if at >= n or pages[at] >= end:
                    break
                frame = pages[at] // FRAME
                if entry_ns[row] < read_ns[frame]:
                    row_of[at] = row
                    following[at] = at + 1
                at += 1
