"""What must hold of a trace from a stranger: an answer, or one line that says what, where, and what to do.

Each target takes a directory and returns, or raises `Finding` (or anything else, which is a finding too).
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

from collect.errors import HostError, TraceError
from collect.schema import TABLES

__all__ = ["MOST_MEMORY", "MOST_SECONDS", "TARGETS", "Finding", "target"]

MOST_MEMORY = 1 << 30
"""Bytes of resident memory, the interpreter and its libraries included."""
MOST_SECONDS = 20
"""Of CPU time, for one small trace."""


class Finding(AssertionError):
    """Something that no trace may lead to."""


def _line(error: Exception, directory: Path) -> None:
    text = str(error)
    if not text or not text.isprintable():
        raise Finding(f"not one printable line: {text!r}") from error
    if len(text) > 1000:
        raise Finding(f"a line of {len(text)} characters: {text[:200]!r}") from error
    if str(directory) not in text:
        raise Finding(f"does not say where: {text!r}") from error


@contextlib.contextmanager
def _one_line(directory: Path) -> Iterator[None]:
    try:
        yield
    except (TraceError, HostError) as error:
        _line(error, directory)


def read(directory: Path, _: int) -> None:
    """Open it, read every table whole, and tell what it is."""
    from collect.trace import open_trace

    with _one_line(directory):
        trace = open_trace(directory)
        for name in TABLES:
            with _one_line(directory):
                trace.table(name)
    _command(directory, "analyze", ["info"])
    _command(directory, "analyze", ["info", "--json"])


def rebuilt(directory: Path, _: int) -> None:
    """Rebuild the state, verify and attribute it; the numbers of a report."""
    from analyze.report import view as report_view
    from analyze.report import writer as report

    out = directory.with_name(directory.name + "-numbers")
    with (
        _one_line(directory),
        mock.patch.object(report_view, "inline_svg", return_value=""),
        mock.patch.object(report, "figures", return_value=_NoPictures()),
    ):
        _page(report.write_report(directory, out, force=True).read_text(encoding="utf-8"))


class _NoPictures(dict[str, None]):
    """In place of the pictures, which take ten times as long as all the rest."""

    def __missing__(self, name: str) -> None:
        return None


def drawn(directory: Path, _: int) -> None:
    """The whole report, with its pictures."""
    from analyze.report.writer import write_report

    out = directory.with_name(directory.name + "-report")
    with _one_line(directory):
        _page(write_report(directory, out, force=True).read_text(encoding="utf-8"))


def replayed(directory: Path, _: int) -> None:
    """Read and replayed under every policy."""
    from replay.run import run_policies
    from replay.tables import text_table

    with _one_line(directory):
        results = run_policies(directory)
        json.dumps([result.to_json() for result in results], allow_nan=False)
        _output(text_table(results))


def recovered(directory: Path, _: int) -> None:
    """Finished from its journal, then read as any other."""
    from collect.recovery import recover

    with _one_line(directory):
        recover(directory)
        rebuilt(directory, 0)


def commanded(directory: Path, pick: int) -> None:
    """Given to commands: three of all ways to call those that ask for nothing but a trace, which by `pick`."""
    from analyze.__main__ import COMMANDS

    more = {"state": ["--at", "0.001"], "diff": ["--from", "0", "--to", "0.001"], "compare": [str(directory)]}
    calls = [[name, *more.get(name, []), *json_] for name in COMMANDS for json_ in ([], ["--json"])]
    calls = [call for call in calls if call[0] not in ("report", "export")]
    for form in ("perfetto", "parquet", "csv"):
        out = directory.with_name(f"{directory.name}-{form}")
        calls.append(["export", "-o", str(out), "--format", form, "--force"])
    for i in range(3):
        _command(directory, "analyze", calls[(pick + i * 7) % len(calls)])


TARGETS: dict[str, Callable[[Path, int], None]] = {
    "read": read,
    "rebuilt": rebuilt,
    "replayed": replayed,
    "recovered": recovered,
    "commanded": commanded,
    "drawn": drawn,
}


def target(name: str, directory: Path, pick: int) -> None:
    """Run one target with warnings as errors: a warning is a line on a user's terminal.

    `pick` chooses where a target does a part of what it could.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", PendingDeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        TARGETS[name](directory, pick)


def _command(directory: Path, package: str, words: list[str]) -> None:
    from importlib import import_module

    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        try:
            status = import_module(f"{package}.__main__").main([words[0], str(directory), *words[1:]])
        except SystemExit as exit_:
            status = exit_.code
    said = errors.getvalue()
    if status not in (0, 1, 2):
        raise Finding(f"{words}: exit status {status}")
    if status == 2 or said:
        if said.count("\n") != 1 or not said[:-1].isprintable():
            raise Finding(f"{words}: not one line on stderr: {said[:300]!r}")
        if status != 2:
            raise Finding(f"{words}: exit status {status}, but it said {said[:300]!r}")
    if "--json" in words and status != 2:
        json.loads(out.getvalue(), parse_constant=_no_constant)
    elif status != 2:
        _output(out.getvalue())


def _no_constant(text: str) -> None:
    raise Finding(f"JSON with {text}")


def _output(text: str) -> None:
    """No control characters, and no line that a terminal of 80 columns would break."""
    for line in text.split("\n"):
        if not line.isprintable():
            raise Finding(f"control characters in the output: {line[:300]!r}")


_SCRIPT = re.compile(r"<script|javascript:|\son\w+\s*=|<iframe|<img[^>]+src=[\"']?http", re.IGNORECASE)


def _page(page: str) -> None:
    body = page[page.find("<body") :]
    if "<evil>" in body:
        raise Finding("a name from the trace stands in the page as it is")
    if any(mark in body for mark in "\x1b\x07\u202e\u2066\u202d"):
        raise Finding("control or bidi characters in the page")
