"""Splits as the probe saw them done (table `splits`), and how they differ from those that the rules rebuilt.

A split is told by its leaf: the level that was split and the first page. Which of two calls that overlap in time has
split a leaf does not matter to the state, so the call is not compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from analyze.changes import MAX_TS, Changes
from analyze.directmap import FRAME, GIGA, Window
from collect.errors import TraceError
from collect.schema import LEAF_PAGES, TABLES_SINCE, ChangeKind, Level, Space
from collect.trace import Trace

__all__ = ["ObservedSplits", "SplitDifference", "compare_splits", "load_splits"]

PROBE = "fentry:flush_tlb_all"


@dataclass
class ObservedSplits:
    """Splits of direct-map entries, in order of time.

    Attributes:
        observed: whether the trace can hold any: not where its format is older than the table, or the probe was missing.
        ts_ns, pfn, level: when, the page in work, the Level that was split (3: 1G to 2M, 2: 2M to 4K).
        call_id, row: the call, and its row of changes (-1: not in the trace).
        image_ts_ns, image_level: splits of the kernel image's own mapping: when, the Level that was split.
        left_row, left_pfn, left_level: those above the page at which a call failed, by ascending row: the rules know only
            of the pages that it completed.
    """

    observed: bool
    ts_ns: npt.NDArray[np.int64]
    pfn: npt.NDArray[np.int64]
    level: npt.NDArray[np.uint8]
    call_id: npt.NDArray[np.uint64]
    row: npt.NDArray[np.int64]
    image_ts_ns: npt.NDArray[np.int64]
    image_level: npt.NDArray[np.uint8]
    left_row: npt.NDArray[np.int64]
    left_pfn: npt.NDArray[np.int64]
    left_level: npt.NDArray[np.uint8]


@dataclass
class SplitDifference:
    """What `compare_splits` found.

    Attributes:
        observed: splits seen in the frames and times that are rebuilt.
        differ: one row per leaf that was split another number of times than was seen: level (that was split), pfn (first
            of the leaf), rebuilt, observed (times), call_id (of the first seen, or of the first rebuilt).
    """

    observed: int
    differ: pd.DataFrame


def load_splits(trace: Trace, changes: Changes) -> ObservedSplits:
    """Read and check the table `splits`. Raises TraceError for codes, pages or times that cannot be."""
    table = trace.table("splits")
    columns: dict[str, npt.NDArray[Any]] = {
        name: table[name].to_numpy() for name in ("ts_ns", "call_id", "space", "pfn", "level")
    }
    where = f"{trace.path}: table splits"
    direct = columns["space"] == Space.DIRECT_MAP
    end = -(-trace.manifest["memory"]["max_pfn"] // GIGA) * GIGA
    for what, bad in (
        ("a space that this format does not know", columns["space"] > max(Space)),
        ("a level that no split leaves", (columns["level"] != Level.K4) & (columns["level"] != Level.M2)),
        ("a time centuries after boot", columns["ts_ns"] >= np.uint64(MAX_TS >> 1)),
        ("a page outside memory", direct & (columns["pfn"] >= np.uint64(end))),
    ):
        # Outside of the direct map an entry may be gone again by the time it is looked at.
        bad = bad & direct if what.startswith("a level") else bad
        if bad.any():
            raise TraceError(f"{where}: row {int(bad.argmax())} has {what}; copy the trace anew")
    order = np.argsort(columns["ts_ns"], kind="stable")
    mine = order[direct[order]]
    image = order[(columns["space"] == Space.KERNEL_IMAGE)[order]]
    call_id = columns["call_id"][mine]
    pfn, level = columns["pfn"][mine].astype(np.int64), (columns["level"][mine] + 1).astype(np.uint8)
    row = _rows_of(call_id, changes)
    failed = np.flatnonzero((row >= 0) & (_failed_page(changes)[row] == pfn))
    failed = failed[np.argsort(row[failed], kind="stable")]
    attached = trace.manifest["probes"].get("attached")
    return ObservedSplits(
        observed=trace.manifest["format_version"] >= TABLES_SINCE["splits"]
        and isinstance(attached, list)
        and PROBE in attached,
        ts_ns=columns["ts_ns"][mine].astype(np.int64),
        pfn=pfn,
        level=level,
        call_id=call_id,
        row=row,
        image_ts_ns=columns["ts_ns"][image].astype(np.int64),
        image_level=(columns["level"][image] + 1).astype(np.uint8),
        left_row=row[failed],
        left_pfn=pfn[failed],
        left_level=level[failed],
    )


def compare_splits(
    splits: pd.DataFrame, observed: ObservedSplits, changes: Changes, window: Window
) -> SplitDifference | None:
    """Rebuilt splits (`Rebuild.splits`) against observed ones; None where none could be observed."""
    if not observed.observed:
        return None
    frame = observed.pfn // FRAME
    entry, leave = observed.ts_ns.copy(), observed.ts_ns.copy()
    known = observed.row >= 0  # the rules pass over a frame by the times of the whole call
    entry[known] = changes.columns["ts_ns"][observed.row[known]]
    leave[known] = changes.exit_ns[observed.row[known]]
    inside = (leave > window.lo[frame]) & (entry < window.hi[frame])
    seen = pd.DataFrame(
        {"level": observed.level[inside], "page": observed.pfn[inside], "call_id": observed.call_id[inside]}
    )
    rebuilt = pd.DataFrame(
        {
            "level": splits["level"].to_numpy(np.uint8),
            "page": splits["pfn"].to_numpy(np.int64),
            "call_id": changes.columns["call_id"][splits["row"].to_numpy(np.int64)],
        }
    )
    both = pd.concat([rebuilt.assign(rebuilt=1, observed=0), seen.assign(rebuilt=0, observed=1)], ignore_index=True)
    size = np.array(LEAF_PAGES, np.int64)[both["level"].to_numpy(np.int64)]
    both["pfn"] = both["page"].to_numpy(np.int64) // size * size
    leaves = (
        both.sort_values("observed", ascending=False, kind="stable")
        .groupby(["level", "pfn"], as_index=False)
        .agg({"rebuilt": "sum", "observed": "sum", "call_id": "first"})
    )
    return SplitDifference(len(seen), leaves[leaves["rebuilt"] != leaves["observed"]].reset_index(drop=True))


def _failed_page(changes: Changes) -> npt.NDArray[np.int64]:
    """The page at which each call failed; -1 where it did not, and for -1 as an index."""
    arrays = changes.pfns_start[1:] > changes.pfns_start[:-1]
    page = changes.first_pfn + changes.n_done
    at = np.minimum(changes.pfns_start[:-1] + changes.n_done, np.maximum(changes.pfns_start[1:] - 1, 0))
    page[arrays] = changes.pfns[at[arrays]]
    failed = (changes.columns["kind"] == ChangeKind.CPA) & (changes.columns["ret"] != 0) & changes.direct
    return np.append(np.where(failed, page, -1), -1)


def _rows_of(call_id: npt.NDArray[np.uint64], changes: Changes) -> npt.NDArray[np.int64]:
    """Row of changes of each call, -1 where it is not there."""
    ids = changes.columns["call_id"]
    if not len(ids):
        return np.full(len(call_id), -1, np.int64)
    order = np.argsort(ids, kind="stable")
    at = np.minimum(np.searchsorted(ids[order], call_id), len(ids) - 1)
    return np.where(ids[order][at] == call_id, order[at], -1).astype(np.int64)
