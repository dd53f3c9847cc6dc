"""`directmap-replay policies`: what can be replayed, and what can be set."""

from __future__ import annotations

import argparse
import json
import sys

from collect.command_line import Subparsers, add_command
from replay.arguments import add_json

__all__ = ["add_to"]

EXAMPLES = (
    ("directmap-replay policies", "each with its parameters, what they may be and where they come from"),
    ("directmap-replay policies --json", "the same for programs"),
)


def add_to(commands: Subparsers) -> None:
    parser = add_command(commands, "policies", "list the policies with their parameters", EXAMPLES)
    add_json(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from replay.tables import policies_json, policies_table

    if options.json:
        print(json.dumps({"policies": policies_json()}, allow_nan=False, indent=1))
    else:
        sys.stdout.write(policies_table())
    return 0
