"""`directmap-analyze`: questions to a trace, one module each."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from collect import __version__
from collect.command_line import OneLineParser, run_program

__all__ = ["main"]

COMMANDS = (
    "summary",
    "report",
    "health",
    "verify",
    "who",
    "state",
    "timeline",
    "diff",
    "compare",
    "pages",
    "export",
    "info",
)
"""Each is a module `analyze.command_NAME` with `add_to(subparsers)`, which names its options and sets `run(options)`.

What takes long to load (compiled code, a plotting library) they import in `run`, so that help and `info` need not wait.
"""

EXAMPLES = """\
examples:
  directmap-analyze summary trace              start here: health, the answer, and what it rests on
  directmap-analyze report trace -o out        the same as a page, with pictures and JSON
  directmap-analyze verify trace --json        is the trace exact, page by page? for programs
  directmap-analyze who trace --at 50%         who keeps the map split half-way through, and what would heal it
  directmap-analyze state trace --at 12.5      the map 12.5 seconds after the start, by level and attributes
  directmap-analyze diff trace --from 10%      what has changed since then, and whose doing it was
  directmap-analyze compare before after       two captures: what differs, and whose doing it is
  directmap-analyze export trace -o t.pftrace  for ui.perfetto.dev; or --format parquet, csv: every name joined
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
    return run_program("directmap-analyze", lambda: int(options.run(options)))


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="directmap-analyze",
        description=EXAMPLES,
        epilog=STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"directmap {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name in COMMANDS:
        import_module(f"analyze.command_{name}").add_to(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
