"""The lab's one exception: something a person can read and act upon; and how a program of the lab ends, and those that it runs."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, NoReturn

_END = (signal.SIGTERM, signal.SIGHUP)


class LabError(Exception):
    """What was found, where, and what to do next. The command prints it and exits with its status."""

    status = 2


class GuestLost(LabError):
    """The guest did not come up, died, or ran out of time."""

    status = 125


def leave(main: Callable[[], int]) -> NoReturn:
    """Run a program and exit: with its status, with one message and its own for a LabError, with 130 for Ctrl-C.

    A program that is asked to end, or whose terminal goes away, ends its guests as with Ctrl-C: they are in sessions of their own.
    """
    for number in _END:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, _interrupted)
    try:
        sys.exit(main())
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        sys.exit(error.status)
    except KeyboardInterrupt:
        sys.exit(130)


def _interrupted(number: int, frame: FrameType | None) -> None:
    for other in _END:  # what follows may not cut short the ending of the guests
        signal.signal(other, signal.SIG_IGN)
    raise KeyboardInterrupt


def status_of(argv: Sequence[str], **options: Any) -> int:
    """The exit status of a program of the lab. It has guests: where this one is to end, it is asked to, and waited for."""
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, **options) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.terminate()
            process.wait()
            raise
