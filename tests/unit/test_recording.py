"""The real recorder on the kernel that runs the tests, page events alone: it is killed, and its rings overflow."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest

from collect.manifest import MANIFEST
from collect.recovery import recover
from collect.schema import PageEvent
from collect.trace import Trace, open_trace
from tests.machine.storm import PAGES_PER_ROUND, USER_GFP, rounds

ROOT = Path(__file__).parents[2]
N_KILLS = int(os.environ.get("DIRECTMAP_KILLS", "5"))
AT_ONCE = 5
"""Recorders that run beside each other, to be killed one after the other."""
COSTS_SECONDS = 2.0
"""What a kill may cost."""


def collect(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "collect", *map(str, arguments)]


@pytest.fixture(scope="module", autouse=True)
def _permitted() -> None:
    if os.geteuid() != 0:
        pytest.skip("records this kernel's page events: run make test as root")
    checked = subprocess.run(collect("check", "--json"), cwd=ROOT, capture_output=True, text=True)
    findings = json.loads(checked.stdout)
    if not findings["would_work"]["record --only-pages"]:
        lacking = [row["what"] for row in findings["findings"] if row["pages"] and not row["ok"]]
        pytest.skip(f"this kernel does not let page events be recorded ({', '.join(lacking)}): python -m collect check")


@pytest.fixture
def storm(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """A storm that goes on: its pid and its log."""
    log = tmp_path / "storm"
    process = subprocess.Popen([sys.executable, "-m", "tests.machine.storm", str(log), "0", "0.002"], cwd=ROOT)
    while not (log.exists() and log.stat().st_size):
        assert process.poll() is None
        time.sleep(0.01)
    yield process.pid, log
    process.kill()
    process.wait()


def lost(trace: Trace) -> int:
    """Page events lost, as the last counters say."""
    counters = trace.table("counters")
    mask = pc.match_substring_regex(counters["counter"], r"^lost/pages_(ring_full|programs_not_run)$")
    rows = counters.filter(mask)
    last: dict[str, int] = dict(zip(rows["counter"].to_pylist(), rows["value"].to_pylist(), strict=True))
    return sum(last.values())


def user_pages(trace: Trace, pid: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """When each page that `pid` took for user space was allocated, in order."""
    pages = trace.table("pages", ["ts_ns", "event", "gfp", "pid"])
    columns = {name: pages[name].to_numpy() for name in pages.column_names}
    mine = (columns["pid"] == pid) & (columns["event"] == PageEvent.ALLOC) & (columns["gfp"] & USER_GFP == USER_GFP)
    return np.sort(columns["ts_ns"][mine])


def recorder(directory: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        collect("record", "--only-pages", "-o", directory, *arguments), cwd=ROOT, stderr=subprocess.PIPE, text=True
    )


def await_recording(process: subprocess.Popen[str]) -> None:
    assert process.stderr
    while "recording" not in (line := process.stderr.readline()):
        assert line, f"the recorder ended with {process.wait()}"


def test_kills_cost_at_most_two_seconds(storm: tuple[int, Path], tmp_path: Path) -> None:
    """Every round of the storm that ended two seconds before the kill is there, each with all its pages."""
    pid, log = storm
    chance = random.Random(2)
    n_rounds = 0
    for first in range(0, N_KILLS, AT_ONCE):
        processes = {
            tmp_path / f"trace-{i}": recorder(tmp_path / f"trace-{i}", "-d", "120")
            for i in range(first, min(first + AT_ONCE, N_KILLS))
        }
        for process in processes.values():
            await_recording(process)
        began = time.monotonic_ns()
        moments = sorted(chance.uniform(0, 5) for _ in processes)
        killed: dict[Path, int] = {}
        for moment, (directory, process) in zip(moments, processes.items(), strict=True):
            time.sleep(max(0.0, moment - (time.monotonic_ns() - began) / 1e9))
            killed[directory] = time.monotonic_ns()
            process.send_signal(signal.SIGKILL)
        for directory, process in processes.items():
            process.wait()
            assert process.stderr
            process.stderr.close()
            assert not (directory / MANIFEST).exists()
            recover(directory)
            trace = open_trace(directory)
            seen = user_pages(trace, pid)
            done = rounds(log)
            due = done[(done[:, 0] > began) & (done[:, 1] < killed[directory] - COSTS_SECONDS * 1e9)]
            found = np.searchsorted(seen, due[:, 1].astype(np.uint64))
            found -= np.searchsorted(seen, due[:, 0].astype(np.uint64))
            missing = int((PAGES_PER_ROUND - found).sum())
            assert 0 <= missing <= lost(trace), directory.name
            assert set(trace.manifest["losses"]) >= {"pages_ring_full"}
            n_rounds += len(due)
    assert n_rounds > 20 * N_KILLS, "the kills left enough to be missed"


def counting(what: str, log: Path) -> dict[str, Any]:
    """What tests/machine/counting.py found out."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.machine.counting", what, str(log)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def test_every_page_event_of_a_storm_is_recorded_or_counted_as_lost(tmp_path: Path) -> None:
    """All events of the machine, counted by a program of the test's own between two moments at which none was under way."""
    n = counting("losses", tmp_path / "storm")
    assert n["produced"] > 2 * 3000 * PAGES_PER_ROUND
    assert n["lost"] > 0, "the ring was too large"
    assert n["recorded"] == n["taken"]
    assert n["produced"] == n["recorded"] + n["lost"] + n["not_run"]
    assert abs(n["not_run"]) <= n["produced"] // 100_000, "what neither program of a tracepoint saw, or both did"


