"""`directmap-replay`: what if the kernel had had a cache? One module a command."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from collect.command_line import OneLineParser, program, run_program
from collect.completion import add_completion
from collect.manual import add_manual

__all__ = ["main"]

COMMANDS = ("run", "compare", "sweep", "policies")
"""Each is a module `replay.commands.NAME` with `add_to(subparsers)`, which names its options and sets `run(options)`.

What takes long to load (compiled code, a plotting library) they import in `run`, so that help need not wait.
"""

EXAMPLES = (
    ("directmap-replay run my-trace", "under every policy"),
    ("directmap-replay run my-trace -o out", "the same, with plots and JSON"),
    ("directmap-replay compare before after", "traces and policies side by side"),
    ("directmap-replay policies", "what can be replayed, and what can be set"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; exit status 0, or 2 with one line on stderr."""
    options = _parser().parse_args(sys.argv[1:] if argv is None else argv)
    return run_program("directmap-replay", lambda: int(options.run(options)))


def _parser() -> OneLineParser:
    does = "Replay a recorded load as if the kernel had had a cache for unmapped pages."
    parser, commands = program("directmap-replay", does, EXAMPLES)
    for name in COMMANDS:
        import_module(f"replay.commands.{name}").add_to(commands)
    add_completion(commands, parser)
    add_manual(commands, parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
