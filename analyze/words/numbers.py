"""Numbers as a reader wants them: sizes, counts, durations, shares."""

from __future__ import annotations

import re
from collections.abc import Sequence

from collect.schema import LEAF_PAGES, Level

__all__ = [
    "BYTES_PER_PAGE",
    "as_ascii",
    "count",
    "duration",
    "enumeration",
    "memory",
    "number",
    "share",
    "span",
    "splits",
]

BYTES_PER_PAGE = 4096 * LEAF_PAGES[Level.K4]

THIN = "\N{NARROW NO-BREAK SPACE}"

MINUTES_FROM = 600
"""Seconds from which on half a minute more or less is no matter."""

_UNITS = ((10**9, "s"), (10**6, "ms"), (10**3, "µs"), (1, "ns"))


def number(n: float) -> str:
    """A count, its thousands apart by commas, as in a terminal."""
    return f"{n:,.0f}"


def count(n: int, noun: str) -> str:
    """1 page, 2 pages."""
    return f"{number(n)} {noun}{'' if n == 1 else 's'}"


def splits(n_2m: int, n_1g: int) -> str:
    """So many entries of each size: "3 × 2M and 1 × 1G"."""
    parts = [f"{number(n)}{THIN}×{THIN}{size}" for n, size in ((n_2m, "2M"), (n_1g, "1G")) if n]
    return " and ".join(parts) or "nothing"


def memory(pages: float) -> str:
    """Pages of 4 KiB as a size."""
    size = pages * BYTES_PER_PAGE
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if size >= factor:
            return f"{size / factor:.{1 if size < 100 * factor else 0}f}{THIN}{unit}"
    return f"{size / 1024:.0f}{THIN}KiB"


def enumeration(parts: Sequence[str]) -> str:
    """a, b and c."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def duration(seconds: float) -> str:
    """A length of time, to what matters of it."""
    if seconds < 1.5:
        return f"{seconds * 1000:.0f}{THIN}ms"
    if seconds < MINUTES_FROM:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def span(ns: int) -> str:
    """Nanoseconds in the largest unit of which they fill one; what is left over is cut."""
    factor, unit = next((factor, unit) for factor, unit in _UNITS if ns >= factor)
    return f"{number(ns // factor)} {unit}"


def share(part: int, total: int) -> str:
    """Per cent."""
    return f"{100 * part / total:.1f}{THIN}%"


_ASCII = str.maketrans({"×": "x", "–": "-", "“": '"', "”": '"', "→": "->", "←": "<-", "·": ",", "…": "...", "µ": "u"})


def as_ascii(text: str) -> str:
    """Words of ours for a mail: no signs beyond ASCII; letters of a trace stay for `terminal.clean`."""
    return re.sub(r" +,", ",", text.replace(THIN, " ").translate(_ASCII))
