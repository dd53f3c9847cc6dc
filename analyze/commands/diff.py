"""`directmap-analyze diff`: what changed between two moments, and whose doing it was."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from analyze.arguments import add_json, add_trace
from analyze.when import add_when, within
from analyze.words.terminal import clean, counted
from collect.command_line import Subparsers, add_command
from collect.errors import TraceError
from collect.trace import open_trace

if TYPE_CHECKING:
    from analyze.diff import Diff
    from analyze.when import Span

__all__ = ["add_to"]

MAX_SHOWN = 10
"""Rows of each kind that are printed; `--json` lists more."""


EXAMPLES = (
    ("directmap-analyze diff my-trace", "from the start to the end"),
    ("directmap-analyze diff my-trace --from 10% --to 50%", "between two moments"),
    ("directmap-analyze diff my-trace --from 12.5 --json", "from 12.5 seconds on, for programs"),
)


def add_to(commands: Subparsers) -> None:
    parser = add_command(commands, "diff", "what changed between two moments, and whose doing it was", EXAMPLES)
    add_trace(parser)
    add_when(parser, "--from", "the first moment", "start")
    add_when(parser, "--to", "the second moment", "end")
    parser.stray = "moments are given as --from TIME --to TIME"
    add_json(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from analyze.attribute import attribute
    from analyze.diff import diff
    from analyze.doubts import clock, warnings
    from analyze.history import History
    from analyze.reconstruct import rebuild

    trace = open_trace(options.directory)
    rebuilt = rebuild(trace)
    history = History(rebuilt.course)
    from_ns = within(getattr(options, "from"), history.span, "--from", trace.path)
    to_ns = within(options.to, history.span, "--to", trace.path)
    if from_ns > to_ns:
        raise TraceError(f"{trace.path}: --from comes after --to; swap them")
    makers = attribute(trace, rebuilt).makers
    del rebuilt  # its maps: of a large machine two more are needed now
    found = diff(history, makers, from_ns, to_ns)
    if options.json:
        print(json.dumps(found.to_json(), indent=1, allow_nan=False))
    else:
        print(f"{clean(options.directory.name or options.directory, 30)}, {_moments(found, history.span)}")
        print("\n".join([*clock(trace), *warnings(trace), *_lines(found, history.span)]))
    return 0


def _moments(found: Diff, span: Span) -> str:
    return f"from {span.seconds(found.from_ns):.3f} s to {span.seconds(found.to_ns):.3f} s"


def _lines(found: Diff, span: Span) -> list[str]:
    n_pages = int(found.attributes["n_pages"].sum())
    lines = [
        f"  in effect  {counted(found.n_changes, 'direct-map change')}",
        f"  1G ranges  {_transitions(found.ranges)}",
        f"  2M frames  {_transitions(found.frames)}",
        f"  pages      {n_pages:,} with other attributes (accessed and dirty left out)",
    ]
    if len(found.users):
        lines += ["", f"  {'by whom':<36}{'1G ranges':>12}{'2M frames':>12}{'pages':>12}"]
    for row in _rows(found.users):
        whose = f"{clean(row['user'], 12):<13}{clean(row['name'], 22)}"
        lines.append(f"  {whose:<36}{row['n_ranges']:>12,}{row['n_frames']:>12,}{row['n_pages']:>12,}")
    lines += _left(len(found.users))
    if len(found.attributes):
        lines += ["", f"  {'pages':<10}{'attributes before':<32}after"]
    for row in _rows(found.attributes):
        lines.append(f"  {row['n_pages']:<10,}{clean(row['flags_from'], 30):<32}{clean(row['flags_to'], 32)}")
    lines += _left(len(found.attributes))
    for title, table in (("1G ranges", found.ranges), ("2M frames", found.frames)):
        if len(table):
            lines += ["", f"  {title:<16}{'level':<12}{'at':>11}  by"]
        for row in _rows(table):
            level = f"{row['level_from']} -> {row['level_to']}"
            lines.append(f"  pfn {row['pfn']:<#12x}{level:<12}{_at(row, span):>11}  {_by(row)}")
        lines += _left(len(table))
    if len(found.pages):
        lines += ["", f"  {'pages':<28}{'at':>11}  by"]
    for row in _rows(found.pages):
        where = f"pfn {row['pfn']:#x}, {counted(row['n_pages'], 'page')}"
        lines.append(f"  {where:<28}{_at(row, span):>11}  {_by(row)}")
    return lines + _left(len(found.pages))


def _rows(table: Any) -> list[dict[str, Any]]:
    return table.head(MAX_SHOWN).to_dict("records")  # type: ignore[no-any-return]


def _left(n: int) -> list[str]:
    return [f"  and {n - MAX_SHOWN:,} more (--json)"] if n > MAX_SHOWN else []


def _transitions(table: Any) -> str:
    counts = table.groupby(["level_from", "level_to"]).size()
    parts = [f"{n:,} x {before} -> {after}" for (before, after), n in counts.items()]
    return f"{len(table):,} changed" + (f": {', '.join(parts)}" if parts else "")


def _at(row: dict[str, Any], span: Span) -> str:
    return f"{span.seconds(row['ts_ns']):.3f} s" if row["ts_ns"] >= 0 else ""


def _by(row: dict[str, Any]) -> str:
    name = f" {clean(row['name'], 16)}" if row["name"] else ""
    comm = f" ({clean(row['comm'], 15)})" if row["comm"] else ""
    return f"{clean(row['user'], 10)}{name}{comm}"
