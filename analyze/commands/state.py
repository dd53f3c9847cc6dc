"""`directmap-analyze state`: the map at a moment, by level, by zone and by attributes."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from analyze.arguments import add_json, add_trace
from analyze.when import add_when, within
from analyze.words.terminal import clean, counted, size
from collect.command_line import Subparsers, add_command
from collect.trace import open_trace

if TYPE_CHECKING:
    from analyze.state_summary import StateSummary
    from analyze.when import Span

__all__ = ["add_to"]

MAX_SHOWN = 20
"""Attribute words that are printed; `--json` lists all."""


EXAMPLES = (
    ("directmap-analyze state my-trace", "at the end of the recording"),
    ("directmap-analyze state my-trace --at 12.5", "12.5 seconds after its start"),
    ("directmap-analyze state my-trace --at 50% --json", "half-way through, for programs"),
)


def add_to(commands: Subparsers) -> None:
    parser = add_command(commands, "state", "the map at a moment: by level, by zone, by attributes", EXAMPLES)
    add_trace(parser)
    add_when(parser, "--at", "the moment", "end")
    add_json(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from analyze.course import load_course
    from analyze.doubts import clock, warnings
    from analyze.history import History
    from analyze.state_summary import summarize_state

    history = History(load_course(open_trace(options.directory)))
    found = summarize_state(history, within(options.at, history.span, "--at", options.directory))
    if options.json:
        print(json.dumps(found.to_json() | {"seconds": history.span.seconds(found.ts_ns)}, indent=1, allow_nan=False))
    else:
        print(f"{clean(options.directory.name or options.directory, 30)}, {_moment(found, history.span)}")
        print("\n".join([*clock(history.trace), *warnings(history.trace), *_lines(found)]))
    return 0


def _moment(found: StateSummary, span: Span) -> str:
    return f"at {span.seconds(found.ts_ns):.3f} s of {span.seconds(span.last_ns):.3f} s"


def _lines(found: StateSummary) -> list[str]:
    total = max(1, int(found.levels["n_pages"].sum()))
    under_way = f"; {counted(found.n_under_way, 'call')} under way" if found.n_under_way else ""
    lines = [f"  in effect  {found.n_changes:,} of {counted(found.n_all_changes, 'direct-map change')}{under_way}"]
    lines += ["", f"  {'level':<8}{'entries':>12}{'memory':>12}{'share':>9}"]
    for row in found.levels.itertuples(index=False):
        share = 100 * int(str(row.n_pages)) / total
        lines.append(f"  {row.level:<8}{row.n_leaves:>12,}{size(int(str(row.n_pages))):>12}{share:>8.1f}%")
    lines.append(f"  {counted(found.n_split_frames, '2M frame')} in 4K entries")
    lines += ["", f"  {'zone':<20}{'1G':>12}{'2M':>12}{'4K':>12}"]
    for zone, part in found.zones.groupby("zone", sort=False):
        pages = dict(zip(part["level"], part["n_pages"].tolist(), strict=True))
        cells = "".join(f"{size(pages.get(level, 0)):>12}" for level in ("1G", "2M", "4K"))
        lines.append(f"  {clean(zone, 20):<20}{cells}")
    lines += [f"  ({found.zone_note})", ""]
    lines.append(f"  {'level':<8}{'entries':>12}{'memory':>12}  attributes, without accessed and dirty")
    for row in found.attributes.head(MAX_SHOWN).itertuples(index=False):
        lines.append(f"  {row.level:<8}{row.n_leaves:>12,}{size(int(str(row.n_pages))):>12}  {clean(row.flags, 40)}")
    left = found.attributes.iloc[MAX_SHOWN:]
    if len(left):
        lines.append(
            f"  and {len(left):,} more, of {counted(int(left['n_leaves'].sum()), 'entry').replace('ys', 'ies')}"
        )
    return lines
