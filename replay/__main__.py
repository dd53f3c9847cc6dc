"""`directmap-replay`: what if the kernel had had a cache? One module a command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from collect import __version__
from collect.command_line import OneLineParser, run_program

__all__ = ["main"]

COMMANDS = ("run", "compare", "sweep", "policies")
"""Each is a module `replay.command_NAME` with `add_to(subparsers)`, which names its options and sets `run(options)`.

What takes long to load (compiled code, a plotting library) they import in `run`, so that help need not wait.
"""

EXAMPLES = """\
How a recorded load would have gone with a cache for unmapped pages.

examples:
  directmap-replay run trace                   under every policy
  directmap-replay run trace -o out            the same, with plots and JSON
  directmap-replay compare before after        traces and policies on the same axes
  directmap-replay sweep trace --policy gfp-unmapped --over gfp-unmapped.refill-order=0:9:1
  directmap-replay policies                    what can be replayed, and what can be set
"""

STATUS = """\
exit status:
  0  done
  2  could not be read, replayed or written (one line on stderr says why and what to do)
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; exit status 0, or 2 with one line on stderr."""
    options = _parser().parse_args(sys.argv[1:] if argv is None else argv)
    return run_program("directmap-replay", lambda: int(options.run(options)))


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="directmap-replay",
        description=EXAMPLES,
        epilog=STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"directmap {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        import_module(f"replay.command_{name}").add_to(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
