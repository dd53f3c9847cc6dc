"""Programs of the lab that are asked to end: what they run is asked too, and waited for, and nothing cuts that short."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

CHILD = """
import pathlib, signal, sys, time
def end(number, frame):
    pathlib.Path(sys.argv[1]).write_text("asked")
    time.sleep(0.5)
    pathlib.Path(sys.argv[1]).write_text("ended in its own time")
    sys.exit(3)
signal.signal(signal.SIGTERM, end)
print("up", flush=True)
time.sleep(60)
"""
PARENT = """
import sys
from tests.vm.errors import leave, status_of
leave(lambda: status_of([sys.executable, "-c", sys.argv[1], sys.argv[2]]))
"""


@pytest.mark.parametrize("more", [(), (signal.SIGHUP, signal.SIGTERM)])
def test_what_it_runs_ends_in_its_own_time(tmp_path: Path, more: tuple[signal.Signals, ...]) -> None:
    told = tmp_path / "told"
    argv = [sys.executable, "-c", PARENT, CHILD, str(told)]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None and parent.stdout.readline() == "up\n"
        for number in (signal.SIGTERM, *more):
            parent.send_signal(number)
            while not told.exists():
                time.sleep(0.01)
        assert parent.wait(timeout=20) == 130
    assert told.read_text() == "ended in its own time"


@pytest.mark.parametrize(("inherited", "status"), [(signal.SIG_IGN, 7), (signal.SIG_DFL, 130)])
def test_nohup_still_means_that(inherited: signal.Handlers, status: int) -> None:
    program = (
        "import os, signal\nfrom tests.vm.errors import leave\nleave(lambda: os.kill(os.getpid(), signal.SIGHUP) or 7)"
    )
    before = signal.signal(signal.SIGHUP, inherited)
    try:
        done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert done.returncode == status


def test_a_status_is_passed_on() -> None:
    program = "import sys\nfrom tests.vm.errors import leave, status_of\nleave(lambda: status_of([sys.executable, '-c', 'exit(5)']))"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 5
