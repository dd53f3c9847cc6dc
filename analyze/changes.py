"""The changes of a trace as flat columns, checked before any number of theirs indexes an array."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from analyze.directmap import GIGA, MAX_PAGES, TOO_LARGE
from collect.errors import TraceError
from collect.schema import NO_PFN, TABLES, ChangeKind, Cpa, Level, Space
from collect.trace import Trace

__all__ = ["Changes", "load_changes"]

MAX_TS = 1 << 62
"""Time stamps stay below this, so that they and their sums fit signed arithmetic: 146 years after boot."""

MAX_WORK = 1 << 30
"""Pages that all direct-map changes together ask for, and `WORK_EACH` more for each: at up to 7 ns a page, so long does it take
to play them, and they are played a few times."""
WORK_EACH = 256


@dataclass
class Changes:
    """Columns of the table `changes`, rows as stored, under the schema's names, and what follows from them.

    `ts_ns`, `duration_ns`, `n_pages` and `n_done` are int64; the rest as in `collect.schema.TABLES["changes"]`.
    """

    columns: dict[str, npt.NDArray[Any]]
    first_pfn: npt.NDArray[np.int64]
    """First page in the direct map, by its address; -1 where the row does not apply to the direct map."""
    n_pages: npt.NDArray[np.int64]
    n_done: npt.NDArray[np.int64]
    """Pages really changed: all of them where the call returned 0 (but for one that asked for nothing), or where its return
    was not seen."""
    exit_ns: npt.NDArray[np.int64]
    effect_ns: npt.NDArray[np.int64]
    """When each took effect: at its exit, but a direct call before those nested in it."""
    order: npt.NDArray[np.int64]
    """Rows in order of effect, equal ones as stored."""
    direct: npt.NDArray[np.bool_]
    """Rows that change the direct map."""
    pfns: npt.NDArray[np.int64]
    """Pages of all pages arrays, one after the other."""
    pfns_start: npt.NDArray[np.int64]
    """Where each row's pages begin in `pfns`; one more entry than rows."""

    def __len__(self) -> int:
        return len(self.order)

    def __getattr__(self, name: str) -> npt.NDArray[Any]:
        try:
            return self.__dict__["columns"][name]  # type: ignore[no-any-return]
        except KeyError:
            raise AttributeError(name) from None


