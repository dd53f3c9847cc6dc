"""The command of `record -- COMMAND`: it waits for its start, keeps the caller's privileges, and is ended with the recording."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from collect.command import Command, Interrupts
from collect.errors import HostError


def ended(command: Command) -> int:
    give_up = time.monotonic() + 20
    while command.poll() is None:
        assert time.monotonic() < give_up
        time.sleep(0.01)
    assert command.status is not None
    return command.status


def test_it_runs_from_its_start_on_and_not_before(tmp_path: Path) -> None:
    command = Command(["touch", str(tmp_path / "ran")])
    time.sleep(0.1)
    assert command.poll() is None and not (tmp_path / "ran").exists()
    command.start()
    assert ended(command) == 0 and (tmp_path / "ran").exists()


def test_its_exit_status_and_its_signal_are_told() -> None:
    for script, status in (("exit 3", 3), ("kill -9 $$", -signal.SIGKILL)):
        command = Command(["sh", "-c", script])
        command.start()
        assert ended(command) == status


def test_one_that_cannot_be_run_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("no program")
    for name, reason in (("missing", "No such file or directory"), ("data", "Permission denied")):
        command = Command([str(tmp_path / name)])
        with pytest.raises(HostError, match=rf"{name}: cannot be run \({reason}\)"):
            command.start()
        assert command.status == 127


def test_it_is_ended_gently_and_then_by_force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("collect.command.STOP_SECONDS", 0.3)
    gentle = Command(["sleep", "60"])
    gentle.start()
    assert gentle.stop() == -signal.SIGTERM
    stubborn = Command(
        [
            sys.executable,
            "-c",
            "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(60)",
        ]
    )
    stubborn.start()
    time.sleep(0.3)
    assert stubborn.stop() == -signal.SIGKILL


@pytest.mark.parametrize("started", [False, True])
def test_a_recording_that_failed_leaves_no_process_behind(started: bool) -> None:
    command = Command(["sleep", "60"])
    if started:
        command.start()
    command.abandon()
    with pytest.raises(ProcessLookupError):
        os.kill(command.pid, 0)
    command.abandon()


def test_it_has_the_environment_of_the_caller(tmp_path: Path) -> None:
    command = Command(["sh", "-c", f'echo "$WHO" > {tmp_path}/who'], os.environ | {"WHO": "the caller"})
    command.start()
    assert ended(command) == 0
    assert (tmp_path / "who").read_text() == "the caller\n"


def test_the_recorder_gives_up_privileges_and_the_command_keeps_them(tmp_path: Path) -> None:
    """Both of what /proc says of them: the bounding set is inherited, what may be used is not."""
    code = (
        "from pathlib import Path; from collect.command import Command; from collect.privileges import give_up; import time\n"
        f"command = Command(['sh', '-c', 'grep CapPrm /proc/self/status > {tmp_path}/command'])\n"
        f"give_up(Path({str(tmp_path)!r}), kprobes=False, hotplug=False, command=True)\n"
        "command.start()\n"
        "while command.poll() is None: time.sleep(0.01)\n"
        "print(open('/proc/self/status').read())"
    )
    before = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapPrm")]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    after = dict(line.split(":\t", 1) for line in done.stdout.splitlines() if ":\t" in line)
    assert (tmp_path / "command").read_text().splitlines() == before
    assert after["NoNewPrivs"] == "1"
    allowed = 1 << 39 | 1 << 34 | 1 << 5  # BPF, SYSLOG, KILL
    assert int(after["CapPrm"], 16) & ~allowed == 0
    assert int(after["CapEff"], 16) == int(after["CapPrm"], 16)


def test_the_first_ctrl_c_ends_and_the_second_aborts() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), Interrupts() as interrupts:
        assert not interrupts.seen
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupts.seen
        os.kill(os.getpid(), signal.SIGINT)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_terminal_that_closes_ends_and_nohup_holds() -> None:
    """However often it is told: the kernel, a shell and sudo each send SIGHUP."""
    before = signal.getsignal(signal.SIGHUP)
    try:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with Interrupts() as interrupts:
            for _ in range(3):
                os.kill(os.getpid(), signal.SIGHUP)
                assert interrupts.seen
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with Interrupts() as interrupts:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not interrupts.seen
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_is_told_to_a_terminal_that_closed_fails_nothing() -> None:
    code = (
        "import signal, sys, time\n"
        "from collect.command import Interrupts\n"
        "from collect.live import tell\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
        "with Interrupts() as interrupts:\n"
        "    tell('ready')\n"
        "    while not interrupts.seen: time.sleep(0.01)\n"
        "    try: sys.stderr.write('x'); sys.stderr.flush()\n"
        "    except OSError: pass\n"
        "    else: sys.exit(1)\n"
        "    tell('done')\n"
        "sys.exit(7)\n"
    )
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", code])
    told = b""
    while b"ready" not in told:
        told += os.read(terminal, 4096)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
