"""The lab's one exception: something a person can read and act upon."""

from __future__ import annotations


class LabError(Exception):
    """What was found, where, and what to do next. The command prints it and exits with status 2."""


class GuestLost(LabError):
    """The guest did not come up, died, or ran out of time. The command exits with status 125."""
