"""Splits that were seen done are held against those that the rules rebuild, leaf by leaf and both ways."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from analyze.commands.verify import run
from analyze.reconstruct import rebuild
from analyze.verify import verify
from collect.errors import TraceError
from collect.schema import Level, Space
from collect.trace import open_trace
from tests.machine import write_trace
from tests.machine.rewrite import rewrite, with_cell, with_manifest, without_rows

SAMPLES = sorted(path for path in Path(__file__).parents[2].joinpath("sample_traces").glob("*") if path.is_dir())


@pytest.fixture(scope="module", params=["5.10", "6.1"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_trace(tmp_path_factory.mktemp("machine") / "trace", 31, scale=0.1, kernel_style=request.param)


def direct_rows(source: Path) -> list[int]:
    """Rows of the table `splits` that are in the frames and times that are rebuilt."""
    rebuilt = rebuild(open_trace(source))
    leaves = set(zip(rebuilt.splits["pfn"].tolist(), rebuilt.splits["level"].tolist(), strict=True))
    rows = open_trace(source).table("splits").to_pylist()
    size = {Level.M2: 512, Level.K4: 1}

    def leaf(row: dict[str, int]) -> tuple[int, int]:
        pages = size[Level(row["level"])] * 512
        return row["pfn"] // pages * pages, row["level"] + 1

    return [i for i, row in enumerate(rows) if row["space"] == Space.DIRECT_MAP and leaf(row) in leaves]


def test_every_split_that_was_rebuilt_was_seen(source: Path) -> None:
    found = verify(open_trace(source)).to_json()
    assert found["exact"], found
    splits = found["splits_observed"]
    assert splits["count"] > 10
    assert (splits["leaves_that_differ"], splits["list"]) == (0, [])


def test_each_split_that_was_not_seen_is_told(source: Path, tmp_path: Path) -> None:
    rows = direct_rows(source)
    for row in rows[:: max(1, len(rows) // 6)]:
        gone = open_trace(source).table("splits").slice(row, 1).to_pylist()[0]
        found = verify(open_trace(without_rows(source, tmp_path / str(row), "splits", [row])))
        assert not found.exact
        [told] = found.to_json()["splits_observed"]["list"]
        assert (told["rebuilt"], told["observed"], told["level"]) == (1, 0, gone["level"] + 1)
        assert told["pfn"] <= gone["pfn"] < told["pfn"] + (512 if told["level"] == Level.M2 else 512 * 512)
        assert told["call_id"] == gone["call_id"]


def test_a_split_that_the_rules_do_not_know_is_told(source: Path, tmp_path: Path) -> None:
    trace = open_trace(source)
    table = trace.table("splits")
    whole = np.flatnonzero(rebuild(trace).final.frame_levels() == Level.M2)[7] * 512
    row = table.slice(direct_rows(source)[3], 1).to_pylist()[0] | {"pfn": int(whole) + 5, "level": 1}
    more = table.from_pylist([*table.to_pylist(), row], schema=table.schema)
    found = verify(open_trace(rewrite(source, tmp_path / "t", "splits", more)))
    assert not found.exact
    assert found.observed is not None
    [told] = found.observed.differ.to_dict("records")
    assert (told["rebuilt"], told["observed"], told["pfn"], told["level"]) == (0, 1, whole, Level.M2)


def test_what_a_failed_call_has_split_is_taken_from_what_was_seen(source: Path, tmp_path: Path) -> None:
    trace = open_trace(source)
    rebuilt = rebuild(trace)
    failed = np.flatnonzero(rebuilt.changes.columns["ret"] != 0)
    assert len(failed) == 1
    [left] = np.flatnonzero(rebuilt.observed.left_level == Level.G1)
    assert rebuilt.observed.left_row[left] == failed[0]
    page = rebuilt.observed.left_pfn[left]
    assert page == rebuilt.changes.first_pfn[failed[0]] + rebuilt.changes.n_done[failed[0]]
    assert rebuilt.start.map.level_of([page])[0] == Level.G1
    assert rebuilt.final.level_of([page])[0] == Level.M2
    rows = trace.table("splits").to_pylist()
    seen = [i for i, row in enumerate(rows) if row["pfn"] == page and row["level"] == Level.M2]
    assert len(seen) == 1
    assert not verify(open_trace(without_rows(source, tmp_path / "t", "splits", seen))).exact, (
        "nothing else tells of it"
    )


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.name)
def test_a_trace_of_format_1_says_that_splits_were_not_observed(
    sample: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if open_trace(sample).manifest["format_version"] > 1:
        pytest.skip("a sample of a newer format; the others are of format 1")
    assert run(sample, as_json=True) == 0
    assert json.loads(capsys.readouterr().out)["splits_observed"] is None
    run(sample, as_json=False)
    assert "not observed one by one" in capsys.readouterr().out


def test_without_the_probe_nothing_is_claimed(source: Path, tmp_path: Path) -> None:
    attached = [name for name in open_trace(source).manifest["probes"]["attached"] if "flush" not in name]
    found = verify(open_trace(with_manifest(source, tmp_path / "t", probes={"attached": attached})))
    assert found.to_json()["splits_observed"] is None
    assert found.exact


def test_text_names_the_leaf(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = direct_rows(source)[0]
    assert run(without_rows(source, tmp_path / "t", "splits", [row]), as_json=False) == 1
    out = capsys.readouterr().out
    assert "DISAGREES" in out
    assert "observed 0 x" in out
    assert all(len(line) < 80 for line in out.splitlines())


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [
        ("space", 9, "space"),
        ("level", 3, "level that no split leaves"),
        ("level", 0, "level that no split leaves"),
        ("pfn", 1 << 50, "outside memory"),
        ("ts_ns", (1 << 64) - 1, "centuries"),
    ],
)
def test_forged_splits_are_one_clear_line(source: Path, tmp_path: Path, column: str, value: int, says: str) -> None:
    forged = with_cell(source, tmp_path / "t", "splits", column, direct_rows(source)[0], value)
    with pytest.raises(TraceError, match=says) as caught:
        verify(open_trace(forged))
    assert "\n" not in str(caught.value)
