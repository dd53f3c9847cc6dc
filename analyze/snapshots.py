"""Snapshots of a trace: the page tables as they were read, as a `DirectMap`, and when each 2M frame of it was read."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterator, Sequence
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

__all__ = ["Snapshot", "SnapshotTable", "load_map", "load_snapshot", "snapshots_between"]

BETWEEN = (Moment.PERIODIC, Moment.REQUEST)
"""Moments of the snapshots that nothing is rebuilt from: they check the state between the two ends."""

LEAST_ALLOWED, ROWS_EACH = 1000, 256
"""So many snapshots, and one more for each so many rows: one of a real machine has hundreds at least, and each takes a
pass over the map to check."""

_OF_MAP = ("pfn", "level", "n_leaves", "attrs")
"""Columns that make a map."""

_LONG_RUNS = ("snapshot", "moment", "ts_ns", "ts_end_ns", "space")
"""Columns of the table `snapshots` that say the same of many rows on end."""
_SMALL = ("pfn", "n_leaves")
"""Columns whose numbers mostly fit half the bytes."""

_LEAF_PAGES = np.array(LEAF_PAGES, np.int64)


class Snapshot:
    """One snapshot of the direct map.

    Its map takes a quarter of a gigabyte of a big host, so it is kept only until it is taken or let go; whoever asks for it
    after that has it loaded anew.

    Attributes:
        ts_first, ts_last: nanoseconds, the first and last read.
        read_from, read_to: per 2M frame of `map`, the times between which it was read and nothing changed it.
    """

    def __init__(
        self,
        load: Callable[[], DirectMap],
        ts_first: int,
        ts_last: int,
        read_from: npt.NDArray[np.int64],
        read_to: npt.NDArray[np.int64],
        held: DirectMap | None = None,
    ) -> None:
        self.ts_first, self.ts_last = ts_first, ts_last
        self.read_from, self.read_to = read_from, read_to
        self._load = load
        self._held = held
        self._shown = False
        self._lent: weakref.ref[DirectMap] | None = None

    @property
    def map(self) -> DirectMap:
        """The state that was read; nobody changes it."""
        self._shown = True
        found = self._held or (self._lent() if self._lent else None)
        if found is None:
            found = self._load()
            self._lent = weakref.ref(found)  # loaded once for all that hold it at the same time
        return found

    def take(self) -> DirectMap:
        """The same as a map of the caller's own, to be changed."""
        own, self._held = self._held, None
        return own if own is not None and not self._shown else self._load()

    def let_go(self) -> None:
        """Nobody will ask for the map for a while."""
        self._held = None


class SnapshotTable:
    """The table `snapshots` without those between START and END, which `snapshots_between` reads one after the other.

    Kept packed: the table of a host of 4 TB would take 150 MB.

    Raises TraceError for codes or times that the format does not know.
    """

    def __init__(self, trace: Trace) -> None:
        self._parts = list(_packed_parts(trace))
        give_back()

    def column(self, name: str) -> npt.NDArray[Any]:
        """One column, whole."""
        empty = np.empty(0, TABLES["snapshots"].field(name).type.to_pandas_dtype())
        return np.concatenate([empty, *(_plain(part, name) for part in self._parts)])

    def rows(
        self, moment: Moment, space: Space = Space.DIRECT_MAP, names: Sequence[str] = TABLES["snapshots"].names
    ) -> dict[str, npt.NDArray[np.uint64]] | None:
        """Columns of the first snapshot of a moment (the last one of END), or None."""
        mine = [(_plain(part, "moment") == moment) & (_plain(part, "space") == space) for part in self._parts]
        found = [(part, here) for part, here in zip(self._parts, mine, strict=True) if here.any()]
        numbers = [_plain(part, "snapshot") for part, _ in found]
        if not found:
            return None
        wanted = [
            n[here].max() if moment == Moment.END else n[here].min()
            for n, (_, here) in zip(numbers, found, strict=True)
        ]
        number = max(wanted) if moment == Moment.END else min(wanted)
        of_it = [(part, here & (n == number)) for n, (part, here) in zip(numbers, found, strict=True)]
        return {name: np.concatenate([_plain(part, name)[here] for part, here in of_it]) for name in names}


def _packed_parts(trace: Trace) -> Iterator[dict[str, pa.Array]]:
    names = TABLES["snapshots"].names
    for part in trace.batches("snapshots", names, n_threads=1):
        kept = _kept(part, trace).combine_chunks()
        if len(kept):
            yield {name: _packed(name, kept[name].chunk(0)) for name in names}


def _packed(name: str, column: pa.Array) -> pa.Array:
    if name in _LONG_RUNS:
        return pc.run_end_encode(column)
    if name == "attrs":
        return column.dictionary_encode()
    return column.cast(pa.uint32()) if name in _SMALL and pc.max(column).as_py() < 1 << 32 else column


def _plain(part: dict[str, pa.Array], name: str) -> npt.NDArray[Any]:
    column = part[name]
    if name in _LONG_RUNS:
        column = pc.run_end_decode(column)
    values: npt.NDArray[Any] = column.cast(TABLES["snapshots"].field(name).type).to_numpy()
    return values


def load_map(trace: Trace, table: SnapshotTable, moment: Moment) -> DirectMap | None:
    """The direct map at a moment, where it does not matter when each frame was read; else as `load_snapshot`."""
    rows = table.rows(moment, names=_OF_MAP)
    return None if rows is None else _map_of(trace, rows, moment.name)


def load_snapshot(trace: Trace, table: SnapshotTable, moment: Moment) -> Snapshot | None:
    """The direct map at a moment, or None where the trace has no such snapshot. Raises TraceError for rows that lie."""

    def again() -> dict[str, npt.NDArray[Any]]:
        rows = table.rows(moment, names=_OF_MAP)
        assert rows is not None
        return rows

    rows = table.rows(moment)
    return None if rows is None else _of_rows(trace, rows, moment.name, again)


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
    return moment, _of_rows(trace, columns, f"{int(columns['snapshot'][0])} ({moment.name})", lambda: columns)


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


def _of_rows(
    trace: Trace, rows: dict[str, npt.NDArray[Any]], name: str, again: Callable[[], dict[str, npt.NDArray[Any]]]
) -> Snapshot:
    """The snapshot of these rows, and of what `again` gives where its map is asked for later: the same rows."""
    state = _map_of(trace, rows, name)
    first, last = int(rows["ts_ns"].min()), int(rows["ts_end_ns"].max())
    n_frames = state.n_pages // FRAME
    read_from, read_to = np.full(n_frames, first, np.int64), np.full(n_frames, first, np.int64)
    pages = rows["n_leaves"].astype(np.int64) * _LEAF_PAGES[rows["level"]]
    begin = rows["pfn"].astype(np.int64)
    _stamp(read_from, read_to, begin, pages, rows["ts_ns"].astype(np.int64), rows["ts_end_ns"].astype(np.int64))
    return Snapshot(lambda: _map_of(trace, again(), name), first, last, read_from, read_to, state)


def _map_of(trace: Trace, rows: dict[str, npt.NDArray[Any]], name: str) -> DirectMap:
    memory = trace.manifest["memory"]
    rodata = memory.get("rodata")
    try:
        state = DirectMap(memory["max_pfn"], rodata=tuple(rodata) if rodata else None)
        state.load(*(rows[column] for column in _OF_MAP))
    except TraceError as error:
        raise TraceError(f"{trace.path}: snapshot {name}: {error}") from None
    del rows
    give_back()
    return state


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
