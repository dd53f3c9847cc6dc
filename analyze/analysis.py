"""A trace with all that a report says of it worked out: opened, rebuilt, verified, attributed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analyze.attribute import Attribution, attribute
from analyze.pages.beside import pages_beside
from analyze.pages.events import PageEvents
from analyze.reconstruct import Rebuild, rebuild
from analyze.verify import verify
from collect.trace import Trace, open_trace

__all__ = ["Analysis", "analyse", "analyse_trace"]


@dataclass(frozen=True)
class Analysis:
    """A trace with all that was worked out from it."""

    trace: Trace
    rebuilt: Rebuild
    verification: dict[str, Any]
    """`Verification.to_json()`."""
    attribution: Attribution
    pages: PageEvents | None = None
    """None where the trace holds no page event."""

    @property
    def duration_s(self) -> float:
        """Length of the recording; of a recovered one, up to the last thing known."""
        manifest = self.trace.manifest
        end = max(manifest["ts_end_ns"], int(self.rebuilt.levels["ts_ns"].iloc[-1]))
        return float(max(end - manifest["ts_start_ns"], 0)) / 1e9


def analyse(trace_dir: Path) -> Analysis:
    """Open, rebuild, verify and attribute a trace. Raises TraceError."""
    return analyse_trace(open_trace(trace_dir))


def analyse_trace(trace: Trace) -> Analysis:
    """Rebuild, verify and attribute an opened trace, and go through its page events. Raises TraceError."""
    with pages_beside(trace) as pages:
        rebuilt = rebuild(trace)
        return Analysis(trace, rebuilt, verify(trace, rebuilt).to_json(), attribute(trace, rebuilt), pages())
