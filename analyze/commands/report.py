"""`directmap-analyze report`: levels over time, the map of memory, and who did it, as one page."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from analyze.arguments import add_json, add_trace
from collect.command_line import Subparsers, add_command

__all__ = ["add_to"]


EXAMPLES = (
    ("directmap-analyze report my-trace -o my-report", "a page without outside parts, its plots, its numbers as JSON"),
    (
        "directmap-analyze report my-trace -o my-report --json",
        "the same, and the numbers on stdout instead of the page's path",
    ),
)


def add_to(commands: Subparsers) -> None:
    parser = add_command(
        commands,
        "report",
        "levels over time, the map of memory, and who did it, as one page",
        EXAMPLES,
        more="The page is self-contained: it can be mailed, and opened without a network. The plots stand beside it as SVG, PDF and PNG.",
    )
    add_trace(parser)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="directory for the report")
    add_json(parser)
    parser.add_argument("--force", action="store_true", help="write over a report that is there")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from analyze.report.writer import NUMBERS, write_report

    page = write_report(options.directory, options.output, options.force)
    if options.json:
        print((page.parent / NUMBERS).read_text(encoding="utf-8"), end="")
        print(f"report: {page}", file=sys.stderr)
    else:
        print(page)
    return 0
