"""`directmap-analyze`: questions to a trace, one module each."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from collect.command_line import OneLineParser, program, run_program
from collect.completion import add_completion
from collect.manual import add_manual

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
"""Each is a module `analyze.commands.NAME` with `add_to(subparsers)`, which names its options and sets `run(options)`.

What takes long to load (compiled code, a plotting library) they import in `run`, so that help and `info` need not wait.
"""

DOES = "Rebuild the direct map from a trace, prove it, and say whose doing it is."

EXAMPLES = (
    ("directmap-analyze summary my-trace", "start here: the answer in words"),
    ("directmap-analyze report my-trace -o out", "the same as a page, with pictures"),
    ("directmap-analyze verify my-trace", "is it exact, page by page?"),
    ("directmap-analyze who my-trace --at 50%", "who keeps the map split half-way"),
    ("directmap-analyze state my-trace --at 12.5", "the map 12.5 s after the start"),
    ("directmap-analyze diff my-trace --from 10%", "what changed since, by whom"),
    ("directmap-analyze compare before after", "two captures: what differs, why"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    options = _parser().parse_args(sys.argv[1:] if argv is None else argv)
    return run_program("directmap-analyze", lambda: int(options.run(options)))


def _parser() -> OneLineParser:
    parser, commands = program("directmap-analyze", DOES, EXAMPLES)
    for name in COMMANDS:
        import_module(f"analyze.commands.{name}").add_to(commands)
    add_completion(commands, parser)
    add_manual(commands, parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
