"""Steps on the direct map in order of effect, and which request's page each of them touched."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from analyze.changes import Changes
from analyze.observed_splits import ObservedSplits
from analyze.rules import Window
from collect.errors import TraceError
from collect.schema import HUGE_FRAME_PAGES, ChangeKind
from replay.ownership import Touches, join_layers
from replay.requests import Life, Requests

__all__ = [
    "CHANGE",
    "COLLAPSE",
    "COLLAPSE_GIGA",
    "HOTPLUG_ADD",
    "HOTPLUG_REMOVE",
    "MAX_MASKS",
    "SPLIT_LEFT",
    "Steps",
    "own",
    "read_steps",
]

Int64 = npt.NDArray[np.int64]
UInt64 = npt.NDArray[np.uint64]
Bools = npt.NDArray[np.bool_]

CHANGE, COLLAPSE, HOTPLUG_ADD, HOTPLUG_REMOVE = (int(kind) for kind in ChangeKind)
COLLAPSE_GIGA = 4
"""`Steps.op` is the `ChangeKind`, or this where a 1G entry was put back too."""
SPLIT_LEFT = 5
"""Or this: an entry that a call which failed had split before; `seen_level` is the Level that was split."""

MAX_OWNED_PAGES = 1 << 22
"""Pages looked up one by one, and `OWNED_PAGES_EACH` more for each step: some 100 bytes of memory each while it is done."""
OWNED_PAGES_EACH = 64

MAX_MASKS = 256
"""Pairs of masks that are numbered; kernels use a dozen."""


@dataclass(frozen=True)
class Steps:
    """Steps in order of effect, flat: one call that reached the direct map, or one page of a pages array.

    Attributes:
        op: what happened; only a `CHANGE` is ever carried over.
        row: row of the changes table.
        pid: thread.
        entry_ns, exit_ns, pfn, n_pages, n_done, mask_set, mask_clr, force_split, has_pgd: as `analyze.rules` takes them.
        seen_level: the larger of the entries of the first and the last page that the probe saw afterwards.
        seen_attrs: those of the first page's entry then (hotplug picks its own).
        mask_id: number of the pair of masks, for steps that change one whole page and nothing but attributes; else -1.
        page_first, page_owned: `page_owned[page_first[s] : page_first[s + 1]]` tells for each page asked for by step s
            which page of `Requests.pfn` it is, -1 for nobody's; a step without any owned page has no cell there.
    """

    op: npt.NDArray[np.uint8]
    row: Int64
    pid: Int64
    entry_ns: Int64
    exit_ns: Int64
    pfn: Int64
    n_pages: Int64
    n_done: Int64
    mask_set: UInt64
    mask_clr: UInt64
    force_split: Bools
    has_pgd: Bools
    seen_level: npt.NDArray[np.uint8]
    seen_attrs: UInt64
    mask_id: npt.NDArray[np.int16]
    page_first: Int64
    page_owned: Int64

    def __len__(self) -> int:
        return len(self.op)


def read_steps(changes: Changes, window: Window, observed: ObservedSplits) -> Steps:
    """The steps of a trace that count between its snapshots, nobody's as yet.

    Left out are calls that change nothing (no mask: their nested calls had only NX to change), pages never completed,
    and changes that the start snapshot holds already or the end snapshot no longer.
    """
    rows = changes.order[changes.direct[changes.order]]
    is_cpa = changes.kind[rows] == CHANGE
    no_op = is_cpa & (changes.mask_set[rows] | changes.mask_clr[rows] == 0) & (changes.force_split[rows] == 0)
    rows = rows[~no_op & (changes.n_pages[rows] > 0) & ~(is_cpa & (changes.n_done[rows] == 0))]

    array_pages = changes.pfns_start[rows + 1] - changes.pfns_start[rows]
    counts = np.where(array_pages > 0, changes.n_done[rows], 1)
    start = np.cumsum(counts) - counts
    row = np.repeat(rows, counts)
    in_array = np.repeat(array_pages > 0, counts)
    nth = np.arange(len(row)) - np.repeat(start, counts)
    array_page = changes.pfns[np.where(in_array, changes.pfns_start[row] + nth, 0)] if in_array.any() else row
    pfn = np.where(in_array, array_page, changes.first_pfn[row])
    n_pages = np.where(in_array, 1, changes.n_pages[row])

    first_frame, last_frame = pfn // HUGE_FRAME_PAGES, (pfn + n_pages - 1) // HUGE_FRAME_PAGES
    entry_ns, exit_ns = changes.ts_ns[row], changes.exit_ns[row]
    counts_there = (exit_ns > window.lo[first_frame]) & (entry_ns < window.hi[first_frame])
    keep = counts_there | ((first_frame != last_frame) & (changes.kind[row] == CHANGE))
    row, pfn, n_pages, in_array = row[keep], pfn[keep], n_pages[keep], in_array[keep]
    op = changes.kind[row].astype(np.uint8)
    op[(op == COLLAPSE) & (changes.ret[row] == 2)] = COLLAPSE_GIGA
    added = (op != HOTPLUG_ADD) | (changes.ret[row] == 0)
    row, pfn, n_pages, in_array, op = row[added], pfn[added], n_pages[added], in_array[added], op[added]
    level = np.maximum(changes.level_first[row], changes.level_last[row])

    frame = observed.left_pfn // HUGE_FRAME_PAGES
    left_row = observed.left_row
    inside = (changes.exit_ns[left_row] > window.lo[frame]) & (changes.ts_ns[left_row] < window.hi[frame])
    if inside.any():
        place = np.empty(len(changes), np.int64)
        place[changes.order] = np.arange(len(changes))
        row = np.concatenate((row, left_row[inside]))
        behind = np.argsort(place[row], kind="stable")  # each behind what its call has completed
        n = int(inside.sum())
        row = row[behind]
        pfn = np.concatenate((pfn, observed.left_pfn[inside]))[behind]
        n_pages = np.concatenate((n_pages, np.ones(n, np.int64)))[behind]
        in_array = np.concatenate((in_array, np.ones(n, np.bool_)))[behind]
        op = np.concatenate((op, np.full(n, SPLIT_LEFT, np.uint8)))[behind]
        level = np.concatenate((level, observed.left_level[inside]))[behind]
    n_done = np.where(in_array, 1, changes.n_done[row])
    one_page = (op == CHANGE) & (n_pages == 1) & (n_done == 1)
    one_page &= (changes.force_split[row] == 0) & (changes.has_pgd[row] == 0)
    return Steps(
        op=op,
        row=row,
        pid=changes.pid[row].astype(np.int64),
        entry_ns=changes.ts_ns[row],
        exit_ns=changes.exit_ns[row],
        pfn=pfn,
        n_pages=n_pages,
        n_done=n_done,
        mask_set=changes.mask_set[row],
        mask_clr=changes.mask_clr[row],
        force_split=changes.force_split[row] != 0,
        has_pgd=changes.has_pgd[row] != 0,
        seen_level=level,
        seen_attrs=changes.attrs_first[row],
        mask_id=_mask_ids(changes.mask_set[row], changes.mask_clr[row], one_page),
        page_first=np.zeros(len(row) + 1, np.int64),
        page_owned=np.zeros(0, np.int64),
    )


def _mask_ids(mask_set: UInt64, mask_clr: UInt64, which: Bools) -> npt.NDArray[np.int16]:
    """A number below `MAX_MASKS` for each pair of masks, -1 outside `which` and where there are more pairs."""
    (_, sets), (clears, ids) = (np.unique(masks, return_inverse=True) for masks in (mask_set, mask_clr))
    _, ids = np.unique(sets.reshape(-1) * max(1, len(clears)) + ids.reshape(-1), return_inverse=True)
    ids = ids.reshape(-1)
    return np.where(which & (ids < MAX_MASKS), ids, -1).astype(np.int16)


def own(steps: Steps, requests: Requests) -> Steps:
    """Fill in `page_first` and `page_owned`. Raises TraceError for more pages than memory could hold here."""
    frames = np.unique(requests.pfn[requests.pfn >= 0])
    touched = np.searchsorted(frames, steps.pfn) < np.searchsorted(frames, steps.pfn + steps.n_pages)
    counts = np.where(touched & (steps.op == CHANGE), steps.n_pages, 0)
    first = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
    if first[-1] > MAX_OWNED_PAGES + OWNED_PAGES_EACH * len(steps):
        raise TraceError(
            f"changes: {first[-1]} pages changed in calls that touch requests, more than any recording of ours; "
            "the trace is forged or damaged: copy it anew"
        )
    step = np.repeat(np.arange(len(steps)), counts)
    pfn = steps.pfn[step] + np.arange(first[-1]) - first[step]
    owner = requests.owner
    owned = join_layers(
        Touches(pfn, steps.entry_ns[step], steps.pid[step], steps.mask_set[step], steps.mask_clr[step]),
        requests.pfn,
        requests.alloc_ns[owner],
        requests.free_ns[owner],
        requests.alloc_pid[owner],
        requests.life[owner] == Life.CACHE,
    )
    return replace(steps, page_first=first, page_owned=owned)
