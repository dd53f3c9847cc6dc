"""When a snapshot is due, and how one is asked for from outside."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from collect.__main__ import main
from collect.durable import JOURNAL, claim
from collect.errors import HostError
from collect.manifest import MANIFEST
from collect.moments import Moments, ask_for_snapshot
from collect.schema import Moment

ROOT = Path(__file__).parents[2]


def test_periodic_ones_keep_their_period_and_are_never_made_up_for() -> None:
    moments = Moments(10)
    moments.begin(100.0)
    taken = [now for now in (100, 109, 110, 111, 119.5, 121, 130, 165, 166, 175, 176) if moments.due(now)]
    assert taken == [110, 121, 130, 165, 175]


def test_none_is_due_where_none_was_asked_for() -> None:
    moments = Moments()
    moments.begin(0.0)
    assert moments.due(1e9) is None


def test_requests_are_met_by_the_next_snapshot_and_several_by_one() -> None:
    with Moments() as moments:
        moments.begin(0.0)
        assert moments.due(0.0) is None
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert moments.due(1.0) == Moment.REQUEST
        assert moments.due(2.0) is None


def test_the_signal_is_given_back() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with Moments():
        assert signal.getsignal(signal.SIGUSR1) != before
    assert signal.getsignal(signal.SIGUSR1) == before


RECORDER = """
import signal, sys, time
from pathlib import Path
from collect.durable import JOURNAL, claim, write_json
from collect.manifest import MANIFEST
from collect.moments import LAST_BEGAN, Moments
import os
held = claim(Path(sys.argv[1]), force=True)
known = {"recorder": {"pid": os.getpid(), LAST_BEGAN: time.monotonic_ns()}, "sampling": {"only_pages": sys.argv[2] == "1"}}
write_json(Path(sys.argv[1]) / JOURNAL / MANIFEST, known)
def told(moments):
    print("ready", flush=True)
    while moments.due(0.0) is None:
        time.sleep(0.01)
    known["recorder"][LAST_BEGAN] = time.monotonic_ns()
    time.sleep(0.3)
    print("asked", flush=True)
    write_json(Path(sys.argv[1]) / JOURNAL / MANIFEST, known)
    time.sleep(60)
if sys.argv[3] == "1":
    with Moments() as moments:
        told(moments)
else:
    told(Moments())
"""


def process(directory: Path, *, only_pages: bool = False, catches: bool = True) -> subprocess.Popen[str]:
    """Holds a trace as a recorder does."""
    argv = [sys.executable, "-c", RECORDER, str(directory), str(int(only_pages)), str(int(catches))]
    started = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert started.stdout and started.stdout.readline() == "ready\n"
    return started


@pytest.fixture
def ended() -> Iterator[list[subprocess.Popen[str]]]:
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for one in processes:
        one.kill()
        one.communicate()


def test_a_recording_is_asked_by_its_directory(
    tmp_path: Path, ended: list[subprocess.Popen[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    ended.append(process(tmp_path / "trace"))
    began = time.monotonic()
    assert main(["snapshot", "--into", str(tmp_path / "trace")]) == 0
    assert time.monotonic() - began >= 0.3, "it waits until the snapshot is there"
    assert f"process {ended[0].pid} has taken a snapshot" in capsys.readouterr().err
    assert ended[0].stdout and ended[0].stdout.readline() == "asked\n"


def test_a_request_that_is_not_met_in_time_says_so(tmp_path: Path, ended: list[subprocess.Popen[str]]) -> None:
    ended.append(process(tmp_path / "trace"))
    with pytest.raises(HostError, match="no snapshot came within 0 s"):
        ask_for_snapshot(tmp_path / "trace", seconds=0.05)
    shutil.rmtree(tmp_path / "trace" / JOURNAL)
    with pytest.raises(HostError, match="nobody records into it"):
        ask_for_snapshot(tmp_path / "trace", seconds=0.05)


def test_nobody_is_signalled_who_does_not_wait_for_it(
    tmp_path: Path, ended: list[subprocess.Popen[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(directory: Path) -> str:
        assert main(["snapshot", "--into", str(directory)]) == 2
        return capsys.readouterr().err

    assert "nobody records into it" in refused(tmp_path / "missing")
    ended.append(process(tmp_path / "pages", only_pages=True))
    assert "--only-pages" in refused(tmp_path / "pages")
    ended.append(process(tmp_path / "deaf", catches=False))
    assert "no recorder that takes requests" in refused(tmp_path / "deaf")
    time.sleep(0.1)
    assert ended[1].poll() is None, "the signal would have ended it"
    ended[1].kill()
    ended[1].wait()
    assert "no recorder writes here any more" in refused(tmp_path / "deaf")
    held = claim(tmp_path / "odd", force=False)
    (tmp_path / "odd" / JOURNAL / MANIFEST).write_text(json.dumps([]))
    assert "names no recorder" in refused(tmp_path / "odd")
    held.close()
