"""Text for a terminal of 80 columns and for mail: ASCII alone, safe to print though it came from a trace."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

__all__ = ["COLUMNS", "clean", "counted", "size", "table", "wrapped"]

COLUMNS = 79


def clean(text: object, most: int = 60) -> str:
    """Text from a trace in ASCII, without escape codes or line breaks, at most `most` characters.

    Letters beyond ASCII are written as Python writes them (`\\xe9`), what cannot be printed is a question mark.
    """
    shown = "".join(c if c.isprintable() else "?" for c in str(text)[: most * 4])
    shown = shown.encode("ascii", "backslashreplace").decode("ascii")
    return shown if len(shown) <= most else shown[: most - 3] + "..." if most > 3 else shown[:most]


def counted(n: int, noun: str) -> str:
    """`1 page`, `2,048 pages`."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def wrapped(text: str, indent: int = 0, hang: int = 0, columns: int = COLUMNS) -> list[str]:
    """Lines of at most `columns`: `indent` spaces before each, `hang` more before all but the first. Splits long words."""
    return textwrap.wrap(
        text,
        columns,
        initial_indent=" " * indent,
        subsequent_indent=" " * (indent + hang),
        break_on_hyphens=False,
    ) or [""]


def table(head: Sequence[str], rows: Sequence[Sequence[str]], indent: int = 2, columns: int = COLUMNS) -> list[str]:
    """Lines of a table: the first column to the left, the others to the right; too wide a first column is cut."""
    cells = [list(head), *[list(row) for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    widths[0] = min(widths[0], columns - indent - sum(width + 2 for width in widths[1:]))
    lines = []
    for row in cells:
        first = row[0] if len(row[0]) <= widths[0] else row[0][: widths[0] - 3] + "..."
        rest = "".join(f"  {cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))
        lines.append((" " * indent + f"{first:<{widths[0]}}" + rest).rstrip())
    return lines


def size(pages: int) -> str:
    """Pages of 4 KiB as a size: `12.3 MiB`, `0`."""
    n_bytes = pages * 4096
    for unit, factor in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20)):
        if n_bytes >= factor:
            return f"{n_bytes / factor:.1f} {unit}"
    return f"{n_bytes >> 10} KiB" if pages else "0"
