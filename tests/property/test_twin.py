"""Real recordings, applied page by page by the plain Python model: the same end as the compiled rules, and as the kernel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from analyze.reconstruct import rebuild
from collect.schema import ATTRS_HARDWARE, ChangeKind, Level, Moment
from collect.trace import open_trace
from tests.machine import PageModel
from tests.machine.pages import SIZE
from tests.rules_table import RECORDINGS

# The model knows no hotplug, which is read again, not predicted.
WITHOUT_HOTPLUG = [path for path in RECORDINGS if not path.name.startswith("hotplug")]


@pytest.mark.parametrize("sample", WITHOUT_HOTPLUG, ids=lambda path: path.name)
def test_the_plain_model_ends_where_the_kernel_ended(sample: Path) -> None:
    rebuilt = rebuild(open_trace(sample))
    changes, window = rebuilt.changes, rebuilt.window
    rows = rebuilt.snapshots.rows(Moment.START)
    assert rows is not None
    assert rebuilt.end is not None
    protected = rebuilt.trace.manifest["memory"]["rodata"] or [0, 0]
    model = PageModel(rebuilt.final.first_symbolic, tuple(protected))
    for pfn, n, level, attrs in zip(
        *(rows[name].tolist() for name in ("pfn", "n_leaves", "level", "attrs")), strict=True
    ):
        model.fill(pfn, n, level, attrs)
    splits = []
    for row in changes.order[changes.direct[changes.order]].tolist():
        if changes.columns["kind"][row] == ChangeKind.COLLAPSE:
            for level in (Level.K4, Level.M2)[: int(changes.columns["ret"][row])]:
                model.collapse(int(changes.first_pfn[row]), level)
            continue
        pages = changes.pfns[changes.pfns_start[row] : changes.pfns_start[row + 1]].tolist()
        n = int(changes.n_pages[row])
        masks = int(changes.columns["mask_set"][row]), int(changes.columns["mask_clr"][row])
        how = {
            "force_split": bool(changes.columns["force_split"][row]),
            "has_pgd": bool(changes.columns["has_pgd"][row]),
        }
        for pfn in pages[: changes.n_done[row]] or [int(changes.first_pfn[row])]:
            frame = pfn // 512
            if changes.exit_ns[row] <= window.lo[frame] or changes.columns["ts_ns"][row] >= window.hi[frame]:
                continue
            done = 1 if pages else int(changes.n_done[row])
            splits += [(row, *split) for split in model.change(pfn, 1 if pages else n, *masks, n_done=done, **how)]
        for at in np.flatnonzero(rebuilt.observed.left_row == row).tolist():
            page, level = int(rebuilt.observed.left_pfn[at]), int(rebuilt.observed.left_level[at])
            frame = page // 512
            inside = changes.exit_ns[row] > window.lo[frame] and changes.columns["ts_ns"][row] < window.hi[frame]
            if inside and model.split(page, level):
                splits.append((row, level, page - page % SIZE[level]))
    found = rebuilt.splits
    assert splits == list(zip(found["row"].tolist(), found["level"].tolist(), found["pfn"].tolist(), strict=True))
    every = np.arange(rebuilt.final.first_symbolic)
    seen = ~np.uint64(ATTRS_HARDWARE)
    attrs = np.array(model.attrs, np.uint64)
    for state in (rebuilt.final, rebuilt.end.map):
        np.testing.assert_array_equal(np.frombuffer(model.level, np.uint8), state.level_of(every))
        np.testing.assert_array_equal(attrs & seen, state.attrs_of(every) & seen)
