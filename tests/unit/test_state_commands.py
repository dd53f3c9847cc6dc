"""state, timeline and diff: what they print and what they say to programs, on real recordings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analyze.__main__ import main
from analyze.attribute import attribute
from analyze.history import History
from analyze.reconstruct import Rebuild, rebuild
from collect.schema import Level
from collect.trace import open_trace
from tests.machine import write_trace
from tests.machine.rewrite import with_cell, with_manifest

SAMPLES = Path(__file__).parents[2] / "sample_traces"
CHURN = SAMPLES / "6.1-churn"


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_trace(tmp_path_factory.mktemp("machine") / "trace", 61, scale=0.05)


@pytest.fixture(scope="module")
def rebuilt() -> Rebuild:
    return rebuild(open_trace(CHURN))


def said(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """What a command prints; narrow, and of plain characters."""
    assert main([str(argument) for argument in arguments]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert max(len(line) for line in out.splitlines()) < 80
    assert out.isascii()
    return out


def told(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> Any:
    """What a command says with --json, which has to be strict."""

    def refuse(name: str) -> None:
        raise AssertionError(name)

    assert main([*(str(argument) for argument in arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out, parse_constant=refuse)


def test_state_of_a_real_recording_half_way(capsys: pytest.CaptureFixture[str]) -> None:
    found = told(capsys, "state", CHURN, "--at", "50%")
    assert {row["level"]: row["n_leaves"] for row in found["levels"]} == {"1G": 2, "2M": 2956, "4K": 59354}
    assert found["split_frames"] == 116
    assert found["calls_under_way"] == 0
    assert found["changes_in_effect"] == 4843
    out = said(capsys, "state", CHURN, "--at", "50%")
    assert "116 2M frames in 4K entries" in out
    assert "P RW G NX" in out


@pytest.mark.parametrize("name", ["5.10-bpf", "6.1-churn", "7.2-churn"])
def test_state_at_the_end_is_the_end_that_verify_proved(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    final = rebuild(open_trace(SAMPLES / name)).final
    found = told(capsys, "state", SAMPLES / name)
    counts = final.counts()
    names = {"1G": Level.G1, "2M": Level.M2, "4K": Level.K4}
    assert {row["level"]: row["n_leaves"] for row in found["levels"]} == {k: counts[v] for k, v in names.items()}
    assert found["split_frames"] == len(final.split_frames())
    n_pages = sum(row["n_pages"] for row in found["levels"])
    for part in ("zones", "attributes"):
        assert sum(row["n_pages"] for row in found[part]) == n_pages, part
    assert sum(row["n_leaves"] for row in found["attributes"]) == sum(row["n_leaves"] for row in found["levels"])


def test_zones_are_x86s_where_the_trace_has_none(capsys: pytest.CaptureFixture[str]) -> None:
    found = told(capsys, "state", CHURN)
    pages: dict[str, int] = {}
    for row in found["zones"]:
        pages[row["zone"]] = pages.get(row["zone"], 0) + row["n_pages"]
    assert set(pages) == {"DMA", "DMA32", "Normal"}
    assert pages["DMA"] <= 4096
    assert pages["DMA"] + pages["DMA32"] <= 1 << 20
    assert "fixed bounds" in found["zone_note"]


def test_zones_and_nodes_are_the_traces_where_it_has_them(
    machine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    zones = {"node 0 DMA32": [1, 300000], "node 1 Normal": [300000, 1 << 20]}
    known = with_manifest(machine, tmp_path / "known", memory={"zones": zones})
    found = told(capsys, "state", known)
    assert {row["zone"] for row in found["zones"]} <= {"node 0 DMA32", "node 1 Normal", "no zone"}
    assert sum(row["n_pages"] for row in found["zones"]) == sum(row["n_pages"] for row in found["levels"])
    assert "node 1 Normal" in said(capsys, "state", known)
    for forged in ({"a": [5, 1]}, {"a": "x"}, {"a": [0, 1 << 60]}, 7):
        odd = with_manifest(machine, tmp_path / str(len(str(forged))), memory={"zones": forged})
        assert "fixed bounds" in told(capsys, "state", odd)["zone_note"]


def test_a_time_outside_the_recording_is_one_line_with_what_it_covers(capsys: pytest.CaptureFixture[str]) -> None:
    for time in ("200", "@1"):
        assert main(["state", str(CHURN), "--at", time]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        assert "give a time from 0.000000000 to 106.794060700 s" in err


def test_timeline_adds_up_to_the_splits_of_the_whole(rebuilt: Rebuild, capsys: pytest.CaptureFixture[str]) -> None:
    splits = attribute(rebuilt.trace, rebuilt).splits
    steps = told(capsys, "timeline", CHURN, "--steps", "7")["steps"]
    assert len(steps) == 8
    assert sum(row["splits_2m"] for row in steps) == (splits["level"] == Level.M2).sum() == 141
    assert sum(row["splits_1g"] for row in steps) == (splits["level"] == Level.G1).sum() == 3
    for user, n in splits["user"].value_counts().items():
        assert sum(row[user] for row in steps) == n
    history = History(rebuilt.course)
    for row in steps:
        counts = history.state_at(row["ts_ns"]).counts()
        assert [row["k4"], row["m2"], row["g1"]] == [counts[level] for level in (Level.K4, Level.M2, Level.G1)]
    out = said(capsys, "timeline", CHURN)
    assert len(out.splitlines()) == 2 + 1 + 21 + 1
    assert "141 x 2M and 3 x 1G split in all" in out


def test_diff_of_a_whole_recording_has_every_split_frame(rebuilt: Rebuild, capsys: pytest.CaptureFixture[str]) -> None:
    found = told(capsys, "diff", CHURN)
    split = len(rebuilt.final.split_frames()) - len(rebuilt.start.map.split_frames())
    assert found["n_frames"] == split == 141
    assert found["n_ranges"] == 3
    assert sum(row["n_frames"] for row in found["users"]) == split
    assert sum(row["n_pages"] for row in found["users"]) == found["n_pages"]
    users = {row["user"] for row in found["users"]}
    assert {"secretmem", "module", "bpf", "ftrace", "kprobe"} <= users
    assert all(row["row"] >= 0 and row["user"] in users for row in found["frames"])
    said(capsys, "diff", CHURN)
    said(capsys, "diff", CHURN, "--from", "20", "--to", "20")


def test_diff_between_splits_names_the_one_in_between(rebuilt: Rebuild, capsys: pytest.CaptureFixture[str]) -> None:
    """From just before a call to just after it: what that call did, and nothing else."""
    splits = attribute(rebuilt.trace, rebuilt).splits
    split = splits[splits["level"] == Level.M2].iloc[40]
    at = int(split["ts_ns"])
    found = told(capsys, "diff", CHURN, "--from", f"@{at - 1}", "--to", f"@{at}")
    assert found["changes"] == 1
    assert [row["pfn"] for row in found["frames"]] == [split["pfn"]]
    assert found["frames"][0]["row"] == split["row"]
    assert found["frames"][0]["user"] == split["user"]
    assert [row["pfn"] for row in found["pages"]] == [split["page"]]
    assert found["n_pages"] == 1


def test_nothing_in_between_is_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    found = told(capsys, "diff", CHURN, "--from", "50%", "--to", "50%")
    assert found["changes"] == found["n_pages"] == found["n_frames"] == found["n_ranges"] == 0
    assert found["users"] == found["pages"] == []


def test_moments_the_wrong_way_round_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", str(CHURN), "--from", "60%", "--to", "50%"]) == 2
    assert "swap them" in capsys.readouterr().err


def test_losses_put_what_is_said_in_doubt(machine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lossy = with_manifest(machine, tmp_path / "lossy", losses={"changes_ring_full": 3})
    ended = with_manifest(machine, tmp_path / "ended", complete=False)
    for command in ("state", "timeline", "diff"):
        assert "in doubt: the state of the direct map" in said(capsys, command, lossy)
        assert "in doubt: the recording lacks its end" in said(capsys, command, ended)
        assert "in doubt" not in said(capsys, command, machine)
    pages = with_manifest(machine, tmp_path / "pages", losses={"pages_ring_full": 3})
    assert "in doubt" not in said(capsys, "state", pages)


def test_a_call_that_changed_the_map_before_those_nested_in_it_counts_from_then_on(
    rebuilt: Rebuild, tmp_path: Path
) -> None:
    """As through a decoy address: the outer call returns last, though its split came first."""
    order = rebuilt.changes.order[rebuilt.changes.direct[rebuilt.changes.order]]
    splitting = np.isin(order, rebuilt.splits["row"])
    one_after_the_other = int(np.flatnonzero(splitting[:-1] & splitting[1:])[0])
    outer, inner = order[one_after_the_other : one_after_the_other + 2].tolist()
    changes = rebuilt.trace.table("changes").to_pandas()
    assert changes.loc[outer, "ts_ns"] < changes.loc[inner, "ts_ns"]
    end = changes.loc[inner, "ts_ns"] + changes.loc[inner, "duration_ns"] + 1000
    first = with_cell(CHURN, tmp_path / "a", "changes", "duration_ns", outer, int(end - changes.loc[outer, "ts_ns"]))
    second = with_cell(first, tmp_path / "b", "changes", "parent_id", inner, int(changes.loc[outer, "call_id"]))
    nested = rebuild(open_trace(with_cell(second, tmp_path / "c", "changes", "stack_id", inner, 0)))
    began = int(nested.changes.effect_ns[outer])
    assert began == changes.loc[inner, "ts_ns"] < nested.changes.exit_ns[inner] < nested.changes.exit_ns[outer]
    times = nested.levels["ts_ns"].to_numpy()
    assert (np.diff(times) >= 0).all() and began in times
    history = History(nested.course)
    for row in nested.levels[nested.levels["ts_ns"] >= history.span.first_ns].groupby("ts_ns").last().itertuples():
        counts = history.state_at(row.Index).counts()
        assert [row.k4, row.m2, row.g1] == [counts[level] for level in (Level.K4, Level.M2, Level.G1)]


def test_times_of_an_emulated_machine_are_called_so(
    machine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    native = with_manifest(machine, tmp_path / "native", cpu={"emulated": False})
    emulated = with_manifest(machine, tmp_path / "emulation", cpu={"emulated": True})
    for command in ("state", "timeline", "diff"):
        assert "times    of an emulated CPU" in said(capsys, command, emulated)
        assert "emulated" not in said(capsys, command, native)
