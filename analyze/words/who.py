"""Causes and tables of them as text for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from analyze.words.terminal import clean, wrapped

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["cause_text", "records", "stack_lines"]

MAX_STACK = 400
"""Characters of a stack that are printed."""

_WHO = {"collector": "our recorder", "before": "(before)"}


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as dicts of plain values."""
    return [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]


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
