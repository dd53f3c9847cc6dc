"""`directmap-analyze summary`: the report as text for a terminal or a mail, or as JSON."""

from __future__ import annotations

import argparse
import json

from analyze.arguments import add_json, add_trace
from collect.command_line import Subparsers, add_command

__all__ = ["add_to"]


EXAMPLES = (
    ("directmap-analyze summary my-trace", "health, the answer, and what it rests on"),
    ("directmap-analyze summary my-trace --json", "the same for programs, as report.json"),
)


def add_to(commands: Subparsers) -> None:
    parser = add_command(commands, "summary", "the report as text: ASCII, under 80 columns, fit for a mail", EXAMPLES)
    add_trace(parser)
    add_json(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from analyze.analysis import analyse
    from analyze.health import health
    from analyze.report.numbers import numbers
    from analyze.report.text import text_report
    from analyze.who import who

    analysis = analyse(options.directory)
    found, kept = health(analysis.trace, analysis), who(analysis.rebuilt, analysis.attribution)
    if options.json:
        print(json.dumps(numbers(analysis, found, kept), indent=1, allow_nan=False))
    else:
        print("\n".join(text_report(analysis, found, kept)))
    return 0
