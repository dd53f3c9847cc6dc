"""Trace -> state, attribution, report. From Python: `open_trace`, described in docs/library.md."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from analyze.library import OpenedTrace

__all__ = ["open_trace"]


def open_trace(directory: Path | str) -> OpenedTrace:
    """Open a trace for questions: its tables, the map at any moment, and who did it, as pandas DataFrames.

    Nothing is read but the manifest and the footers, until it is asked for. Raises collect.errors.TraceError.
    """
    from analyze.library import OpenedTrace
    from collect.trace import open_trace as open_files

    return OpenedTrace(open_files(directory))
