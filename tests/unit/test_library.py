"""The library: its documentation is true, and what it gives is what the commands and the tables hold."""

from __future__ import annotations

import argparse
import doctest
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

import analyze
from analyze.library import OpenedTrace
from analyze.reconstruct import rebuild
from collect import trace as trace_files
from collect.errors import TraceError
from collect.schema import ATTRS_HARDWARE, TABLES, Moment, Pte, Space
from tests.machine import write_trace
from tests.machine.rewrite import with_cell, with_manifest

ROOT = Path(__file__).parents[2]
CHURN = ROOT / "sample_traces" / "6.1-churn"


@pytest.fixture(scope="module")
def churn() -> OpenedTrace:
    return analyze.open_trace(CHURN)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_trace(tmp_path_factory.mktemp("machine") / "trace", 71, scale=0.05)


@pytest.fixture
def at_root(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(ROOT)
    with pd.option_context("display.width", 200, "display.max_columns", 30):
        yield


@pytest.mark.usefixtures("at_root")
def test_every_example_of_the_documentation_is_true() -> None:
    flags = doctest.NORMALIZE_WHITESPACE
    found = doctest.testfile(str(ROOT / "docs" / "library.md"), module_relative=False, optionflags=flags)
    assert found.attempted > 20
    assert found.failed == 0


def test_importing_the_package_loads_nothing_heavy() -> None:
    heavy = "import sys, analyze; sys.exit(bool({'numba', 'numpy', 'pandas', 'pyarrow'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", heavy], cwd=ROOT, check=True)


def test_the_map_at_the_end_has_the_levels_and_attributes_that_verify_proved(churn: OpenedTrace) -> None:
    final = rebuild(churn.files).final
    for hardware in (False, True):
        runs = churn.state_at("end", hardware=hardware)
        levels = runs["level"].cat.codes.to_numpy()
        size = np.array([1, 1, 512, 512 * 512])[levels]
        assert (runs["n_pages"] == runs["n_leaves"] * size).all()
        page = np.concatenate([np.arange(p, p + n) for p, n in zip(runs["pfn"], runs["n_pages"], strict=True)])
        assert len(page) == sum(n * s for n, s in zip(final.counts().values(), (1, 512, 512 * 512), strict=True))
        assert (np.repeat(levels, runs["n_pages"]) == final.level_of(page)).all()
        kept = ~np.uint64(0) if hardware else ~np.uint64(ATTRS_HARDWARE)
        assert (np.repeat(runs["attrs"].to_numpy(), runs["n_pages"]) == final.attrs_of(page) & kept).all()


def test_accessed_and_dirty_break_no_run_unless_they_are_wanted(machine: Path, tmp_path: Path) -> None:
    rows = analyze.open_trace(machine).files.table("snapshots").to_pandas()
    start = rows[(rows["moment"] == Moment.START) & (rows["space"] == Space.DIRECT_MAP) & (rows["level"] == 2)]
    start = start.sort_values("pfn")
    follows = (start["pfn"] == (start["pfn"] + start["n_leaves"] * 512).shift()) & (start["attrs"].diff() == 0)
    row = int(start[follows].index[5])
    trace = analyze.open_trace(
        with_cell(machine, tmp_path / "t", "snapshots", "attrs", row, int(rows["attrs"][row]) ^ int(Pte.D))
    )
    plain, wanted = (trace.state_at("start", hardware=hardware) for hardware in (False, True))
    assert len(plain) < len(wanted)
    assert plain["n_pages"].sum() == wanted["n_pages"].sum()


@pytest.mark.parametrize("name", TABLES)
def test_a_table_has_every_row_in_order_of_time_and_no_codes(churn: OpenedTrace, name: str) -> None:
    raw = churn.files.table(name)
    found = churn.table(name)
    assert len(found) == len(raw)
    assert "comm_id" not in found.columns
    assert "name_id" not in found.columns
    if "ts_ns" in found.columns:
        assert found["ts_ns"].is_monotonic_increasing
        assert sorted(found["ts_ns"]) == sorted(raw["ts_ns"].to_pylist())
    for column in set(found.columns) & {"kind", "event", "space", "level", "level_first", "moment", "tier", "scope"}:
        assert isinstance(found[column].dtype, pd.CategoricalDtype), column


