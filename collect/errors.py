"""The two exceptions of directmap. Both carry one line for people: what was found, where, what to do next.

Commands print the message to stderr and leave with exit status 2; a traceback never reaches a user.
"""

from __future__ import annotations

__all__ = ["HostError", "TraceError"]


class TraceError(Exception):
    """A trace cannot be read, is damaged, or is not a trace at all."""


class HostError(Exception):
    """This machine, kernel or environment cannot do what was asked (no root, no bcc, a missing symbol, a full disk)."""
