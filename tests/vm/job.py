"""Runs one command in a guest and brings back its output, its results and its exit status."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from tests.vm import cache, initramfs, kernels, machine, parcels, shell, userland
from tests.vm.errors import GuestLost, LabError

CHECKOUT = Path(__file__).resolve().parents[2]
UP_SECONDS = 240
_TAIL_LINES = 40


@dataclass(frozen=True)
class Job:
    """What to run, and on what."""

    argv: list[str]
    kernel: kernels.Kernel
    userland: userland.Userland
    hardware: machine.Hardware
    out: Path  # the host's directory behind /out
    timeout: float = 900.0
    systemd: bool = False
    keep: bool = False
    prelude: str = ""  # shell lines to run in the guest before the command
    environment: dict[str, str] = field(default_factory=dict)


def run(job: Job) -> int:
    """Boot the guest, run the job, stream its output to ours, and return its exit status."""
    if shell.find(machine.QEMU) is None:
        raise LabError("QEMU is not installed. Run: sudo python3 -m tests.vm setup")
    home = Path(tempfile.mkdtemp(prefix="directmap-lab-"))
    try:
        return _Run(job, home).status()
    finally:
        if job.keep:
            cache.say(f"kept the console and the guest's files in {home}")
        else:
            shutil.rmtree(home, ignore_errors=True)


class _Run:
    """One boot. Its threads copy the guest's ports to our stdout and stderr."""

    def __init__(self, job: Job, home: Path) -> None:
        self._job = job
        self._home = home
        self._up = threading.Event()
        self._status: int | None = None
        self._started = time.monotonic()

    def _command(self) -> bytes:
        lines = [f"export {key}={shlex.quote(value)}" for key, value in self._job.environment.items()]
        if self._job.prelude:
            lines.append(self._job.prelude)
        lines.append("exec " + shlex.join(self._job.argv))
        return ("\n".join(lines) + "\n").encode()

    def _initrd(self) -> Path:
        files = {"command": self._command()}
        if self._job.systemd:
            files["use-systemd"] = b""
        if not self._job.kernel.shares:
            files["no-shares"] = b""
        if self._job.hardware.vmlinuz:
            files["vmlinuz"] = self._job.kernel.vmlinuz.read_bytes()
        path = self._home / "initrd"
        path.write_bytes(self._job.kernel.initramfs.read_bytes() + initramfs.job(files))
        return path

    def _control(self, pipe: BinaryIO) -> None:
        for line in pipe:
            word, _, rest = line.decode("ascii", "replace").strip().partition(" ")
            if word == "up":
                self._up.set()
            elif word == "exit" and rest.isdigit():
                self._status = int(rest)

    def status(self) -> int:
        """Boot and wait."""
        console = self._home / "console"
        console.touch()
        ends: list[int] = []
        threads: list[threading.Thread] = []

        def port(consume: Callable[[BinaryIO], None]) -> str:
            readable, writable = os.pipe()
            ends.append(writable)

            def pump() -> None:
                with os.fdopen(readable, "rb", buffering=0) as pipe:
                    consume(pipe)

            threads.append(threading.Thread(target=pump, daemon=True))
            return f"/dev/fd/{writable}"

        wiring = machine.Wiring(
            console=console,
            out=port(_copier(sys.stdout.buffer)),
            err=port(_copier(sys.stderr.buffer)),
            control=port(self._control),
            monitor=self._home / "monitor",
        )
        shares: dict[str, tuple[Path, bool]] = {}
        disks: list[tuple[Path, bool]] = []
        if self._job.kernel.shares:
            shares = {"repo": (CHECKOUT, True), "out": (self._job.out, False)}
        else:
            results = parcels.empty_results(self._home)
            disks = [(parcels.pack_checkout(CHECKOUT, self._home), False), (results, True)]
        argv = machine.command(
            self._job.hardware,
            self._job.kernel,
            self._job.userland,
            self._initrd(),
            shares,
            disks,
            wiring,
        )
        errors = self._home / "qemu.stderr"
        with errors.open("wb") as qemu_stderr:
            # Its own process group: Ctrl-C reaches us, and we end the guest ourselves.
            qemu = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=qemu_stderr,
                stderr=qemu_stderr,
                pass_fds=ends,
                start_new_session=True,
            )
        for end in ends:
            os.close(end)
        for thread in threads:
            thread.start()
        try:
            reason = self._wait(qemu)
        finally:
            if qemu.poll() is None:
                qemu.kill()
            qemu.wait()
            for thread in threads:
                thread.join(timeout=5)
        if self._status is not None:
            if disks:
                parcels.unpack_results(results, self._job.out)
            return self._status
        said = errors.read_text(errors="replace").strip()
        raise GuestLost("\n".join(filter(None, (reason, said, _tail(console)))))

    def _wait(self, qemu: subprocess.Popen[bytes]) -> str:
        """Wait for QEMU to end; say why there is no exit status if there is none."""
        limit = self._started + self._job.timeout
        reported_at: float | None = None
        while True:
            try:
                qemu.wait(timeout=0.2)
                break
            except subprocess.TimeoutExpired:
                now = time.monotonic()
            if self._status is not None:
                # The guest said how it ended; give it a moment to switch itself off.
                reported_at = reported_at or now
                if now - reported_at > 5:
                    return ""
            elif not self._up.is_set() and now - self._started > UP_SECONDS:
                return f"The guest did not come up within {UP_SECONDS} s."
            elif now > limit:
                return f"The job did not end within {self._job.timeout:.0f} s.\nGive it more with --timeout SECONDS."
        release = self._job.kernel.release
        if not self._up.is_set():
            return f"QEMU ended (status {qemu.returncode}) before the guest ({release}) was up."
        return f"The guest ({release}) died before the job ended."


def _copier(target: BinaryIO) -> Callable[[BinaryIO], None]:
    def copy(pipe: BinaryIO) -> None:
        while chunk := pipe.read(65536):
            target.write(chunk)
            target.flush()

    return copy


def _tail(console: Path) -> str:
    lines = console.read_text(errors="replace").splitlines()[-_TAIL_LINES:]
    if not lines:
        return "Its console said nothing."
    return "The last lines of its console:\n" + "\n".join(f"    {line.rstrip()}" for line in lines)
