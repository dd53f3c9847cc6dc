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


def test_kills_cost_at_most_two_seconds(storm: tuple[int, Path], tmp_path: Path) -> None:
    """Every round of the storm that ended two seconds before the kill is there, each with all its pages."""
    pid, log = storm
    chance = random.Random(2)
    n_rounds = 0
    for i in range(N_KILLS):
        directory = tmp_path / f"trace-{i}"
        process = subprocess.Popen(
            collect("record", "--only-pages", "-o", directory, "-d", "60"), cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
        assert process.stderr
        while "recording" not in (line := process.stderr.readline()):
            assert line, f"the recorder ended with {process.wait()}"
        began = time.monotonic_ns()
        time.sleep(chance.uniform(0, 5))
        killed = time.monotonic_ns()
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stderr.close()
        assert not (directory / MANIFEST).exists()
        recover(directory)
        trace = open_trace(directory)
        seen = user_pages(trace, pid)
        done = rounds(log)
        due = done[(done[:, 0] > began) & (done[:, 1] < killed - COSTS_SECONDS * 1e9)]
        found = np.searchsorted(seen, due[:, 1].astype(np.uint64)) - np.searchsorted(seen, due[:, 0].astype(np.uint64))
        missing = int((PAGES_PER_ROUND - found).sum())
        assert 0 <= missing <= lost(trace), f"kill {i}"
        assert set(trace.manifest["losses"]) >= {"pages_ring_full"}
        n_rounds += len(due)
    assert n_rounds > 100 * N_KILLS // 5, "the kills left enough to be missed"


COUNTER = """
BPF_HASH(n_events, u32, u64, 65536);
static void count(void)
{
	u32 tid = bpf_get_current_pid_tgid();
	n_events.increment(tid);
}
RAW_TRACEPOINT_PROBE(mm_page_alloc) { if (ctx->args[0]) count(); return 0; }
RAW_TRACEPOINT_PROBE(mm_page_free) { count(); return 0; }
"""


def test_what_a_full_ring_loses_is_counted(tmp_path: Path) -> None:
    """The storm's events, counted by a program of the test's own, are those recorded and those counted as lost."""
    from collect.compiler import compile_program, import_bcc

    log = tmp_path / "storm"
    load = [sys.executable, "-m", "tests.machine.storm", str(log), "3001", "0"]
    counting = compile_program(import_bcc(), COUNTER, []).bpf
    try:
        done = subprocess.run(
            collect("record", "--only-pages", "--ring-bytes", "1", "-o", tmp_path / "trace", "--", *load),
            cwd=ROOT, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        produced = {tid.value: n.value for tid, n in counting[b"n_events"].items()}
    finally:
        counting.cleanup()
    trace = open_trace(tmp_path / "trace")
    pids, n = np.unique(trace.table("pages", ["pid"])["pid"].to_numpy(), return_counts=True)
    recorded = dict(zip(pids.tolist(), n.tolist(), strict=True))
    storm = max(produced, key=lambda tid: produced[tid])
    assert produced[storm] > 2 * 3001 * PAGES_PER_ROUND
    n_lost = trace.manifest["losses"]["pages_ring_full"] + trace.manifest["losses"]["pages_programs_not_run"]
    of_storm = produced[storm] - recorded[storm]
    of_others = sum(produced.values()) - sum(recorded.values()) - of_storm  # before and after the recording too
    assert of_storm > 0, "the ring was too large"
    assert of_storm <= n_lost <= of_storm + of_others
