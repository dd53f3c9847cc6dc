"""Snapshots of a trace: the page tables as they were read, as a `DirectMap`, and when each 2M frame of it was read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from analyze.changes import MAX_TS
from analyze.directmap import FRAME, DirectMap
from analyze.jit import kernel
from collect.errors import TraceError
from collect.schema import LEAF_PAGES, Moment, Space
from collect.trace import Trace

__all__ = ["Snapshot", "SnapshotTable", "load_snapshot"]

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
    """The table `snapshots`, read once. Raises TraceError for codes or times that the format does not know."""

    def __init__(self, trace: Trace) -> None:
        table = trace.table("snapshots")
        self.columns = {name: table[name].to_numpy() for name in table.column_names}
        self.path = trace.path
        for name, most in (("moment", max(Moment)), ("space", max(Space))):
            if len(table) and self.columns[name].max() > most:
                raise TraceError(
                    f"{trace.path}: table snapshots: {name} {self.columns[name].max()} is unknown; copy anew"
                )
        if len(table) and max(self.columns["ts_ns"].max(), self.columns["ts_end_ns"].max()) >= MAX_TS >> 1:
            raise TraceError(
                f"{trace.path}: table snapshots: a time stamp is centuries after boot; copy the trace anew"
            )

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
    if rows is None:
        return None
    memory = trace.manifest["memory"]
    rodata = memory.get("rodata")
    state = DirectMap(memory["max_pfn"], rodata=tuple(rodata) if rodata else None)
    try:
        state.load(rows["pfn"], rows["level"], rows["n_leaves"], rows["attrs"])
    except TraceError as error:
        raise TraceError(f"{trace.path}: snapshot {moment.name}: {error}") from None
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
