"""What a terminal sees of a long command: a line with rate and time left, gone in the end; and what a file sees: nothing."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

import numba
import pytest

from collect import progress
from collect.progress import Line, Progress, Working, duration
from replay.progress import Progress as Replays

ROOT = Path(__file__).parents[2]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def on_a_terminal_that_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")


def worked(stream: io.StringIO, steps: int, seconds_each: float) -> None:
    clock = Clock()
    with Progress("reading pages", 100_000_000, "rows", line=Line(stream), clock=clock) as told:
        for _ in range(steps):
            clock.now += seconds_each
            told.advance(1_000_000)


def shown(stream: io.StringIO) -> list[str]:
    return [text.strip() for text in stream.getvalue().split("\r") if text.strip()]


def test_rate_and_time_left_are_told_and_the_line_is_gone_in_the_end() -> None:
    terminal = Terminal()
    worked(terminal, 10, 0.5)
    assert shown(terminal)[-1] == "reading pages: 10 of 100 M rows, 2.0 M rows/s, 45 s left"
    assert terminal.getvalue().endswith("\r") and "\n" not in terminal.getvalue()
    assert "\x1b" not in terminal.getvalue(), "no colours, no codes: NO_COLOR has nothing to forbid"


def test_what_is_short_is_not_told() -> None:
    terminal = Terminal()
    worked(terminal, 19, 0.1)
    assert terminal.getvalue() == ""


def test_the_line_comes_at_most_four_times_a_second() -> None:
    terminal = Terminal()
    worked(terminal, 10_000, 0.001)
    assert 20 <= len(shown(terminal)) <= 40


def test_a_file_sees_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    worked(file, 45, 0.1)
    monkeypatch.setenv("TERM", "dumb")
    worked(terminal := Terminal(), 45, 0.1)
    assert file.getvalue() == terminal.getvalue() == ""


def test_a_shorter_line_leaves_nothing_of_a_longer_one() -> None:
    line = Line(terminal := Terminal())
    line.show("twelve signs")
    line.show("four")
    line.clear()
    assert terminal.getvalue() == "\rtwelve signs\rfour        \r    \r"


def test_small_amounts_are_told_in_full_and_unknown_rates_are_not() -> None:
    told = Progress("replaying", 12, "policies")
    assert told.text(3) == "replaying: 0 of 12 policies, 0.0 policies/s"
    told.advance(3)
    assert told.text(6) == "replaying: 3 of 12 policies, 0.5 policies/s, 18 s left"
    assert (duration(59.4), duration(125)) == ("59 s", "2 min 5 s")


def test_whoever_knows_more_keeps_the_line() -> None:
    line, clock = Line(terminal := Terminal()), Clock()
    with Progress("reading", 10, "rows", line=line, clock=clock) as told:
        line.show("working")
        assert terminal.getvalue() == ""
        clock.now += 5
        told.advance(5)
    line.show("working")
    assert shown(terminal) == ["reading: 5 of 10 rows, 1.0 rows/s, 5 s left", "working"]


def test_the_compiler_at_work_is_called_so() -> None:
    compiler = progress._Compiler()
    compiler.listen()
    seen = []

    @numba.njit
    def compiled(n: int) -> int:
        return n + 1

    class Watch(numba.core.event.Listener):  # type: ignore[misc]
        def on_start(self, event: object) -> None:
            seen.append(compiler.at_work)

        def on_end(self, event: object) -> None:
            pass

    with numba.core.event.install_listener("numba:llvm_lock", Watch()):
        assert compiled(1) == 2
    assert seen and all(seen)
    assert not compiler.at_work


def test_work_is_told_of_until_it_ends() -> None:
    terminal = Terminal()
    with Working(Line(terminal), first_seconds=0):
        time.sleep(0.3)
    assert shown(terminal)[0] == "working: 0 s"
    assert terminal.getvalue().endswith("\r")


LONG = """
import sys, time
from collect.command_line import run_program
def run():
    time.sleep(2.6)
    print("remark", file=sys.stderr)
    print("answer")
    return 0
sys.exit(run_program("directmap-test", run))
"""


def test_a_long_command_tells_a_terminal_and_prints_its_answer_clean() -> None:
    ours, theirs = pty.openpty()
    done = subprocess.run([sys.executable, "-c", LONG], cwd=ROOT, stdout=subprocess.PIPE, stderr=theirs, check=True)
    os.close(theirs)
    seen = os.read(ours, 65536).decode()
    os.close(ours)
    assert done.stdout == b"answer\n"
    assert re.fullmatch(r"\rworking: [23] s\r +\rremark\r\n", seen), seen


def test_a_long_command_tells_a_file_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", LONG], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("answer\n", "remark\n")


def test_a_row_of_replays_is_counted_with_the_time_that_is_left() -> None:
    line = Line(terminal := Terminal())
    with Replays(4, line) as told:
        line.show("working")
        told.done("prog-pack\x1b[31m")
    assert re.fullmatch(r"1 of 4 replays, \d+ s left \(prog-pack\?\[31m\)", shown(terminal)[0])
    assert terminal.getvalue().endswith("\r")
