"""Writes the report of a trace: one self-contained page, its pictures as files, its numbers as JSON."""

from __future__ import annotations

import json
from pathlib import Path

from analyze.analysis import Analysis, analyse
from analyze.health import health
from analyze.page import TraceView, render
from analyze.plots_style import save
from analyze.report_figures import figures
from analyze.report_numbers import numbers
from analyze.report_view import view
from analyze.who import who
from collect.errors import HostError
from collect.trace import open_trace

__all__ = ["PAGE", "claim_output", "write_analysis", "write_report"]

PAGE = "report.html"
_FORMATS = (".svg", ".pdf", ".png")


def write_report(trace_dir: Path, out: Path, force: bool = False) -> Path:
    """Analyse the trace in `trace_dir` and write its report into the directory `out`; returns the page's path.

    Raises TraceError if the trace cannot be read, HostError if `out` is in use (without `force`) or cannot be written.
    """
    open_trace(trace_dir)  # so that a damaged trace leaves no empty directory behind
    claim_output(out, force)
    write_analysis(analyse(trace_dir), out)
    return out / PAGE


def write_analysis(analysis: Analysis, out: Path, slug: str = "trace") -> TraceView:
    """Write report.html, report.json and the pictures (SVG, PDF, PNG) into `out`; returns what the page shows. Raises HostError."""
    drawn = figures(analysis)
    files = {name: [f"{name}{suffix}" for suffix in _FORMATS] for name in drawn}
    found, kept = health(analysis.trace, analysis), who(analysis.rebuilt, analysis.attribution)
    seen = view(analysis, found, kept, drawn, slug=slug, files=files)
    try:
        for name, figure in drawn.items():
            for file in files[name]:
                save(figure, out / file)
        text = json.dumps(numbers(analysis, found, kept), indent=1, allow_nan=False)
        (out / "report.json").write_text(text + "\n", encoding="utf-8")
        (out / PAGE).write_text(render("report.html", view=seen), encoding="utf-8")
    except OSError as error:
        raise HostError(f"{out}: cannot be written ({error.strerror}); choose another -o") from None
    return seen


def claim_output(out: Path, force: bool) -> None:
    """Make the directory `out`; refuse one that holds anything unless `force` is given. Nothing is deleted. Raises HostError."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        held = sorted(path.name for path in out.iterdir())
    except FileExistsError:
        raise HostError(f"{out}: is a file; give a directory with -o") from None
    except OSError as error:
        raise HostError(f"{out}: cannot be written ({error.strerror}); choose another -o") from None
    if held and not force:
        raise HostError(f"{out}: not empty (holds {held[0]!r}); choose another -o, or --force to write over it")
