"""Holds what the rules predicted of each change against what the probe saw in the page tables at that moment."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from analyze.directmap import FRAME, GIGA
from analyze.jit import kernel
from analyze.reconstruct import NOT_PREDICTED, Rebuild
from collect.schema import ATTRS_HARDWARE, Level, Pte

__all__ = ["rule_mismatches"]

MAX_EXAMINED = 10_000
"""Mismatches whose neighbours in time are looked at; a trace with more is beyond doubt wrong."""

_RULES = {
    ("before", "level"): "state before the change: an earlier change is missing",
    ("before", "attributes"): "state before the change: an earlier change is missing",
    ("first", "level"): "split or kept: __should_split_large_page",
    ("last", "level"): "split or kept: __should_split_large_page",
    ("first", "attributes"): "masks, static protections, G without P: __change_page_attr",
    ("last", "attributes"): "masks, static protections, G without P: __change_page_attr",
}


def rule_mismatches(rebuilt: Rebuild) -> pd.DataFrame:
    """Each page where prediction and observation differ, in order of effect.

    Columns: row (of changes), call_id, when ("before", "first", "last" page), what ("level" or "attributes"), rule,
    page, predicted_level, predicted_attrs, observed_level, observed_attrs, ambiguous (another change overlapped in
    time and touched the same 2M frame or 1G leaf, so the probe may have seen that one's effect), stack_id.
    """
    changes = rebuilt.changes
    found = pd.concat([_differences(rebuilt, when) for when in ("before", "first", "last")], ignore_index=True)
    place = np.empty(len(changes), np.int64)
    place[changes.order] = np.arange(len(changes))
    found["place"] = place[found["row"].to_numpy(np.int64)]
    found = found.sort_values(["place", "when"], kind="stable", ignore_index=True)
    ambiguous = np.zeros(len(found), np.bool_)
    n = min(len(found), MAX_EXAMINED)
    if n:
        large = (found["predicted_level"] == Level.G1) | (found["observed_level"] == Level.G1)
        duration = changes.exit_ns - changes.columns["ts_ns"]
        _find_overlaps(
            found["place"].to_numpy(np.int64)[:n],
            found["page"].to_numpy(np.int64)[:n],
            np.where(large, GIGA, FRAME)[:n],
            changes.order,
            changes.columns["ts_ns"],
            changes.exit_ns,
            int(duration.max()),
            changes.direct,
            changes.first_pfn,
            changes.n_pages,
            changes.pfns,
            changes.pfns_start,
            changes.columns["call_id"],
            changes.columns["parent_id"],
            ambiguous,
        )
    found["ambiguous"] = ambiguous
    found["call_id"] = changes.columns["call_id"][found["row"]]
    found["stack_id"] = changes.columns["stack_id"][found["row"]]
    return found.drop(columns="place")


def _differences(rebuilt: Rebuild, when: str) -> pd.DataFrame:
    changes, prediction = rebuilt.changes, rebuilt.prediction
    level: npt.NDArray[np.uint8] = getattr(prediction, f"level_{when}")
    attrs: npt.NDArray[np.uint64] = getattr(prediction, f"attrs_{when}")
    seen_level, seen_attrs = changes.columns[f"level_{when}"], changes.columns[f"attrs_{when}"]
    known = (level != NOT_PREDICTED) & (changes.n_pages > 0)
    if when == "before":
        known &= ~_nested_in_direct(rebuilt)
    else:
        known &= changes.columns["has_exit"] != 0
    page = changes.first_pfn
    if when == "last":
        page = _last_page(rebuilt)
    ignored = np.full(len(changes), ATTRS_HARDWARE, np.uint64)
    pool = rebuilt.trace.manifest["memory"].get("kfence_pool")
    if pool:
        ignored[(page >= pool[0]) & (page < pool[1])] |= np.uint64(int(Pte.P))
    wrong_level = known & (level != seen_level)
    wrong_attrs = known & ~wrong_level & (((attrs ^ seen_attrs) & ~ignored) != 0)
    rows = np.flatnonzero(wrong_level | wrong_attrs)
    what = np.where(wrong_level[rows], "level", "attributes")
    return pd.DataFrame(
        {
            "row": rows,
            "when": when,
            "what": what,
            "rule": [_RULES[when, str(kind)] for kind in what],
            "page": page[rows],
            "predicted_level": level[rows],
            "predicted_attrs": attrs[rows],
            "observed_level": seen_level[rows],
            "observed_attrs": seen_attrs[rows],
        }
    )


def _nested_in_direct(rebuilt: Rebuild) -> npt.NDArray[np.bool_]:
    """Calls nested in one that changed the direct map itself (decoy addresses): the parent's step came before theirs."""
    columns = rebuilt.changes.columns
    direct_ids = columns["call_id"][rebuilt.changes.direct]
    nested: npt.NDArray[np.bool_] = (columns["parent_id"] != 0) & np.isin(columns["parent_id"], direct_ids)
    return nested


def _last_page(rebuilt: Rebuild) -> npt.NDArray[np.int64]:
    changes = rebuilt.changes
    done = np.maximum(changes.n_done, 1)
    last = changes.first_pfn + done - 1
    arrays = np.flatnonzero(changes.pfns_start[1:] > changes.pfns_start[:-1])
    last[arrays] = changes.pfns[changes.pfns_start[arrays] + done[arrays] - 1]
    return last


@kernel
def _find_overlaps(
    places: npt.NDArray[np.int64],
    pages: npt.NDArray[np.int64],
    sizes: npt.NDArray[np.int64],
    order: npt.NDArray[np.int64],
    entry_ns: npt.NDArray[np.int64],
    exit_ns: npt.NDArray[np.int64],
    longest_ns: int,
    direct: npt.NDArray[np.bool_],
    first_pfn: npt.NDArray[np.int64],
    n_pages: npt.NDArray[np.int64],
    pfns: npt.NDArray[np.int64],
    pfns_start: npt.NDArray[np.int64],
    call_id: npt.NDArray[np.uint64],
    parent_id: npt.NDArray[np.uint64],
    ambiguous: npt.NDArray[np.bool_],
) -> None:
    """For each mismatch (place in `order`, page, size of the block it lies in): does another change overlap it?"""
    most_steps = 100_000  # enough for any real overlap; keeps a forged trace from taking quadratic time
    for i in range(len(places)):
        row = order[places[i]]
        block = pages[i] // sizes[i]
        for direction in (-1, 1):
            place = places[i] + direction
            steps = 0
            while 0 <= place < len(order) and steps < most_steps and not ambiguous[i]:
                other = order[place]
                if direction < 0 and exit_ns[other] <= entry_ns[row]:
                    break
                if direction > 0 and exit_ns[other] - longest_ns >= exit_ns[row]:
                    break
                related = parent_id[other] == call_id[row] or parent_id[row] == call_id[other]
                if direct[other] and not related and entry_ns[other] < exit_ns[row]:
                    begin, stop = pfns_start[other], pfns_start[other + 1]
                    if stop > begin:
                        for at in range(begin, stop):
                            if pfns[at] // sizes[i] == block:
                                ambiguous[i] = True
                    elif first_pfn[other] // sizes[i] <= block <= (first_pfn[other] + n_pages[other] - 1) // sizes[i]:
                        ambiguous[i] = True
                place += direction
                steps += 1