def load_changes(trace: Trace) -> Changes:
    """Read and check the changes of a trace.

    Raises TraceError for codes that the format does not know, call ids that come twice, more pages done than asked
    for, and pages outside the recorded memory.
    """
    table = trace.table("changes")
    columns: dict[str, npt.NDArray[Any]] = {
        name: table[name].to_numpy() for name in TABLES["changes"].names if name != "pfns"
    }
    where = f"{trace.path}: table changes"
    _check_codes(columns, where)
    _check_times(columns, where)
    ids = columns["call_id"]
    ordered = np.sort(ids)
    twice = _first_true(ordered[1:] == ordered[:-1])
    if twice is not None:
        raise TraceError(f"{where}: call_id {ordered[twice]} comes twice; copy the trace anew")
    for name in ("ts_ns", "duration_ns"):
        columns[name] = columns[name].astype(np.int64)

    lists = table["pfns"]
    lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False).astype(np.int64)
    flat = pc.list_flatten(lists).to_numpy()
    memory = trace.manifest["memory"]
    end = -(-memory["max_pfn"] // GIGA) * GIGA
    if end > MAX_PAGES:
        raise TraceError(f"{trace.path}: memory.max_pfn {memory['max_pfn']}{TOO_LARGE}")
    if len(flat) and flat.max() >= end:
        raise TraceError(f"{where}: a pages array holds pfn {flat.max()}, memory ends at {end}; copy the trace anew")

    is_array = lengths > 0
    arrays_flagged = (columns["flags"] & int(Cpa.PAGES_ARRAY)) != 0
    in_direct = columns["space"] == Space.DIRECT_MAP
    direct = np.where(columns["kind"] == ChangeKind.CPA, is_array | (in_direct & ~arrays_flagged), in_direct)
    first = _first_pfn(columns, memory.get("page_offset"), direct & ~is_array)
    n_pages = _bounded_pages(columns, "n_pages", direct, end, where)
    n_done = _bounded_pages(columns, "n_done", direct, end, where)
    # Nothing asked for: from 6.2 on the call returns at once, at its first page (sm: __change_page_attr_set_clr).
    idle = (n_done == 0) & ((columns["mask_set"] | columns["mask_clr"]) == 0) & (columns["force_split"] == 0)
    whole = ((columns["ret"] == 0) & ~idle) | (columns["has_exit"] == 0)
    n_done = np.where(whole, n_pages, n_done)
    n_done = np.where(is_array, np.minimum(n_done, lengths), n_done)
    bad = _first_true(direct & (n_done > n_pages))
    if bad is not None:
        raise TraceError(f"{where}: row {bad} completed {n_done[bad]} of {n_pages[bad]} pages; copy the trace anew")
    bad = _first_true(direct & ~is_array & ((first < 0) | (first + n_pages > end)))
    if bad is not None:
        raise TraceError(
            f"{where}: row {bad} changes {n_pages[bad]} pages from pfn {first[bad]}, memory ends at {end}; copy the trace anew"
        )
    asked = int(n_pages[direct].sum())
    if asked > MAX_WORK + WORK_EACH * len(direct):
        raise TraceError(
            f"{where}: {asked} pages asked for in all, no recording comes near that; the trace is forged or damaged: copy it anew"
        )
    first[is_array] = flat[np.minimum(np.cumsum(lengths) - lengths, max(0, len(flat) - 1))[is_array]].astype(np.int64)
    exit_ns = columns["ts_ns"] + columns["duration_ns"]
    effect_ns = _effect_ns(columns, direct, exit_ns)
    return Changes(
        columns=columns,
        first_pfn=first,
        n_pages=n_pages,
        n_done=n_done,
        exit_ns=exit_ns,
        effect_ns=effect_ns,
        order=np.argsort(effect_ns, kind="stable"),
        direct=direct,
        pfns=flat.astype(np.int64),
        pfns_start=np.concatenate(([0], np.cumsum(lengths))),
    )


def _effect_ns(
    columns: dict[str, npt.NDArray[Any]], direct: npt.NDArray[np.bool_], exit_ns: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """When each change took effect: at its exit, but before a call nested in it where it changed the direct map itself.

    So it is with decoy addresses (set_mce_nospec): the alias call that follows finds the page changed already.
    """
    rows = np.flatnonzero(direct)
    by_id = rows[np.argsort(columns["call_id"][rows])]
    ids = columns["call_id"][by_id]
    # One with a stack of its own was made in the reclaim of the other's split, before that changed anything.
    nested = rows[(columns["parent_id"][rows] != 0) & (columns["stack_id"][rows] == 0)]
    wanted = columns["parent_id"][nested]
    at = np.minimum(np.searchsorted(ids, wanted), len(ids) - 1)
    known = ids[at] == wanted if len(ids) else np.zeros(len(wanted), np.bool_)
    effect = exit_ns.copy()
    np.minimum.at(effect, by_id[at[known]], columns["ts_ns"][nested[known]])
    return effect


def _first_pfn(
    columns: dict[str, npt.NDArray[Any]], page_offset: object, ranges: npt.NDArray[np.bool_]
) -> npt.NDArray[np.int64]:
    """By address: the entry of a page that is not present holds its pfn inverted (L1TF), and that of a hole none."""
    if isinstance(page_offset, int) and 0 < page_offset < 1 << 64:
        pages = (columns["address"] - np.uint64(page_offset)) >> np.uint64(
            12
        )  # wraps for addresses below: out of bounds
    else:
        pages = np.minimum(columns["pfn"], np.uint64(NO_PFN >> 1))
    return np.where(ranges, np.minimum(pages, np.uint64(MAX_TS)).astype(np.int64), -1)


def _bounded_pages(
    columns: dict[str, npt.NDArray[Any]], name: str, direct: npt.NDArray[np.bool_], end: int, where: str
) -> npt.NDArray[np.int64]:
    pages = columns[name]
    bad = _first_true(direct & (pages > end))
    if bad is not None:
        raise TraceError(f"{where}: row {bad} has {name} {pages[bad]}, memory ends at pfn {end}; copy the trace anew")
    signed: npt.NDArray[np.int64] = np.minimum(pages, np.uint64(MAX_TS)).astype(np.int64)
    return signed


def _check_codes(columns: dict[str, npt.NDArray[Any]], where: str) -> None:
    codes: dict[str, type[IntEnum]] = {
        "kind": ChangeKind,
        "space": Space,
        "level_before": Level,
        "level_first": Level,
        "level_last": Level,
    }
    for name, enum in codes.items():
        bad = _first_true(columns[name] > max(enum))
        if bad is not None:
            raise TraceError(
                f"{where}: row {bad} has {name} {columns[name][bad]}, which this format does not know; "
                "install a newer directmap or copy the trace anew"
            )


def _check_times(columns: dict[str, npt.NDArray[Any]], where: str) -> None:
    for name in ("ts_ns", "duration_ns"):
        bad = _first_true(columns[name] >= np.uint64(MAX_TS >> 1))
        if bad is not None:
            raise TraceError(
                f"{where}: row {bad} has {name} {columns[name][bad]}, centuries after boot; copy the trace anew"
            )


def _first_true(bad: npt.NDArray[np.bool_]) -> int | None:
    at = int(bad.argmax()) if len(bad) else 0
    return at if len(bad) and bad[at] else None
