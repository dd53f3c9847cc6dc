"""Snapshots of a trace: the page tables as they were read, as a `DirectMap`, and when each 2M frame of it was read."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from analyze.changes import MAX_TS
from analyze.directmap import FRAME, DirectMap
from analyze.jit import kernel
from collect.errors import TraceError
from collect.heap import give_back
from collect.schema import LEAF_PAGES, TABLES, Moment, Space, empty_table
from collect.trace import Trace

__all__ = ["Snapshot", "SnapshotTable", "load_snapshot", "snapshots_between"]

BETWEEN = (Moment.PERIODIC, Moment.REQUEST)
"""Moments of the snapshots that nothing is rebuilt from: they check the state between the two ends."""

LEAST_ALLOWED, ROWS_EACH = 1000, 256
"""So many snapshots, and one more for each so many rows: one of a real machine has hundreds at least, and each takes a
pass over the map to check."""

_LEAF_PAGES = np.array(LEAF_PAGES, np.int64)


@dataclass
class Snapshot:
    """One snapshot of the direct map.

    Attributes:
        map: the state that was read.
        ts_first, ts_last: nanoseconds, the first and last read.
        read_from, read_to: per 2M frame of `map`, the times between which it was read and nothing changed it.
    """

    map: DirectMap
    ts_first: int
    ts_last: int
    read_from: npt.NDArray[np.int64]
    read_to: npt.NDArray[np.int64]


class SnapshotTable:
    """The table `snapshots` without those between START and END, which `snapshots_between` reads one after the other.

    Raises TraceError for codes or times that the format does not know.
    """

    def __init__(self, trace: Trace) -> None:
        names = TABLES["snapshots"].names
        kept = [empty_table("snapshots"), *(_kept(part, trace) for part in trace.batches("snapshots", names))]
        self.columns: dict[str, npt.NDArray[Any]] = {}
        for name in names:  # what is copied is let go: of a host of 4 TB a column is tens of megabytes
            self.columns[name] = np.concatenate([part[name].to_numpy() for part in kept])
            kept = [part.drop_columns([name]) for part in kept]
        give_back()

    def rows(self, moment: Moment, space: Space = Space.DIRECT_MAP) -> dict[str, npt.NDArray[np.uint64]] | None:
        """Columns of the first snapshot of a moment (the last one of END), or None."""
        mine = (self.columns["moment"] == moment) & (self.columns["space"] == space)
        if not mine.any():
            return None
        numbers = self.columns["snapshot"][mine]
        mine &= self.columns["snapshot"] == (numbers.max() if moment == Moment.END else numbers.min())
        return {name: column[mine] for name, column in self.columns.items()}


def load_snapshot(trace: Trace, table: SnapshotTable, moment: Moment) -> Snapshot | None:
    """The direct map at a moment, or None where the trace has no such snapshot. Raises TraceError for rows that lie."""
    rows = table.rows(moment)
    return None if rows is None else _of_rows(trace, rows, moment.name)


def snapshots_between(trace: Trace) -> Iterator[tuple[int, Moment, Snapshot]]:
    """Number, moment and direct map of each snapshot taken between START and END, in order; one at a time in memory.

    Raises TraceError for rows that lie or are not in order.
    """
    rest, last = empty_table("snapshots"), -1
    most = LEAST_ALLOWED + trace.n_rows("snapshots") // ROWS_EACH
    for part in trace.batches("snapshots", TABLES["snapshots"].names):
        _check(part, trace)
        mine = pc.and_(
            pc.is_in(part["moment"], pa.array(BETWEEN, pa.uint8())), pc.equal(part["space"], Space.DIRECT_MAP)
        )
        rows = pa.concat_tables([rest, part.filter(mine)])
        if not len(rows):
            continue
        numbers = rows["snapshot"].to_numpy()
        cuts = np.flatnonzero(np.diff(numbers.astype(np.int64))) + 1
        begins = [0, *cuts.tolist()]
        # The last one may go on in the next part.
        for begin, end in itertools.pairwise(begins):
            most -= 1
            if most < 0:
                raise TraceError(
                    f"{trace.path}: table snapshots: too many for their rows; the trace is forged or damaged: copy it anew"
                )
            yield (last := _in_order(trace, int(numbers[begin]), last)), *_one(trace, rows.slice(begin, end - begin))
        rest = rows.slice(begins[-1])
    if len(rest):
        yield _in_order(trace, rest["snapshot"][0].as_py(), last), *_one(trace, rest)


def _in_order(trace: Trace, number: int, last: int) -> int:
    if number <= last:
        raise TraceError(f"{trace.path}: table snapshots: number {number} comes after {last}; copy the trace anew")
    return number


def _one(trace: Trace, rows: pa.Table) -> tuple[Moment, Snapshot]:
    columns = {name: rows[name].to_numpy() for name in rows.column_names}
    moment = Moment(int(columns["moment"][0]))
    return moment, _of_rows(trace, columns, f"{int(columns['snapshot'][0])} ({moment.name})")


def _kept(part: pa.Table, trace: Trace) -> pa.Table:
    _check(part, trace)
    return part.filter(pc.invert(pc.is_in(part["moment"], pa.array(BETWEEN, pa.uint8()))))


def _check(part: pa.Table, trace: Trace) -> None:
    if not len(part):
        return
    for name, most in (("moment", max(Moment)), ("space", max(Space))):
        found = pc.max(part[name]).as_py()
        if found > most:
            raise TraceError(f"{trace.path}: table snapshots: {name} {found} is unknown; copy anew")
    if max(pc.max(part["ts_ns"]).as_py(), pc.max(part["ts_end_ns"]).as_py()) >= MAX_TS >> 1:
        raise TraceError(f"{trace.path}: table snapshots: a time stamp is centuries after boot; copy the trace anew")


def _of_rows(trace: Trace, rows: dict[str, npt.NDArray[Any]], name: str) -> Snapshot:
    memory = trace.manifest["memory"]
    rodata = memory.get("rodata")
    try:
        state = DirectMap(memory["max_pfn"], rodata=tuple(rodata) if rodata else None)
        state.load(rows["pfn"], rows["level"], rows["n_leaves"], rows["attrs"])
    except TraceError as error:
        raise TraceError(f"{trace.path}: snapshot {name}: {error}") from None
    first, last = int(rows["ts_ns"].min()), int(rows["ts_end_ns"].max())
    n_frames = state.n_pages // FRAME
    read_from, read_to = np.full(n_frames, first, np.int64), np.full(n_frames, first, np.int64)
    pages = rows["n_leaves"].astype(np.int64) * _LEAF_PAGES[rows["level"]]
    begin = rows["pfn"].astype(np.int64)
    _stamp(read_from, read_to, begin, pages, rows["ts_ns"].astype(np.int64), rows["ts_end_ns"].astype(np.int64))
    return Snapshot(state, first, last, read_from, read_to)


@kernel
def _stamp(
    read_from: npt.NDArray[np.int64],
    read_to: npt.NDArray[np.int64],
    begin: npt.NDArray[np.int64],
    pages: npt.NDArray[np.int64],
    ts: npt.NDArray[np.int64],
    ts_end: npt.NDArray[np.int64],
) -> None:
    for row in range(len(begin)):
        for frame in range(begin[row] // FRAME, (begin[row] + pages[row] - 1) // FRAME + 1):
            read_from[frame] = ts[row]
            read_to[frame] = ts_end[row]
