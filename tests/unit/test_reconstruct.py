"""Rebuilding a trace: what is in a rebuild, and which traces are refused with one clear line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analyze.reconstruct import NOT_PREDICTED, rebuild
from collect.errors import TraceError
from collect.schema import ChangeKind, Level, Moment, Space
from collect.trace import open_trace
from tests.machine import write_trace
from tests.machine.rewrite import with_cell, with_manifest, without_rows


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_trace(tmp_path_factory.mktemp("machine") / "trace", 11, scale=0.1)


def test_levels_over_time_follow_from_the_splits(source: Path) -> None:
    rebuilt = rebuild(open_trace(source))
    levels, splits = rebuilt.levels, rebuilt.splits
    n_2m, n_1g = ((splits["level"] == level).sum() for level in (Level.M2, Level.G1))
    first, last = levels.iloc[0], levels.iloc[-1]
    assert first["g1"] - last["g1"] == n_1g
    assert last["m2"] - first["m2"] == 512 * n_1g - n_2m
    assert last["k4"] - first["k4"] == 512 * n_2m
    assert dict(zip(("k4", "m2", "g1"), rebuilt.final.counts().values(), strict=True)) == last.drop("ts_ns").to_dict()
    assert levels["ts_ns"].is_monotonic_increasing
    assert len(levels) == 1 + splits["row"].nunique()


def test_every_split_names_its_change(source: Path) -> None:
    rebuilt = rebuild(open_trace(source))
    rows = rebuilt.splits["row"].to_numpy()
    assert rebuilt.changes.direct[rows].all()
    assert (rebuilt.splits["ts_ns"] == rebuilt.changes.exit_ns[rows]).all()
    size = np.where(rebuilt.splits["level"] == Level.G1, 512 * 512, 512)
    assert (rebuilt.splits["pfn"] == rebuilt.splits["page"] // size * size).all()


def test_changes_that_do_not_touch_the_direct_map_are_not_predicted(source: Path) -> None:
    rebuilt = rebuild(open_trace(source))
    other = rebuilt.changes.columns["space"] == Space.OTHER
    assert other.any()
    assert (rebuilt.prediction.level_first[other] == NOT_PREDICTED).all()


def direct_row(source: Path, *, array: bool = False) -> int:
    changes = rebuild(open_trace(source)).changes
    arrays = changes.pfns_start[1:] > changes.pfns_start[:-1]
    return int(np.flatnonzero(changes.direct & (arrays == array))[0])


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [
        ("address", (1 << 64) - 4096, "memory ends"),
        ("address", 4096, "memory ends"),
        ("n_pages", 1 << 50, "memory ends"),
        ("n_pages", (1 << 64) - 1, "memory ends"),
        ("kind", 99, "kind 99"),
        ("space", 9, "space 9"),
        ("level_first", 4, "level_first 4"),
        ("ts_ns", (1 << 64) - 1, "centuries"),
        ("duration_ns", 1 << 63, "centuries"),
    ],
)
def test_forged_numbers_are_one_clear_line(source: Path, tmp_path: Path, column: str, value: Any, says: str) -> None:
    forged = with_cell(source, tmp_path / "t", "changes", column, direct_row(source), value)
    with pytest.raises(TraceError, match=says) as caught:
        rebuild(open_trace(forged))
    assert "\n" not in str(caught.value)


def test_a_pages_array_outside_memory_is_refused(source: Path, tmp_path: Path) -> None:
    row = direct_row(source, array=True)
    forged = with_cell(source, tmp_path / "t", "changes", "pfns", row, [1 << 41])
    with pytest.raises(TraceError, match="pages array holds pfn"):
        rebuild(open_trace(forged))


def test_a_call_id_that_comes_twice_is_refused(source: Path, tmp_path: Path) -> None:
    first = int(open_trace(source).table("changes")["call_id"][0].as_py())
    with pytest.raises(TraceError, match="comes twice"):
        rebuild(open_trace(with_cell(source, tmp_path / "t", "changes", "call_id", 5, first)))


def test_a_trace_without_a_start_snapshot_is_refused(source: Path, tmp_path: Path) -> None:
    moments = open_trace(source).table("snapshots")["moment"].to_pylist()
    rows = [i for i, moment in enumerate(moments) if moment == Moment.START]
    with pytest.raises(TraceError, match="no START snapshot"):
        rebuild(open_trace(without_rows(source, tmp_path / "t", "snapshots", rows)))


def test_memory_larger_than_any_machines_is_refused(source: Path, tmp_path: Path) -> None:
    forged = with_manifest(source, tmp_path / "t", memory={"max_pfn": 1 << 39})
    with pytest.raises(TraceError, match=r"max_pfn"):
        rebuild(open_trace(forged))


def test_a_collapse_of_a_vmalloc_area_leaves_the_direct_map_alone(source: Path, tmp_path: Path) -> None:
    columns = open_trace(source).table("changes")
    row = columns["space"].to_pylist().index(Space.OTHER)
    before = rebuild(open_trace(source)).final.runs()
    after = rebuild(open_trace(with_cell(source, tmp_path / "t", "changes", "kind", row, ChangeKind.COLLAPSE))).final
    for mine, theirs in zip(after.runs(), before, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_a_trace_of_page_events_alone_is_refused_with_what_it_is(tmp_path: Path) -> None:
    whole = write_trace(tmp_path / "trace", 1, scale=0.02)
    trace = with_manifest(whole, tmp_path / "pages", sampling={"only_pages": True}, tables={"snapshots": []})
    with pytest.raises(TraceError, match="recorded with --only-pages, so it holds page events and no state"):
        rebuild(open_trace(trace))
