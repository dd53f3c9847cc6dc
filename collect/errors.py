"""The two exceptions of directmap. Both carry one line for people: what was found, where, what to do next.

Commands print the message to stderr and leave with exit status 2; a traceback never reaches a user.
"""

from __future__ import annotations

__all__ = ["HostError", "TraceError"]


class _OneLine(Exception):
    """An exception whose text is one line that is safe to print, whatever names from a trace or library stand in it."""

    def __init__(self, line: str) -> None:
        super().__init__("".join(c if c.isprintable() else "?" for c in line))


class TraceError(_OneLine):
    """A trace cannot be read, is damaged, or is not a trace at all."""


class HostError(_OneLine):
    """This machine, kernel or environment cannot do what was asked (no root, no bcc, a missing symbol, a full disk)."""
