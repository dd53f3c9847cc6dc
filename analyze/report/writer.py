"""Writes the report of a trace: one self-contained page, its pictures as files, its numbers as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from analyze.analysis import Analysis, analyse
from analyze.health import health
from analyze.plots.style import save
from analyze.report.figures import figures
from analyze.report.numbers import numbers
from analyze.report.page import TraceView, render
from analyze.report.users import users
from analyze.report.view import view
from analyze.who import who
from collect.errors import HostError
from collect.trace import open_trace

__all__ = ["NUMBERS", "PAGE", "claim_output", "write_analysis", "write_page", "write_report", "writing"]

PAGE = "report.html"
NUMBERS = "report.json"
_FORMATS = (".svg", ".pdf", ".png")


def write_report(trace_dir: Path, out: Path, force: bool = False) -> Path:
    """Analyse the trace in `trace_dir` and write its report into the directory `out`; returns the page's path.

    Raises TraceError if the trace cannot be read, HostError if `out` is in use (without `force`) or cannot be written.
    """
    open_trace(trace_dir)  # so that a damaged trace leaves no empty directory behind
    claim_output(out, force)
    write_page(out / PAGE, "report.html", view=write_analysis(analyse(trace_dir), out))
    return out / PAGE


def write_analysis(analysis: Analysis, out: Path, slug: str = "trace") -> TraceView:
    """Write report.json and the pictures (SVG, PDF, PNG) into `out`; returns what a page shows of it. Raises HostError."""
    found, kept, split_by = (
        health(analysis.trace, analysis),
        who(analysis.rebuilt, analysis.attribution),
        users(analysis),
    )
    drawn = figures(analysis, found, split_by)
    files = {name: [f"{name}{suffix}" for suffix in _FORMATS] for name in drawn}
    seen = view(analysis, found, kept, split_by, drawn, slug=slug, files=files)
    with writing(out):
        for name, figure in drawn.items():
            for file in files[name]:
                save(figure, out / file)
        text = json.dumps(numbers(analysis, found, kept), indent=1, allow_nan=False)
        (out / NUMBERS).write_text(text + "\n", encoding="utf-8")
    return seen


def write_page(path: Path, template: str, *, templates: Sequence[Path] = (), **context: Any) -> None:
    """Fill in a template (see `page.render`) and write the page. Raises HostError."""
    text = render(template, templates=templates, **context)
    with writing(path.parent):
        path.write_text(text, encoding="utf-8")


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Turns what the system says when a file of `out` cannot be written into a HostError."""
    try:
        yield
    except OSError as error:
        raise HostError(f"{out}: cannot be written ({error.strerror}); choose another -o") from None


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
