"""The lab's one exception: something a person can read and act upon; and how a program of the lab ends."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn


class LabError(Exception):
    """What was found, where, and what to do next. The command prints it and exits with status 2."""


class GuestLost(LabError):
    """The guest did not come up, died, or ran out of time. The command exits with status 125."""


def leave(main: Callable[[], int]) -> NoReturn:
    """Run a program and exit: with its status, with 2 and one message for a LabError, with 130 for Ctrl-C."""
    try:
        sys.exit(main())
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
