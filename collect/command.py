"""What a recording lasts as long as: a command, a time, or until Ctrl-C or its terminal closes."""

from __future__ import annotations

import contextlib
import os
import signal
import time
import warnings
from collections.abc import Mapping, Sequence
from types import FrameType, TracebackType

from collect.errors import HostError

__all__ = ["Command", "Interrupts"]

STOP_SECONDS = 5.0
POLL_SECONDS = 0.05
GO = b"g"


class Interrupts:
    """The first Ctrl-C ends the recording cleanly, the second aborts it. SIGTERM counts as a Ctrl-C.

    A terminal that closes ends it too (SIGHUP; not under nohup), however often it is told so: the kernel, the shell and sudo each do.
    """

    def __init__(self) -> None:
        self.seen = False

    def __enter__(self) -> Interrupts:
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup has it
            numbers.append(signal.SIGHUP)
        self._before = {number: signal.signal(number, self._handle) for number in numbers}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.seen and number != signal.SIGHUP:
            raise KeyboardInterrupt
        self.seen = True


class Command:
    """A child process that exists from now on and becomes the command at `start`.

    Forked before the recorder attaches and gives up its privileges, so the command has those of whoever called us: under
    sudo it runs as root, as it does under `sudo perf record`. Forking then also keeps it out of the recording.
    """

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self._arguments = list(arguments)
        self._environment = dict(os.environ if environment is None else environment)
        self.status: int | None = None
        self._started = False
        wait_end, self._go = os.pipe2(os.O_CLOEXEC)
        self._failed, tell_end = os.pipe2(os.O_CLOEXEC)
        with warnings.catch_warnings():
            # Other threads (numpy's) hold no lock that the few lines between fork and exec need.
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid = os.fork()
        if self.pid == 0:
            os.close(self._go)
            self._become(wait_end, tell_end)
        os.close(wait_end)
        os.close(tell_end)

    def _become(self, wait_end: int, tell_end: int) -> None:
        try:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            if os.read(wait_end, 1) == GO:
                os.execvpe(self._arguments[0], self._arguments, self._environment)
        except OSError as error:
            os.write(tell_end, (error.errno or 0).to_bytes(4, "little"))
        except BaseException:  # a Ctrl-C before exec: nothing may pass this point
            pass
        finally:
            os._exit(127)

    def start(self) -> None:
        """Let it run. Raises HostError if there is no such command."""
        self._started = True
        with contextlib.suppress(BrokenPipeError):  # a signal ended it while it waited: poll tells
            os.write(self._go, GO)
        os.close(self._go)
        told = os.read(self._failed, 4)  # nothing, once exec has closed it
        os.close(self._failed)
        if told:
            self._reap(0)
            reason = os.strerror(int.from_bytes(told, "little"))
            raise HostError(f"{self._arguments[0]}: cannot be run ({reason})")

    def poll(self) -> int | None:
        """Exit status (negative: the signal that ended it), or None while it runs."""
        if self.status is None:
            self._reap(os.WNOHANG)
        return self.status

    def stop(self) -> int:
        """End it, gently first; its exit status."""
        for number, seconds in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, STOP_SECONDS)):
            if self.poll() is not None:
                break
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)
            give_up = time.monotonic() + seconds
            while self.poll() is None and time.monotonic() < give_up:
                time.sleep(POLL_SECONDS)
        return self.status if self.status is not None else -signal.SIGKILL

    def abandon(self) -> None:
        """The recording failed, or is over: no process of ours is left behind, whether it was started or waits."""
        if self.status is not None:
            return
        if self._started:
            self.stop()
        else:
            os.close(self._go)
            os.close(self._failed)
            self._reap(0)

    def _reap(self, options: int) -> None:
        try:
            pid, status = os.waitpid(self.pid, options)
        except ChildProcessError:
            self.status = 0
            return
        if pid:
            self.status = os.waitstatus_to_exitcode(status)
