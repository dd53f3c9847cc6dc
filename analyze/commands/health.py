"""`directmap-analyze health`: what was lost and when, what is explained, and which conclusions that puts in doubt."""

from __future__ import annotations

import argparse
import json

from analyze.arguments import add_json, add_trace
from analyze.words.terminal import clean
from collect.command_line import Subparsers, add_command

__all__ = ["add_to"]


EXAMPLES = (
    ("directmap-analyze health my-trace", "look at this before you believe a number"),
    ("directmap-analyze health my-trace --json", "the same for programs"),
)


def add_to(commands: Subparsers) -> None:
    parser = add_command(
        commands, "health", "what was lost and when, and which conclusions that puts in doubt", EXAMPLES
    )
    add_trace(parser)
    add_json(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from analyze.analysis import analyse_trace
    from analyze.health import health
    from analyze.words.health import health_lines, verdict_lines
    from collect.trace import open_trace

    trace = open_trace(options.directory)
    analysis = None if trace.manifest["sampling"].get("only_pages") else analyse_trace(trace)
    found = health(trace, analysis)
    if options.json:
        print(json.dumps(found.to_json(), indent=1, allow_nan=False))
    else:
        print("\n".join([clean(found.trace), *verdict_lines(found), *health_lines(found)]))
    return 0
