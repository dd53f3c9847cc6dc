"""`directmap-replay run DIR` and `directmap-replay policies`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from collect import __version__
from collect.command_line import OneLineParser, run_program
from collect.errors import TraceError

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; exit status 0, or 2 with one line on stderr."""
    parser = OneLineParser(
        prog="directmap-replay", description="How a recorded load would have gone with a cache for unmapped pages."
    )
    parser.add_argument("--version", action="version", version=f"directmap {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="replay a trace under policies", description=_run.__doc__)
    run.add_argument("trace", type=Path, metavar="DIR", help="the directory that directmap-collect record wrote")
    run.add_argument(
        "--policy",
        action="extend",
        nargs="+",
        default=[],
        metavar="NAME",
        help="policies to replay, as NAME, NAME:parameter=value,... or NAME+merge (default: all; see `policies`)",
    )
    run.add_argument(
        "--set",
        action="append",
        default=[],
        dest="settings",
        metavar="NAME.PARAMETER=VALUE",
        help="set a parameter of a policy, wherever it is named; may be given again",
    )
    run.add_argument(
        "--users", metavar="USER,...", help="whose requests a policy serves, such as modules,bpf (default: everybody's)"
    )
    run.add_argument(
        "--pressure",
        metavar="SCENARIO",
        help="when memory is short: EVERY_SECONDS:PAGES, a file of lines SECONDS PAGES, or trace (what it counted)",
    )
    run.add_argument("--json", action="store_true", help="results as JSON on stdout instead of the table")
    run.add_argument("-o", "--output", type=Path, metavar="OUT", help="write results and plots into this directory")
    run.add_argument("--force", action="store_true", help="overwrite files in OUT")
    policies = commands.add_parser("policies", help="list the policies with their parameters")
    policies.add_argument("--json", action="store_true", help="as JSON")
    arguments = parser.parse_args(argv)
    chosen = _run if arguments.command == "run" else _policies
    return run_program("directmap-replay", lambda: chosen(arguments))


def _run(arguments: argparse.Namespace) -> int:
    """Replay a trace under policies: what would have been split, flushed, held, and what was."""
    from replay.output import FILES, write
    from replay.run import run_policies
    from replay.tables import text_table

    out: Path | None = arguments.output
    if out is not None and not arguments.force:
        there = [name for name in FILES if (out / name).exists()]
        if there:
            raise TraceError(f"{out / there[0]}: exists; give another directory with -o, or --force to overwrite")
    results = run_policies(
        arguments.trace,
        arguments.policy,
        settings=arguments.settings,
        users=arguments.users,
        pressure=arguments.pressure,
    )
    if out is not None:
        write(out, results)
        print(f"results in {out}", file=sys.stderr)
    if arguments.json:
        json.dump([result.to_json() for result in results], sys.stdout, allow_nan=False, indent=1)
        print()
    else:
        sys.stdout.write(text_table(results))
    return 0


def _policies(arguments: argparse.Namespace) -> int:
    """What can be replayed, and what can be set."""
    from replay.tables import policies_json, policies_table

    if arguments.json:
        print(json.dumps(policies_json(), allow_nan=False, indent=1))
    else:
        sys.stdout.write(policies_table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
