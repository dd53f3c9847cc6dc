"""Snapshots that a real kernel was read in, at random moments under churn: each is as rebuilt, and shows what is amiss."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from analyze.verify import Verification, verify
from collect.schema import ATTRS_HARDWARE, Level, Moment, Pte, Space
from collect.trace import open_trace
from tests.machine.rewrite import with_cell, without_rows

RECORDING = Path(__file__).parents[1] / "recordings" / "moments" / "7.2"


@pytest.fixture(scope="module")
def found() -> Verification:
    return verify(open_trace(RECORDING))


def test_it_is_small_and_says_where_it_came_from() -> None:
    assert sum(file.stat().st_size for file in RECORDING.iterdir()) <= 500_000
    assert "7.2" in (RECORDING / "PROVENANCE.md").read_text()


def test_every_snapshot_that_was_asked_for_is_as_rebuilt_and_there_were_changes_before_it(found: Verification) -> None:
    asked = json.loads((RECORDING / "lab.json").read_text())["load"]["statistics"]["counts"]["asked"]
    assert found.exact
    assert len(found.between) == asked >= 14
    assert all(check.moment == Moment.REQUEST for check in found.between)
    for check in found.between:
        assert (check.difference.level, check.difference.attributes, check.undecided) == (0, 0, 0)
        assert check.difference.pages > 1_500_000
        assert check.changes >= 1 and check.entries >= 1


def test_frames_changed_while_they_were_read_and_were_read_again(found: Verification) -> None:
    again = [check.frames_again for check in found.between]
    assert None not in again
    assert sum(n or 0 for n in again) > 0
    assert [bool(check.rounds) for check in found.between] == [bool(n) for n in again]


@pytest.mark.parametrize("at", [0, 7, 13])
def test_one_page_that_is_not_as_rebuilt_is_found(at: int, found: Verification, tmp_path: Path) -> None:
    number = found.between[at].number
    table = open_trace(RECORDING).table("snapshots")
    columns = {name: table[name].to_numpy() for name in table.column_names}
    single = (columns["snapshot"] == number) & (columns["space"] == Space.DIRECT_MAP)
    single &= (columns["level"] == Level.K4) & (columns["n_leaves"] == 1)
    row = int(np.flatnonzero(single)[-1])
    attrs = int(columns["attrs"][row]) ^ int(Pte.RW)
    moved = verify(open_trace(with_cell(RECORDING, tmp_path / "t", "snapshots", "attrs", row, attrs)))
    assert not moved.exact
    assert [check.number for check in moved.between if not check.exact] == [number]
    [run] = moved.to_json()["between"]["list"][at]["unexplained"]
    assert (run["pfn"], run["n_pages"]) == (columns["pfn"][row], 1)
    assert (run["rebuilt_attrs"] ^ run["snapshot_attrs"]) & ~ATTRS_HARDWARE == int(Pte.RW)


@pytest.mark.parametrize("at", [1, 7, 13])
def test_a_split_that_is_left_out_is_missed_in_the_next_snapshot_and_not_before(
    at: int, found: Verification, tmp_path: Path
) -> None:
    trace = open_trace(RECORDING)
    changes = trace.table("changes").to_pandas()
    before, here = found.between[at - 1], found.between[at]
    ended = changes["ts_ns"] + changes["duration_ns"]
    mine = (changes["ts_ns"] > before.ts_end_ns) & (ended < here.ts_ns) & (changes["space"] == Space.DIRECT_MAP)
    mine &= (changes["level_before"] == Level.M2) & (changes["level_first"] == Level.K4)
    if not mine.any():  # nothing was split in between: take one that made a page read-only
        mine = (changes["ts_ns"] > before.ts_end_ns) & (ended < here.ts_ns) & (changes["space"] == Space.DIRECT_MAP)
        mine &= changes["attrs_before"] != changes["attrs_first"]
    cut = verify(open_trace(without_rows(RECORDING, tmp_path / "t", "changes", [int(changes.index[mine][-1])])))
    differ = [check.number for check in cut.between if not check.exact]
    assert differ[0] == here.number
