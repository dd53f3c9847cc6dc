"""The lab's one exception: something a person can read and act upon; and how a program of the lab ends."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn


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
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupted)
    try:
        sys.exit(main())
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        sys.exit(error.status)
    except KeyboardInterrupt:
        sys.exit(130)


def _interrupted(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