@pytest.mark.parametrize("name", ["changes", "pages", "regions", "counters"])
def test_a_time_gives_just_its_rows(churn: OpenedTrace, name: str) -> None:
    every = churn.table(name)
    for start, end in (("30%", "31%"), ("0", "1"), (None, "50%"), ("50%", None), (every["ts_ns"].iloc[7],) * 2):
        first = 0 if start is None else churn.at(start)
        last = 1 << 62 if end is None else churn.at(end)
        mine = every[(every["ts_ns"] >= first) & (every["ts_ns"] <= last)].reset_index(drop=True)
        pd.testing.assert_frame_equal(churn.table(name, start, end), mine, check_categorical=False)
    assert len(churn.table(name, every["ts_ns"].iloc[7], every["ts_ns"].iloc[7])) >= 1


def test_a_time_reads_only_the_files_that_may_hold_it(churn: OpenedTrace, monkeypatch: pytest.MonkeyPatch) -> None:
    segments = churn.manifest["tables"]["changes"]
    assert len(segments) == 3
    read: list[int] = []
    whole = pq.ParquetFile.read_row_groups

    def counted(self: pq.ParquetFile, groups: list[int], **how: object) -> object:
        read.append(sum(self.metadata.row_group(i).num_rows for i in groups))
        return whole(self, groups, **how)

    monkeypatch.setattr(trace_files.pq.ParquetFile, "read_row_groups", counted)
    last = pq.ParquetFile(CHURN / segments[2]["file"]).read(columns=["ts_ns"])["ts_ns"][-1].as_py()
    found = churn.table("changes", last, last, columns=["n_pages"])
    assert len(found) >= 1
    assert read == [0, 0, segments[2]["rows"]]


def test_only_the_columns_that_are_asked_for_in_their_order(churn: OpenedTrace) -> None:
    assert list(churn.changes(columns=["comm", "ts_ns"]).columns) == ["comm", "ts_ns"]
    assert list(churn.regions(columns=["name_id"]).columns) == ["name"]
    with pytest.raises(KeyError, match="table pages has no column 'foo'"):
        churn.pages(columns=["foo"])


def test_row_is_the_place_of_a_change_in_the_files(churn: OpenedTrace) -> None:
    ids = churn.files.table("changes", ["call_id"])["call_id"].to_numpy()
    for found in (churn.changes(), churn.changes("50%", "60%")):
        assert (ids[found.index] == found["call_id"]).all()


def test_what_the_commands_say_can_be_had(churn: OpenedTrace) -> None:
    assert len(churn.timeline(5)) == 6
    assert len(churn.diff().frames) == 141
    assert churn.state_summary().n_split_frames == len(churn.frames())
    assert (churn.splits()["level"] == "1G").sum() == 3
    assert churn.levels()["seconds"].is_monotonic_increasing


def test_keepers_at_the_end_are_those_of_the_end(churn: OpenedTrace) -> None:
    for mine, theirs in ((churn.special("end"), churn.special()), (churn.frames("end"), churn.frames())):
        assert mine["frame"].tolist() == theirs["frame"].tolist()
    assert len(churn.frames("start")) < len(churn.frames("50%")) < len(churn.frames())


def test_a_code_without_a_name_is_one_line(machine: Path, tmp_path: Path) -> None:
    forged = analyze.open_trace(with_cell(machine, tmp_path / "t", "regions", "kind", 0, 77))
    with pytest.raises(TraceError, match="regions: kind holds code 77, which this format does not know"):
        forged.regions()
    assert len(forged.regions(columns=["ts_ns"])) > 0


def test_a_text_that_is_missing_is_empty(machine: Path, tmp_path: Path) -> None:
    odd = analyze.open_trace(with_cell(machine, tmp_path / "t", "changes", "comm_id", 0, (1 << 32) - 1))
    assert (odd.changes()["comm"] == "").sum() == 1


def test_a_trace_of_page_events_alone_has_tables_and_times_but_no_map(machine: Path, tmp_path: Path) -> None:
    only = with_manifest(
        machine, tmp_path / "t", sampling={"only_pages": True}, tables={"snapshots": [], "changes": []}
    )
    trace = analyze.open_trace(only)
    assert len(trace.pages("0", "end")) > 0
    assert trace.changes().empty
    with pytest.raises(TraceError, match="only-pages"):
        trace.state_at("end")


def test_a_moment_that_is_none_is_refused(churn: OpenedTrace) -> None:
    with pytest.raises(TraceError, match="covers"):
        churn.state_at(0)
    with pytest.raises(argparse.ArgumentTypeError, match="is no time"):
        churn.state_at("noon")
    assert churn.state_at("start")["level"].min() == "4K"
