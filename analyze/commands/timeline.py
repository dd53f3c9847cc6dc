"""`directmap-analyze timeline`: leaf entries, and splits by user, over time."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from analyze.arguments import add_json, add_trace
from analyze.words.terminal import COLUMNS, clean
from collect.command_line import Subparsers, add_command
from collect.trace import open_trace

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["add_to"]

BAR = 10
"""Least width of a bar that is drawn."""


EXAMPLES = (
    ("directmap-analyze timeline my-trace", "in 20 equal steps"),
    ("directmap-analyze timeline my-trace --steps 60 --json", "in 60, for programs"),
)


def add_to(commands: Subparsers) -> None:
    parser = add_command(commands, "timeline", "entries by level, and splits by user, over time", EXAMPLES)
    add_trace(parser)
    parser.add_argument("--steps", type=_steps, default=20, metavar="N", help="equal steps of time (default: 20)")
    add_json(parser)
    parser.set_defaults(run=_run)


def _steps(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= len(text) <= 6 or not 1 <= int(text) <= 100_000:
        raise argparse.ArgumentTypeError("give a number of steps from 1 to 100000")
    return int(text)


def _run(options: argparse.Namespace) -> int:
    from analyze.attribute import attribute
    from analyze.doubts import clock, warnings
    from analyze.history import span_of
    from analyze.losses import Doubt, lost_for
    from analyze.reconstruct import rebuild
    from analyze.timeline import timeline

    trace = open_trace(options.directory)
    rebuilt = rebuild(trace)
    table = timeline(rebuilt, attribute(trace, rebuilt), span_of(trace, rebuilt.snapshots), options.steps)
    lost = lost_for(trace.manifest["losses"], Doubt.MAP | Doubt.WHO)
    if options.json:
        print(json.dumps({"steps": table.to_dict("records"), "lost_events": lost}, indent=1, allow_nan=False))
        return 0
    print(f"{clean(options.directory.name or options.directory, 50)}: entries, and splits since the line above")
    print("\n".join([*clock(trace), *warnings(trace), *_lines(table)]))
    return 0


def _lines(table: pd.DataFrame) -> list[str]:
    """A table of as many users as fit, those with most splits first, the rest in one column; a bar where there is room."""
    from analyze.users import USER_NAMES

    fixed = [f"{seconds:.2f}" for seconds in table["seconds"]]
    columns = [("seconds", fixed)]
    columns += [(title, [f"{n:,}" for n in table[name]]) for title, name in (("4K", "k4"), ("2M", "m2"), ("1G", "g1"))]
    splits = table["splits_2m"] + table["splits_1g"]
    totals = {name: int(table[name].to_numpy(dtype="int64").sum()) for name in USER_NAMES}
    users = sorted((name for name in USER_NAMES if totals[name]), key=lambda name: -totals[name])
    cells = {name: [f"{n:,}" if n else "." for n in table[name]] for name in users}
    while True:
        shown = [*columns, *((name, cells[name]) for name in users)]
        rest = splits - table[users].sum(axis=1)
        if rest.any():
            shown.append(("rest", [f"{n:,}" if n else "." for n in rest]))
        widths = [max(len(title), *map(len, column)) for title, column in shown]
        used = sum(widths) + 2 * (len(widths) - 1)
        if used <= COLUMNS or not users:
            break
        users.pop()
    lines = ["  ".join(f"{title:>{width}}" for (title, _), width in zip(shown, widths, strict=True))]
    room = COLUMNS - used - 2
    heights = [int(n) for n in splits.tolist()]
    most = max(1, *heights)
    for i in range(len(table)):
        line = "  ".join(f"{column[i]:>{width}}" for (_, column), width in zip(shown, widths, strict=True))
        bar = "#" * -(-heights[i] * min(room, 30) // most) if room >= BAR else ""
        lines.append(f"{line}  {bar}".rstrip())
    total = f"{int(table['splits_2m'].sum()):,} x 2M and {int(table['splits_1g'].sum()):,} x 1G split in all"
    return [*lines, total]
