"""`directmap-analyze report`: levels over time, the map of memory, and who did it, as one page."""

from __future__ import annotations

import argparse
from pathlib import Path

from analyze.arguments import Subparsers, add_trace

__all__ = ["add_to"]


def add_to(commands: Subparsers) -> None:
    parser = commands.add_parser("report", help="levels over time, the map of memory, and who did it, as one page")
    add_trace(parser)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="directory for the report")
    parser.add_argument("--force", action="store_true", help="write over a report that is there")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from analyze.report import write_report

    print(write_report(options.directory, options.output, options.force))
    return 0
