"""A machine's trace is rebuilt exactly, and nothing can be taken out of it without being noticed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from analyze.reconstruct import Rebuild, rebuild
from analyze.verify import verify
from collect import segments
from collect.schema import ATTRS_HARDWARE, Moment, Pte, Space
from collect.trace import Trace, open_trace
from tests.machine import write_trace
from tests.machine.rewrite import rewrite, with_cell, without_rows

SEEDS = range(3)
STYLES = ("5.10", "6.1", "6.12")


@pytest.fixture(scope="module", params=[(seed, style) for seed in SEEDS for style in STYLES], ids=str)
def trace(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trace:
    seed, style = request.param
    directory = tmp_path_factory.mktemp("machine") / "trace"
    return open_trace(write_trace(directory, seed, scale=0.15, kernel_style=style))


@pytest.fixture(scope="module")
def rebuilt(trace: Trace) -> Rebuild:
    return rebuild(trace)


def test_the_trace_of_a_machine_is_exact(trace: Trace, rebuilt: Rebuild) -> None:
    found = verify(trace, rebuilt).to_json()
    assert found["exact"], found
    assert found["pages_compared"] > 1_000_000
    assert found["splits"]["found_2m"] > 20
    assert found["splits"]["found_1g"] >= 1


def test_a_call_that_asks_for_nothing_is_met_where_the_kernel_makes_one(trace: Trace, rebuilt: Rebuild) -> None:
    """From 6.2 on: NX, taken out of an alias call, leaves it nothing to do, on several pages here and there."""
    changes = rebuilt.changes
    idle = changes.direct & ((changes.columns["mask_set"] | changes.columns["mask_clr"]) == 0)
    assert (idle & (changes.n_pages > 1)).any() == ("6.12" in trace.manifest["kernel"]["release"])
    assert not changes.n_done[idle].any()


def test_every_effective_change_taken_out_is_noticed(trace: Trace, rebuilt: Rebuild, tmp_path: Path) -> None:
    rows = effective_rows(rebuilt)
    assert len(rows) > 20
    for row in np.random.default_rng(1).choice(rows, 12, replace=False).tolist():
        cut = without_rows(trace.path, tmp_path / str(row), "changes", [row])
        assert not verify(open_trace(cut)).exact, f"row {row} was not missed"


def effective_rows(rebuilt: Rebuild) -> np.ndarray:
    """Direct-map changes that gave an entry another value, beyond accessed and dirty, and overlapped no other."""
    changes, prediction = rebuilt.changes, rebuilt.prediction
    seen = ~np.uint64(ATTRS_HARDWARE)
    differs = (prediction.attrs_first & seen) != (prediction.attrs_before & seen)
    single = changes.direct & (changes.n_pages == 1) & (prediction.level_first != 255)
    return np.flatnonzero(differs & single)


def test_one_bit_flipped_in_the_end_snapshot_is_noticed(trace: Trace, tmp_path: Path) -> None:
    snapshots = trace.table("snapshots").to_pandas()
    ours = snapshots[(snapshots["moment"] == Moment.END) & (snapshots["space"] == Space.DIRECT_MAP)]
    for i, (row, bit) in enumerate(zip(ours.index[::400], (Pte.RW, Pte.G, Pte.NX, Pte.P) * 1000, strict=False)):
        flipped = int(ours["attrs"][row]) ^ int(bit)
        found = verify(open_trace(with_cell(trace.path, tmp_path / str(i), "snapshots", "attrs", int(row), flipped)))
        assert not found.exact
        assert found.difference is not None
        assert found.difference.attributes > 0
        assert found.difference.level == 0


def test_accessed_and_dirty_are_no_difference_but_counted(trace: Trace, tmp_path: Path) -> None:
    snapshots = trace.table("snapshots").to_pandas()
    ours = snapshots[(snapshots["moment"] == Moment.END) & (snapshots["space"] == Space.DIRECT_MAP)]
    row = int(ours.index[len(ours) // 2])
    flipped = int(ours["attrs"][row]) ^ int(Pte.D)
    before = verify(trace).difference
    after = verify(open_trace(with_cell(trace.path, tmp_path / "d", "snapshots", "attrs", row, flipped)))
    assert after.exact
    assert before is not None
    assert after.difference is not None
    assert after.difference.hardware_only != before.hardware_only


def test_rows_in_another_order_give_the_same_state(trace: Trace, rebuilt: Rebuild, tmp_path: Path) -> None:
    table = trace.table("changes")
    shuffled = table.take(np.random.default_rng(2).permutation(len(table)))
    # The writer sorts a segment; the reader may not rely on it, so the file is written with its order kept.
    kept = dict(segments.SORTED_BY_TIME)
    segments.SORTED_BY_TIME.pop("changes")
    try:
        again = rebuild(open_trace(rewrite(trace.path, tmp_path / "shuffled", "changes", shuffled)))
    finally:
        segments.SORTED_BY_TIME.update(kept)
    for mine, theirs in zip(again.final.runs(), rebuilt.final.runs(), strict=True):
        np.testing.assert_array_equal(mine, theirs)
