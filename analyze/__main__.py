"""`directmap-analyze`: verify, info, report."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from collect import __version__
from collect.errors import HostError, TraceError

__all__ = ["main"]

EXAMPLES = """\
examples:
  directmap-analyze report trace -o out        who broke the direct map up: one page, pictures, JSON
  directmap-analyze verify trace               is the trace exact, page by page?
  directmap-analyze verify trace --json        the same for programs
  directmap-analyze info trace                 what was recorded, where, and what was lost
"""

STATUS = """\
exit status:
  0  done; for verify: exact
  1  verify: read, but not exact
  2  could not be read or written (one line on stderr says why and what to do)
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    options = _parser().parse_args(sys.argv[1:] if argv is None else argv)
    try:
        status = int(options.run(options))
        sys.stdout.flush()
        return status
    except (HostError, TraceError) as error:
        print(f"directmap-analyze: {error}", file=sys.stderr)
        return 2
    except MemoryError:
        print("directmap-analyze: out of memory; analyze the trace on a larger machine", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output went away; let nobody flush into its pipe again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print("directmap-analyze: aborted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="directmap-analyze",
        description=EXAMPLES,
        epilog=STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"directmap {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    report = commands.add_parser("report", help="levels over time, the map of memory, and who did it, as one page")
    report.add_argument("directory", type=Path, metavar="DIR", help="a trace")
    report.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="directory for the report")
    report.add_argument("--force", action="store_true", help="write over a report that is there")
    report.set_defaults(run=_report)

    verify = commands.add_parser("verify", help="hold the rebuilt state against the snapshots, page by page")
    verify.add_argument("directory", type=Path, metavar="DIR", help="a trace")
    verify.add_argument("--json", action="store_true", help="for programs")
    verify.set_defaults(run=_verify)

    info = commands.add_parser("info", help="what was recorded, where, and what was lost")
    info.add_argument("directory", type=Path, metavar="DIR", help="a trace")
    info.add_argument("--json", action="store_true", help="for programs")
    info.set_defaults(run=_info)
    return parser


# Imports stand inside the commands: `info` need not wait for compiled code, nor `verify` for a plotting library.


def _report(options: argparse.Namespace) -> int:
    from analyze.report import write_report

    print(write_report(options.directory, options.output, options.force))
    return 0


def _verify(options: argparse.Namespace) -> int:
    from analyze.command_verify import run

    return run(options.directory, as_json=options.json)


def _info(options: argparse.Namespace) -> int:
    from analyze.command_info import run

    return run(options.directory, as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
