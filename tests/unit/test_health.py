"""The health of a trace: losses are found when they happened, doubts name what they concern, and sound means sound."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from analyze.__main__ import main
from analyze.analysis import analyse_trace
from analyze.counter_series import CounterSeries
from analyze.doubts import warnings
from analyze.health import Health, health
from analyze.losses import Doubt
from analyze.words.health import health_lines, verdict_lines
from collect.schema import TABLES
from collect.trace import open_trace
from tests.machine import write_trace
from tests.machine.rewrite import rewrite, with_cell, with_manifest, without_rows

SAMPLES = Path(__file__).parents[2] / "sample_traces"
SECOND = 1_000_000_000


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_trace(tmp_path_factory.mktemp("machine") / "trace", 43, scale=0.02)


def examined(path: Path) -> Health:
    trace = open_trace(path)
    return health(trace, analyse_trace(trace))


def with_losses(source: Path, target: Path, name: str, at: dict[int, int], total: int) -> Path:
    """A trace whose counter of a class of loss stands at these values these seconds after START."""
    trace = open_trace(source)
    start = trace.manifest["ts_start_ns"]
    columns = {
        "ts_ns": np.array([start + s * SECOND for s in at], np.uint64),
        "counter": [f"lost/{name}"] * len(at),
        "value": np.array(list(at.values()), np.uint64),
    }
    rows = pa.concat_tables([trace.table("counters"), pa.table(columns, schema=TABLES["counters"])])
    rewrite(source, target, "counters", rows)
    return with_manifest(target, target, losses={name: total}, ts_end_ns=start + 20 * SECOND)


@pytest.mark.parametrize("command", ["health", "summary"])
def test_what_no_counter_counts_is_not_called_nothing(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Page events of this recording contradict each other, so some were not seen, though no counter counts them."""
    assert main([command, str(SAMPLES / "6.1-churn")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "  lost       nothing, by the recorder's own counters" in lines
    assert any("6 contradict earlier ones" in line for line in lines)


@pytest.mark.parametrize(
    ("sample", "changes", "splits", "named"),
    [("5.10-bpf", 11264, 100, 0), ("6.1-churn", 16247, 144, 72), ("7.2-churn", 23138, 137, 86)],
)
def test_the_samples_are_sound_and_explained(sample: str, changes: int, splits: int, named: int) -> None:
    found = examined(SAMPLES / sample)
    assert (found.verdict, found.why, found.exact, found.lost) == ("sound", [], True, 0)
    assert found.explained is not None
    assert (found.explained.changes, found.explained.splits, found.explained.splits_named) == (changes, splits, named)
    assert sum(found.explained.changes_of.values()) == changes
    assert sum(found.explained.splits_of.values()) == splits
    assert "other" not in found.explained.splits_of
    assert found.n_gaps == 0


def test_meminfo_is_apart_from_the_page_tables_by_what_it_drifted_at_boot() -> None:
    """Of every sample: one 2 GB of 1G entries too many, from boot on; what happened while recording it counted right."""
    for sample in ("5.10-bpf", "6.1-churn", "7.2-churn"):
        gaps = {gap.level: gap for gap in examined(SAMPLES / sample).levels}
        assert gaps["1G"].apart_start_kb == 2 << 20
        assert all(gap.apart_start_kb == gap.apart_end_kb for gap in gaps.values())


def test_a_loss_is_found_in_the_second_in_which_it_happened(source: Path, tmp_path: Path) -> None:
    at = {0: 0, 1: 0, 2: 5, 3: 9, 4: 9, 9: 9, 10: 10}
    found = examined(with_losses(source, tmp_path / "t", "changes_ring_full", at, 10))
    (lost,) = found.losses
    assert [(s.from_s, s.to_s, s.lost) for s in lost.spans] == [(1.0, 3.0, 9), (9.0, 10.0, 1)]
    assert lost.lost == 10
    assert found.verdict == "in doubt"
    doubted = [conclusion.text for conclusion in found.conclusions if conclusion.in_doubt]
    assert doubted == ["the state of the direct map", "who made a change, and for what"]
    assert any("1.0-3.0 s: 9, 9.0-10.0 s: 1" in line for line in health_lines(found))


def test_lost_page_events_leave_the_map_sound(source: Path, tmp_path: Path) -> None:
    found = examined(with_losses(source, tmp_path / "t", "pages_ring_full", {0: 0, 1: 7}, 7))
    assert found.verdict == "sound"
    assert [c.text for c in found.conclusions if c.in_doubt] == ["page events: rates, orders, lifetimes"]
    assert "in doubt, but not of the map: page events" in " ".join(" ".join(verdict_lines(found)).split())


def test_what_was_counted_only_at_the_end_is_said_to_be(source: Path, tmp_path: Path) -> None:
    found = examined(with_manifest(source, tmp_path / "t", losses={"entry_without_exit": 2}))
    assert found.losses[0].spans == []
    assert any("counted when the recorder ended" in line for line in health_lines(found))


def test_a_loss_of_a_class_that_nobody_knows_puts_everything_in_doubt(source: Path, tmp_path: Path) -> None:
    found = examined(with_manifest(source, tmp_path / "t", losses={"gremlins\x1b[31m": 1}))
    assert all(conclusion.in_doubt for conclusion in found.conclusions)
    assert "\x1b" not in "\n".join(health_lines(found))


def test_a_state_that_contradicts_itself_is_broken(source: Path, tmp_path: Path) -> None:
    rows = open_trace(source).table("snapshots").to_pandas()
    row = int(rows[(rows["moment"] == 2) & (rows["level"] == 1)].index[0])
    found = examined(with_cell(source, tmp_path / "t", "snapshots", "attrs", row, int(rows["attrs"][row]) ^ 2))
    assert found.verdict == "broken"
    assert "pages at the end are not as start and changes say" in found.why[0]
    assert found.conclusions[0].in_doubt


def test_a_call_whose_parent_is_gone_is_counted(source: Path, tmp_path: Path) -> None:
    changes = open_trace(source).table("changes").to_pandas()
    nested = changes[changes["parent_id"] != 0]
    parent = int(changes.index[changes["call_id"] == nested["parent_id"].iloc[0]][0])
    found = examined(without_rows(source, tmp_path / "t", "changes", [parent]))
    assert found.nested_calls_without_parent == int((nested["parent_id"] == nested["parent_id"].iloc[0]).sum())
    assert found.verdict != "sound"


def test_seconds_without_a_reading_are_found(source: Path, tmp_path: Path) -> None:
    found = examined(with_losses(source, tmp_path / "t", "x", {1: 0, 2: 0, 12: 0, 13: 0, 14: 0, 15: 0, 19: 0}, 0))
    assert [(gap.from_s, gap.to_s) for gap in found.gaps] == [(2.0, 12.0), (15.0, 19.0)]
    assert found.longest_gap_s == 10.0


def test_a_trace_without_its_end_is_in_doubt(source: Path, tmp_path: Path) -> None:
    found = examined(with_manifest(source, tmp_path / "t", complete=False, ended="no space left"))
    assert found.verdict == "in doubt"
    assert "it lacks its end (no space left)" in found.why


def test_a_missing_probe_is_named_with_what_it_costs(source: Path, tmp_path: Path) -> None:
    probe = {"name": "vfree", "why": "not there", "costs": "late frees"}
    found = examined(with_manifest(source, tmp_path / "t", probes={"missing": [probe, 3]}))
    assert found.missing_probes == [probe]
    assert any("vfree: not there; cost: late frees" in line for line in health_lines(found))


def test_a_trace_of_pages_alone_has_a_health_too(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pages = with_manifest(source, tmp_path / "t", sampling={"only_pages": True, "pages": "all"})
    assert main(["health", "--json", str(pages)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["analysed"] is False and found["exact"] is None and found["explained"] is None
    assert [c["text"] for c in found["conclusions"]] == ["page events: rates, orders, lifetimes"]


def test_the_words_are_ascii_under_80_columns_whatever_the_trace_holds(source: Path, tmp_path: Path) -> None:
    evil = "é\x1b[31m" + "x" * 300
    trace = with_manifest(
        source, tmp_path / "t", losses={evil: 3}, probes={"missing": [{"name": evil, "why": evil, "costs": evil}]},
        complete=False, ended=evil,
    )  # fmt: skip
    for line in [*verdict_lines(examined(trace)), *health_lines(examined(trace)), *warnings(open_trace(trace))]:
        assert line.isascii() and line.isprintable() and len(line) < 80


def test_a_warning_is_about_what_the_output_is_about(source: Path, tmp_path: Path) -> None:
    assert warnings(open_trace(source)) == []
    lost = open_trace(with_manifest(source, tmp_path / "t", losses={"pages_ring_full": 4}))
    assert warnings(lost, Doubt.MAP) == []
    assert "4 events lost" in " ".join(warnings(lost, Doubt.PAGES))


def test_a_counter_that_falls_or_starts_high_loses_nothing_twice(source: Path, tmp_path: Path) -> None:
    series = CounterSeries(open_trace(with_losses(source, tmp_path / "t", "x", {0: 3, 1: 1, 2: 2}, 3)))
    begin, end, n = series.grown("lost/x")
    assert n.tolist() == [3, 1]
    assert (end - begin).tolist() == [0, SECOND]
    assert len(series.of("lost/nobody")[0]) == 0


def test_changes_of_users_that_nobody_knows_put_in_doubt_who_made_them_and_not_the_map() -> None:
    """On this recording a module that only the lab has makes every change."""
    found = examined(SAMPLES.parent / "tests" / "recordings" / "static-6.1")
    assert found.verdict == "sound"
    [conclusion] = [one for one in found.conclusions if one.why]
    assert conclusion.text.startswith("who made a change")
    assert conclusion.why == ["518 of 518 changes have no user that we know: see their stacks"]
