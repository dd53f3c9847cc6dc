"""Two moments of one trace: which 1G ranges, 2M frames and pages are mapped otherwise, and whose doing that is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from analyze.directmap import FRAME, GIGA, DirectMap, new_log
from analyze.history import History
from analyze.keepers import Makers
from analyze.losses import Doubt, lost_for
from analyze.playback import LeafCounts, Notes, Prediction
from analyze.special_pages import last_change
from analyze.state_summary import LEVEL_NAMES
from analyze.words.attributes import attribute_words
from collect.schema import ATTRS_HARDWARE, LEAF_PAGES, Level

__all__ = ["MAX_LISTED", "REREAD", "Diff", "diff"]

MAX_LISTED = 100_000
"""Runs of changed pages that are kept one by one; all are summed."""

REREAD = "hotplug"
"""In place of a user: no recorded change, but memory that came or went and was read again."""

_BATCH = 4096
"""Split frames that are looked at together: 16 MB of attribute words each."""

_SOFT = np.uint64(~ATTRS_HARDWARE & 0xFFFF_FFFF_FFFF_FFFF)
_PER_GIGA = GIGA // FRAME


@dataclass
class Diff:
    """What changed from one moment to another. What changed and changed back is not in here.

    Every table has row (of changes: the one that did it, -1 where memory was read again), user, name, comm, ts_ns (its
    exit; -1).

    Attributes:
        from_ns, to_ns: the moments.
        n_changes: direct-map changes that took effect in between.
        ranges: 1G ranges whose level changed: pfn, level_from, level_to ("1G", "2M": a table of smaller entries, "hole").
        frames: 2M frames whose level changed, but those that only went with their 1G range: pfn, level_from, level_to.
        pages: runs of neighbouring pages with other attributes (accessed and dirty left out), mapped at both moments: pfn,
            n_pages, attrs_from, attrs_to; the first MAX_LISTED of them.
        users: sums by user and name: n_ranges, n_frames, n_pages; of all pages, listed or not.
        attributes: pages by attrs_from, attrs_to, with flags_from, flags_to.
        lost: events that the recording lost which put the map or whose doing it is in doubt.
    """

    from_ns: int
    to_ns: int
    n_changes: int
    ranges: pd.DataFrame
    frames: pd.DataFrame
    pages: pd.DataFrame
    users: pd.DataFrame
    attributes: pd.DataFrame
    lost: int

    def to_json(self, most: int = 1000) -> dict[str, Any]:
        """Plain values; the first `most` rows of each list, and how many there are."""
        return {
            "from_ns": self.from_ns,
            "to_ns": self.to_ns,
            "changes": self.n_changes,
            "lost_events": self.lost,
            "users": self.users.to_dict("records"),
            "attributes": self.attributes.to_dict("records"),
            **{f"n_{name}": len(getattr(self, name)) for name in ("ranges", "frames")},
            "n_pages": int(self.attributes["n_pages"].sum()),
            **{name: getattr(self, name).head(most).to_dict("records") for name in ("ranges", "frames", "pages")},
        }


def diff(history: History, makers: Makers, from_ns: int, to_ns: int) -> Diff:
    """Compare two moments. Raises TraceError for one that the trace does not cover, ValueError if they are not in order."""
    if from_ns > to_ns:
        raise ValueError("the first moment comes after the second")
    history.check(to_ns)
    course = history.course
    playback = history.take(from_ns)
    a = playback.state.copy()
    notes = Notes(new_log(course.log_capacity), Prediction.empty(0), list[LeafCounts]())
    playback.note(notes)
    playback.to(to_ns)
    b = playback.state
    who = _Doers(history, makers, from_ns, to_ns)
    n = int(notes.log.n[0])
    splits = pd.DataFrame({name: getattr(notes.log, name)[:n] for name in ("row", "pfn", "level")})
    ranges, frames = _levels(a, b, splits, who)
    pages, sums = _attributes(a, b, who)
    return Diff(
        from_ns=from_ns,
        to_ns=to_ns,
        n_changes=int(course.changes.direct[who.order].sum()),
        ranges=ranges,
        frames=frames,
        pages=pages,
        users=_users(ranges, frames, sums, who),
        attributes=_words(sums),
        lost=lost_for(history.trace.manifest["losses"], Doubt.MAP | Doubt.WHO),
    )


class _Doers:
    """Who did what between two moments."""

    def __init__(self, history: History, makers: Makers, from_ns: int, to_ns: int) -> None:
        self.course = history.course
        self.makers = makers
        self.order = history.rows_between(from_ns, to_ns)
        first, end = (history.course.rereads_at(ts_ns) for ts_ns in (from_ns, to_ns))
        self._reread = history.course.reread[first:end]
        self._never = np.full(len(self.course.start.read_from), np.iinfo(np.int64).max)

    def last(self, pfn: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Row of the last change in between that covers each of ascending pages; -1 where there is none."""
        changes = self.course.changes
        return last_change(pfn, changes, self.order, changes.direct, self._never)

    def touched(self) -> npt.NDArray[np.bool_]:
        """Per 2M frame: did anything in between concern it? All of a large leaf is concerned where a part of it is."""
        changes = self.course.changes
        rows = self.order[changes.direct[self.order]]
        begin, n_listed = changes.pfns_start[rows], changes.pfns_start[rows + 1] - changes.pfns_start[rows]
        ranges = rows[n_listed == 0]
        at = np.arange(n_listed.sum()) + np.repeat(begin - np.cumsum(n_listed) + n_listed, n_listed)
        pages = [changes.first_pfn[ranges], changes.pfns[at]]
        lengths = [changes.n_pages[ranges], np.ones(len(at), np.int64)]
        for part in self._reread:
            pages.append(part.runs.pfn)
            lengths.append(part.runs.n_leaves * np.maximum(np.array(LEAF_PAGES)[part.runs.level], 1))
        first, length = np.concatenate(pages), np.concatenate(lengths)
        first, length = first[length > 0], length[length > 0]
        edges = np.zeros(len(self._never) + 1, np.int64)
        np.add.at(edges, first // FRAME, 1)
        np.add.at(edges, (first + length - 1) // FRAME + 1, -1)
        frames = np.cumsum(edges[:-1]) > 0
        # A change within a 1G leaf may have rewritten or split all of it.
        gigas: npt.NDArray[np.bool_] = np.repeat(frames.reshape(-1, _PER_GIGA).any(axis=1), _PER_GIGA)
        return gigas

    def named(self, table: pd.DataFrame) -> pd.DataFrame:
        """A table with `row`, and user, name, comm and ts_ns."""
        row = table["row"].to_numpy(np.int64)
        known, changes = row >= 0, self.course.changes
        name, comm = np.full(len(row), "", object), np.full(len(row), "", object)
        ts = np.full(len(row), -1, np.int64)
        if known.any():
            name[known] = self.makers.name[row[known]]
            comm[known] = self.makers.comm(changes.columns["comm_id"][row[known]])
            ts[known] = changes.exit_ns[row[known]]
        user = np.where(known, self.makers.users(row), REREAD)
        return table.assign(user=user, name=name, comm=comm, ts_ns=ts)


def _levels(a: DirectMap, b: DirectMap, splits: pd.DataFrame, who: _Doers) -> tuple[pd.DataFrame, pd.DataFrame]:
    """1G ranges and 2M frames whose level changed."""
    frames_a, frames_b = a.frame_levels(), b.frame_levels()
    gigas_a, gigas_b = (_giga_levels(state) for state in (a, b))
    gigas = np.flatnonzero(gigas_a != gigas_b)
    ranges = _changed(gigas, gigas_a, gigas_b, GIGA, splits[splits["level"] == Level.G1], who)
    # Those that are whole in both, one level down or up, say no more than their range does.
    with_range = (frames_a >= Level.M2) & (frames_b >= Level.M2)
    frames = np.flatnonzero((frames_a != frames_b) & ~with_range)
    return ranges, _changed(frames, frames_a, frames_b, FRAME, splits[splits["level"] == Level.M2], who)


def _giga_levels(state: DirectMap) -> npt.NDArray[np.uint8]:
    return state.entries.giga_level[: state.first_symbolic // GIGA]


def _changed(
    units: npt.NDArray[np.int64],
    before: npt.NDArray[np.uint8],
    after: npt.NDArray[np.uint8],
    size: int,
    splits: pd.DataFrame,
    who: _Doers,
) -> pd.DataFrame:
    pfn = units * size
    last = splits.drop_duplicates("pfn", keep="last").set_index("pfn")["row"]
    row = last.reindex(pfn, fill_value=-1).to_numpy(np.int64, copy=True)
    other = np.flatnonzero(row < 0)  # not by a split: put back, filled or taken away
    row[other] = who.last(pfn[other])
    names = np.array([LEVEL_NAMES[level] for level in range(4)], object)
    table = {"pfn": pfn, "level_from": names[before[units]], "level_to": names[after[units]], "row": row}
    return who.named(pd.DataFrame(table))


def _attributes(a: DirectMap, b: DirectMap, who: _Doers) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Runs of pages with other attributes, the first MAX_LISTED; and numbers of all of them by row and both words."""
    keys = ["row", "attrs_from", "attrs_to"]
    listed: list[pd.DataFrame] = []
    sums: list[pd.DataFrame] = []
    n_listed = 0
    for part in _parts(a, b, who.touched()):
        part["row"] = who.last(part["pfn"].to_numpy(np.int64))
        sums.append(part.groupby(keys)["n_pages"].sum().reset_index())
        if n_listed < MAX_LISTED:
            listed.append(_joined(part).head(MAX_LISTED - n_listed))
            n_listed += len(listed[-1])
    summed = pd.concat(sums, ignore_index=True).groupby(keys)["n_pages"].sum().reset_index()
    pages = pd.concat(listed, ignore_index=True).sort_values("pfn", kind="stable", ignore_index=True)
    return who.named(pages[["pfn", "n_pages", "attrs_from", "attrs_to", "row"]]), who.named(summed)


def _parts(a: DirectMap, b: DirectMap, touched: npt.NDArray[np.bool_]) -> Iterator[pd.DataFrame]:
    """Changed pages, part by part, in order of page frame within each: pfn, n_pages, attrs_from, attrs_to."""
    levels_a, levels_b = a.frame_levels(), b.frame_levels()
    mapped = (levels_a > 0) & (levels_b > 0) & touched
    split = (levels_a == Level.K4) | (levels_b == Level.K4)
    whole = np.flatnonzero(mapped & ~split) * FRAME
    yield _differ(whole, np.full(len(whole), FRAME), a.attrs_of(whole) & _SOFT, b.attrs_of(whole) & _SOFT)
    frames = np.flatnonzero(mapped & split)
    for i in range(0, len(frames), _BATCH):
        some = frames[i : i + _BATCH]
        pfn = (some[:, None] * FRAME + np.arange(FRAME)).reshape(-1)
        both = (a.level_of(pfn) > 0) & (b.level_of(pfn) > 0)
        pfn = pfn[both]
        yield _differ(pfn, np.ones(len(pfn), np.int64), a.attrs_of(pfn) & _SOFT, b.attrs_of(pfn) & _SOFT)


def _differ(
    pfn: npt.NDArray[np.int64],
    n_pages: npt.NDArray[np.int64],
    attrs_a: npt.NDArray[np.uint64],
    attrs_b: npt.NDArray[np.uint64],
) -> pd.DataFrame:
    at = attrs_a != attrs_b
    return pd.DataFrame({"pfn": pfn[at], "n_pages": n_pages[at], "attrs_from": attrs_a[at], "attrs_to": attrs_b[at]})


def _joined(part: pd.DataFrame) -> pd.DataFrame:
    """Neighbours with the same words and the same row in one."""
    follows = part["pfn"].eq(part["pfn"].shift() + part["n_pages"].shift())
    for name in ("attrs_from", "attrs_to", "row"):
        follows &= part[name].eq(part[name].shift())
    run = (~follows).cumsum()
    how = {"pfn": "first", "n_pages": "sum", "attrs_from": "first", "attrs_to": "first", "row": "first"}
    return part.groupby(run, sort=False).agg(how).reset_index(drop=True)


def _users(ranges: pd.DataFrame, frames: pd.DataFrame, sums: pd.DataFrame, who: _Doers) -> pd.DataFrame:
    by = ["user", "name"]
    table = pd.concat(
        [
            ranges.groupby(by).size().rename("n_ranges"),
            frames.groupby(by).size().rename("n_frames"),
            sums.groupby(by)["n_pages"].sum(),
        ],
        axis=1,
    )
    table = table.fillna(0).astype(np.int64).reset_index()
    return table.sort_values(["n_frames", "n_ranges", "n_pages"], ascending=False, kind="stable", ignore_index=True)


def _words(sums: pd.DataFrame) -> pd.DataFrame:
    table = sums.groupby(["attrs_from", "attrs_to"])["n_pages"].sum().reset_index()
    table = table.assign(
        flags_from=attribute_words(table["attrs_from"].tolist()), flags_to=attribute_words(table["attrs_to"].tolist())
    )
    return table.sort_values("n_pages", ascending=False, kind="stable", ignore_index=True)
