"""Memory that comes and goes during a recording: what was read again holds, and only what was read again is believed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analyze.course import load_course
from analyze.playback import Playback
from analyze.reconstruct import rebuild
from analyze.verify import verify
from collect.errors import TraceError
from collect.schema import ChangeKind, Level, Moment, Space
from collect.trace import open_trace
from tests.machine import write_trace
from tests.machine.kernel import DIRECT, GIGA, MAX_PFN, PAGE_OFFSET
from tests.machine.rewrite import rewrite, with_cell, with_manifest, without_rows

FIRST, N = MAX_PFN, GIGA // 4
"""Behind the machine's memory. The kernel maps it in a way that no rule would guess: 4K entries first, then a hole, then 2M."""
MAPPED = [(FIRST, 1, 512, DIRECT), (FIRST + 1024, 2, N // 512 - 2, DIRECT)]
READ = [*MAPPED, (FIRST + 512, 0, 512, 0)]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_trace(tmp_path_factory.mktemp("machine") / "trace", 41, scale=0.1)


def hotplug_row(like: dict[str, Any], kind: ChangeKind, ts_ns: int, call_id: int) -> dict[str, Any]:
    present = kind == ChangeKind.HOTPLUG_REMOVE
    return like | {
        "ts_ns": ts_ns, "duration_ns": 1000, "kind": int(kind), "call_id": call_id, "parent_id": 0, "depth": 0,
        "space": int(Space.DIRECT_MAP), "address": PAGE_OFFSET + FIRST * 4096, "pfn": FIRST, "n_pages": N, "n_done": N,
        "mask_set": 0, "mask_clr": 0, "flags": 0, "force_split": 0, "has_exit": 1, "ret": 0, "pfns": [],
        "level_before": int(present), "attrs_before": DIRECT if present else 0,
        "level_first": int(not present), "attrs_first": 0 if present else DIRECT,
        "level_last": 0 if present else 2, "attrs_last": 0 if present else DIRECT,
    }  # fmt: skip


def snapshot_rows(
    moment: Moment, number: int, ts_ns: int, runs: list[tuple[int, int, int, int]]
) -> list[dict[str, int]]:
    return [
        {
            "snapshot": number, "moment": int(moment), "ts_ns": ts_ns, "ts_end_ns": ts_ns + 10, "space": 0,
            "pfn": pfn, "level": level, "n_leaves": n, "attrs": attrs,
        }
        for pfn, level, n, attrs in runs
    ]  # fmt: skip


def plugged(source: Path, target: Path, *, read_again: bool = True, removed: bool = False) -> Path:
    """The machine's trace with memory added in the middle, and taken away again later."""
    trace = open_trace(source)
    changes, snapshots = trace.table("changes"), trace.table("snapshots")
    rows = changes.to_pylist()
    rebuilt = rebuild(trace)
    assert rebuilt.end is not None
    began, ended = int(rebuilt.start.read_to.max()), int(rebuilt.end.read_from.min())
    added, gone = began + (ended - began) // 3, began + (ended - began) * 2 // 3
    kinds = [(ChangeKind.HOTPLUG_ADD, added)] + ([(ChangeKind.HOTPLUG_REMOVE, gone)] if removed else [])
    rows += [hotplug_row(rows[0], kind, ts, (1 << 40) + i) for i, (kind, ts) in enumerate(kinds)]
    with_manifest(source, target, memory={"max_pfn": FIRST + N})
    rewrite(target, target, "changes", changes.from_pylist(rows, schema=changes.schema))
    more = snapshot_rows(Moment.HOTPLUG, 7, added + 2000, READ) if read_again else []
    if not removed:
        more += snapshot_rows(Moment.END, 2, ended, MAPPED)
    return rewrite(
        target, target, "snapshots", snapshots.from_pylist([*snapshots.to_pylist(), *more], schema=snapshots.schema)
    )


def test_memory_that_came_is_exact_in_the_sizes_that_were_read(source: Path, tmp_path: Path) -> None:
    before = verify(open_trace(source)).to_json()
    trace = open_trace(plugged(source, tmp_path / "t"))
    found = verify(trace).to_json()
    assert found["exact"], found
    assert found["pages_compared"] == before["pages_compared"] + N - 512
    levels = rebuild(trace).final.level_of([FIRST, FIRST + 511, FIRST + 512, FIRST + 1024, FIRST + N - 1])
    assert levels.tolist() == [Level.K4, Level.K4, Level.NONE, Level.M2, Level.M2]


def test_without_reading_again_it_would_not_be(source: Path, tmp_path: Path) -> None:
    found = verify(open_trace(plugged(source, tmp_path / "t", read_again=False)))
    assert not found.exact
    assert found.difference is not None
    assert found.difference.level > 0


def test_memory_that_went_is_a_hole(source: Path, tmp_path: Path) -> None:
    trace = open_trace(plugged(source, tmp_path / "t", removed=True))
    assert verify(trace).exact
    rebuilt = rebuild(trace)
    assert not rebuilt.final.level_of(np.arange(FIRST, FIRST + N)).any()
    assert rebuilt.final.counts() == rebuild(open_trace(source)).final.counts()
    assert (rebuilt.levels["m2"].max() - rebuilt.levels["m2"].iloc[0]) > 0, "and was there in between"


@pytest.mark.parametrize(("later", "undecided"), [(1500, N // 512), (3000, 0)])
def test_a_snapshot_between_the_coming_and_its_reading_leaves_that_memory_out(
    source: Path, tmp_path: Path, later: int, undecided: int
) -> None:
    """Until it was read again the sizes of its entries are a guess."""
    made = plugged(source, tmp_path / "a")
    trace = open_trace(made)
    table = trace.table("changes")
    ts = table["ts_ns"][table["kind"].to_pylist().index(ChangeKind.HOTPLUG_ADD)].as_py() + later
    playback = Playback(load_course(open_trace(source)))
    playback.to(ts)
    runs = [*zip(*(column.tolist() for column in playback.state.runs()), strict=True), *MAPPED]
    snapshots = trace.table("snapshots")
    # Their numbers are in order of time; the reading's does not matter here.
    rows = [*snapshots.to_pylist(), *snapshot_rows(Moment.PERIODIC, 8, ts, runs)]
    with_it = rewrite(made, tmp_path / "b", "snapshots", snapshots.from_pylist(rows, schema=snapshots.schema))
    found = verify(open_trace(with_it))
    [check] = found.between
    assert (check.undecided, check.wrong) == (undecided, 0)
    before = verify(open_trace(source))
    assert before.difference is not None
    assert check.difference.pages == before.difference.pages + (0 if undecided else N - 512)
    assert found.exact


def test_a_change_after_the_reading_counts_and_one_before_does_not(source: Path, tmp_path: Path) -> None:
    """The reading of a page holds what was done to it until then."""
    trace = open_trace(plugged(source, tmp_path / "a"))
    table = trace.table("changes")
    add = table.slice(table["kind"].to_pylist().index(ChangeKind.HOTPLUG_ADD), 1).to_pylist()[0]
    like = add | {"kind": 0, "call_id": 1 << 41, "n_pages": 1, "n_done": 1, "pfn": FIRST, "mask_clr": 2}
    for name, ts, rebuilt_attrs in (
        ("before", add["ts_ns"] + 1100, DIRECT),
        ("after", add["ts_ns"] + 3000, DIRECT & ~2),
    ):
        row = like | {"ts_ns": ts, "duration_ns": 100}
        changed = table.from_pylist([*table.to_pylist(), row], schema=table.schema)
        final = rebuild(open_trace(rewrite(trace.path, tmp_path / name, "changes", changed))).final
        assert final.attrs_of([FIRST])[0] == rebuilt_attrs, name


@pytest.mark.parametrize(("column", "value"), [("pfn", 1 << 45), ("n_leaves", 1 << 60), ("level", 4)])
def test_a_forged_reading_is_one_clear_line(source: Path, tmp_path: Path, column: str, value: int) -> None:
    made = plugged(source, tmp_path / "a")
    row = open_trace(made).table("snapshots")["moment"].to_pylist().index(Moment.HOTPLUG)
    with pytest.raises(TraceError, match="HOTPLUG: row 0 does not fit memory") as caught:
        rebuild(open_trace(with_cell(made, tmp_path / "b", "snapshots", column, row, value)))
    assert "\n" not in str(caught.value)


def test_a_reading_that_holds_a_page_twice_is_refused(source: Path, tmp_path: Path) -> None:
    made = plugged(source, tmp_path / "a")
    table = open_trace(made).table("snapshots")
    again = [*table.to_pylist(), *snapshot_rows(Moment.HOTPLUG, 7, 0, [(FIRST, 1, 1, DIRECT)])]
    again[-1]["ts_ns"] = next(row["ts_ns"] for row in again if row["moment"] == Moment.HOTPLUG)
    twice = table.from_pylist(again, schema=table.schema)
    with pytest.raises(TraceError, match="two entries for one page"):
        rebuild(open_trace(rewrite(made, tmp_path / "b", "snapshots", twice)))


def test_a_recording_without_the_row_of_the_hotplug_still_believes_the_reading(source: Path, tmp_path: Path) -> None:
    made = plugged(source, tmp_path / "a")
    row = open_trace(made).table("changes")["kind"].to_pylist().index(ChangeKind.HOTPLUG_ADD)
    assert verify(open_trace(without_rows(made, tmp_path / "b", "changes", [row]))).exact
