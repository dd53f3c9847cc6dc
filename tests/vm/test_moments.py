"""Twenty snapshots at random moments while three processes churn, on real kernels: each is as rebuilt for its moment.

Boots guests as root: python3 -m tests.vm setup (once), then `make test-moments`, or for some kernels only:
DIRECTMAP_VM=1 DIRECTMAP_VM_KERNELS="6.1 7.2" .venv/bin/python -m pytest -m vm tests/vm/test_moments.py
`make` then writes what was found into docs/moments.md, a row a kernel.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from collect.schema import Moment
from collect.trace import open_trace
from tests.vm.loads.moments import SNAPSHOTS
from tests.vm.moments_table import keep
from tests.vm.real_guests import MARKS, record, verify

KERNELS = os.environ.get("DIRECTMAP_VM_KERNELS", "6.1").split()

pytestmark = MARKS


@pytest.fixture(scope="module", params=KERNELS)
def trace(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One recording on each kernel. 6 GB hold 1G entries."""
    out = tmp_path_factory.mktemp("lab") / f"{request.param}-moments"
    return record("moments", out, "--memory", "6G", kernel=request.param)


@pytest.fixture(scope="module")
def verification(trace: Path) -> dict[str, Any]:
    """What `analyze verify --json` says of it."""
    found = verify(trace)
    keep(found, json.loads((trace / "lab.json").read_text()))
    return found


def test_every_snapshot_is_as_rebuilt_for_its_moment_and_so_is_the_end(verification: dict[str, Any]) -> None:
    between = verification["between"]
    assert between["snapshots"] >= SNAPSHOTS == 20
    assert [one for one in between["list"] if not one["exact"]] == []
    assert between["pages_compared"] > between["snapshots"] * 1_000_000
    assert between["frames_undecided"] == 0
    assert verification["exact"] is True, verification


def test_the_map_changed_between_each_two_neighbours(verification: dict[str, Any]) -> None:
    for one in verification["between"]["list"]:
        assert one["changes_since_the_one_before"] >= 1, one
        assert one["entries_changed_since_the_one_before"] >= 1, one


def test_what_changed_while_it_was_read_was_read_again_and_counted(trace: Path, verification: dict[str, Any]) -> None:
    between = verification["between"]
    assert between["frames_read_again"] > 0, "nothing changed during any walk: the load was too quiet"
    assert all(one["frames_read_again"] is not None for one in between["list"])
    assert all(bool(one["rounds"]) is bool(one["frames_read_again"]) for one in between["list"])
    rows = open_trace(trace).table("snapshots").to_pandas()
    for one in between["list"]:
        mine = rows[(rows["snapshot"] == one["snapshot"]) & (rows["space"] == 0)]
        assert set(mine["moment"]) == {Moment.REQUEST}
        frames = mine[mine["ts_ns"] > mine["ts_ns"].min()]["pfn"] // 512
        assert frames.nunique() <= one["frames_read_again"], "rows of a later reading are of frames read again"


def test_nothing_was_lost_because_of_a_snapshot(verification: dict[str, Any]) -> None:
    assert verification["losses"] == {}
