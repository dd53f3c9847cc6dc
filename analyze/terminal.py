"""Text for a terminal of 80 columns, safe to print though it came from a trace."""

from __future__ import annotations

__all__ = ["clean", "counted"]


def clean(text: object, most: int = 60) -> str:
    """Text from a trace without escape codes or line breaks, at most `most` characters."""
    shown = "".join(c if c.isprintable() else "?" for c in str(text))
    return shown if len(shown) <= most else shown[: most - 1] + "…"


def counted(n: int, noun: str) -> str:
    """`1 page`, `2,048 pages`."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"
