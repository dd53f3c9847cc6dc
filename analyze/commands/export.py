"""`directmap-analyze export`: the trace for ui.perfetto.dev, or its joined tables as Parquet or CSV."""

from __future__ import annotations

import argparse
from pathlib import Path

from analyze.arguments import add_trace
from collect.command_line import Subparsers, add_command

__all__ = ["add_to"]

FORMATS = ("perfetto", "parquet", "csv")


EXAMPLES = (
    ("directmap-analyze export my-trace -o my-trace.pftrace", "one file for <https://ui.perfetto.dev>"),
    ("directmap-analyze export my-trace -o tables --format parquet", "tables for pandas, DuckDB and polars"),
    ("directmap-analyze export my-trace -o tables --format csv", "the same tables as text"),
)


def add_to(commands: Subparsers) -> None:
    parser = add_command(
        commands, "export", "for ui.perfetto.dev, or tables with all names joined (Parquet, CSV)", EXAMPLES
    )
    add_trace(parser)
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="OUT", help="a file for perfetto, else a directory"
    )
    parser.add_argument("--format", choices=FORMATS, default="perfetto", help="what to write (default: perfetto)")
    parser.add_argument("--force", action="store_true", help="write over what is there")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from analyze.analysis import analyse
    from analyze.export.perfetto import write_perfetto
    from analyze.export.tables import write_tables
    from analyze.health import health
    from analyze.report.writer import claim_output
    from collect.errors import HostError

    out: Path = options.output
    if options.format != "perfetto":
        analysis = analyse(options.directory)
        claim_output(out, options.force)
        for path in write_tables(analysis, out, options.format):
            print(path)
        return 0
    if out.is_dir():
        raise HostError(f"{out}: is a directory; give a file with -o, such as {out / 'trace.pftrace'}")
    if out.exists() and not options.force:
        raise HostError(f"{out}: exists; choose another -o, or --force to write over it")
    analysis = analyse(options.directory)
    write_perfetto(analysis, health(analysis.trace, analysis), out)
    print(out)
    return 0