def test_page_programs_that_are_off_do_not_run(tmp_path: Path) -> None:
    n = counting("off", tmp_path / "storm")
    assert n["one in 1"]["events"] > 4 * n["one in 64"]["events"] > 0
    assert n["one in 64"]["runs"] > 1000 and n["one in 64"]["ns"] > 0, "sampled events cost a call"
    assert n["one in 0"] == {"runs": 0, "ns": 0, "events": 0}
    assert n["not_run"] <= n["one in 1"]["events"] // 100, "what was not to be recorded is not lost"


def test_past_the_limit_page_events_go_off_and_cost_nothing_any_more(storm: tuple[int, Path], tmp_path: Path) -> None:
    directory = tmp_path / "trace"
    done = recorder(directory, "--sample", "64", "--max-overhead", "0.0001", "-d", "5")
    _, said = done.communicate()
    assert done.returncode == 0, said
    trace = open_trace(directory)
    (step,) = trace.manifest["sampling"]["steps"]
    assert step["page_sample"] == 0 and step["percent"] > 0.0001
    counters = trace.table("counters")
    cost = counters.filter(pc.equal(counters["counter"], "recorder/page_programs_ppm"))
    after = pc.greater(cost["ts_ns"], step["ts_ns"] + 1_500_000_000)
    assert sum(cost.filter(pc.invert(after))["value"].to_pylist()) > 0
    values = cost.filter(after)["value"].to_pylist()
    assert values and set(values) == {0}
    assert pc.max(trace.table("pages", ["ts_ns"])["ts_ns"]).as_py() <= step["ts_ns"] + 50_000_000


def test_what_a_full_ring_loses_stands_in_the_trace(tmp_path: Path) -> None:
    log = tmp_path / "storm"
    load = [sys.executable, "-m", "tests.machine.storm", str(log), "1009", "0"]
    process = recorder(tmp_path / "trace", "--ring-bytes", "1", "--", *load)
    _, said = process.communicate()
    assert process.returncode == 0, said
    trace = open_trace(tmp_path / "trace")
    pages = trace.table("pages", ["gfp", "event"])
    of_storm = int(
        ((pages["event"].to_numpy() == PageEvent.ALLOC) & (pages["gfp"].to_numpy() & USER_GFP == USER_GFP)).sum()
    )
    n_lost = trace.manifest["losses"]["pages_ring_full"]
    assert 0 < 1009 * PAGES_PER_ROUND - of_storm <= n_lost + trace.manifest["losses"]["pages_programs_not_run"]
    assert f"{sum(trace.manifest['losses'].values())} lost" in said
    assert lost(trace) <= sum(trace.manifest["losses"].values())


def test_a_command_that_does_not_exist_leaves_nothing_behind(tmp_path: Path) -> None:
    for _ in range(2):
        tried = subprocess.run(
            collect("record", "--only-pages", "-o", tmp_path / "trace", "--", "no-such-command"),
            cwd=ROOT, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert (tried.returncode, tried.stderr.splitlines()[-1]) == (
            2,
            "directmap-collect: no-such-command: cannot be run (No such file or directory)",
        )
        assert not (tmp_path / "trace").exists()


def test_a_request_for_a_snapshot_does_no_harm_where_there_are_no_page_tables_to_read(tmp_path: Path) -> None:
    """SIGUSR1 would end whoever does not expect it."""
    process = recorder(tmp_path / "trace", "-d", "60")
    await_recording(process)
    process.send_signal(signal.SIGUSR1)
    time.sleep(0.3)
    assert process.poll() is None
    asked = subprocess.run(collect("snapshot", "--into", tmp_path / "trace"), cwd=ROOT, capture_output=True, text=True)
    assert asked.returncode == 2 and "--only-pages, which reads no page tables" in asked.stderr
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert open_trace(tmp_path / "trace").n_rows("snapshots") == 0
