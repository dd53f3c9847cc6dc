"""Causes and tables of them as text for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from analyze.words.terminal import clean, wrapped

if TYPE_CHECKING:
    import pandas as pd

    from analyze.who import Who

__all__ = ["cause_text", "elsewhere", "elsewhere_text", "records", "stack_lines"]

MAX_STACK = 400
"""Characters of a stack that are printed."""

_ELSEWHERE = {"never_whole": "that never was one entry", "alike": "whose pages are all alike"}
_WHO = {"collector": "our recorder", "before": "(before)"}


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as dicts of plain values."""
    return [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]


def elsewhere(found: Who, pages: pd.DataFrame) -> dict[str, int]:
    """Of rows of `Who.special`, those that are special and keep nothing: how many lie in frames of which of `analyze.who.STATES`."""
    outside = pages[~pages["residue"].astype(bool) & ~pages["kept"].astype(bool)]
    states = found.frames.set_index("frame")["state"].reindex(outside["frame"])
    return {str(state): int(n) for state, n in states.value_counts().items()}


def elsewhere_text(found: Who, pages: pd.DataFrame) -> str:
    """The same behind a number of special pages: " (3 of them in a frame that never was one entry)"; nothing where all keep a frame."""
    there = elsewhere(found, pages)
    parts = [f"{there[state]:,} of them in a frame {what}" for state, what in _ELSEWHERE.items() if state in there]
    return f" ({', '.join(parts)})" if parts else ""


def cause_text(user: object, cause: object, most: int) -> str:
    """User and cause in at most `most` printable ASCII characters."""
    text = f"{_WHO.get(str(user), str(user))} {clean(cause, 400)}".strip()
    most = max(most, 12)
    if len(text) <= most:
        return text
    number = text.rpartition(" ")[2]  # of a region: what tells it from its neighbours
    if number.isdecimal() and len(number) < most - 8:
        return f"{text[: most - len(number) - 3].rstrip(', ')}.. {number}"
    return text[: most - 2] + ".."


def stack_lines(user: object, stack: object, most: int, indent: int = 10) -> list[str]:
    """The whole stack, under 80 columns, to stand below a `cause_text` that had to cut it; nothing where it did not."""
    if cause_text(user, stack, most) == cause_text(user, stack, MAX_STACK):
        return []
    return wrapped(clean(stack, MAX_STACK), indent)
