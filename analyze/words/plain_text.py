"""Text from a trace, made fit to show; apart from the page, so that whoever wants only this loads no plotting library."""

from __future__ import annotations

import unicodedata

__all__ = ["plain"]


def plain(text: str, longest: int = 200) -> str:
    """Text from a trace, fit for a page, a file and a terminal: no control, format or private characters, not too long.

    Among what goes are escape sequences of terminals and marks that turn the direction of writing.
    """
    kept = "".join(c if unicodedata.category(c)[0] != "C" else "\N{REPLACEMENT CHARACTER}" for c in text[: longest * 4])
    return kept if len(kept) <= longest else kept[: longest - 1] + "…"
