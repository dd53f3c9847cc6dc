"""`directmap-replay run`: a trace under policies."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from collect.errors import TraceError
from replay.arguments import Subparsers, add_command, add_json, add_load, add_policies, add_settings

__all__ = ["add_to"]

EXAMPLES = """\
  directmap-replay run trace                                 under every policy
  directmap-replay run trace --policy none gfp-unmapped      under these two
  directmap-replay run trace --policy gfp-unmapped+merge --set gfp-unmapped.variant=cover
  directmap-replay run trace --users bpf -o out              for BPF alone; table, JSON and plots into out
"""


def add_to(commands: Subparsers) -> None:
    parser = add_command(
        commands, "run", "replay a trace under policies: what would have been split and held", EXAMPLES
    )
    parser.add_argument("trace", type=Path, metavar="DIR", help="the directory that directmap-collect record wrote")
    add_policies(parser)
    add_settings(parser)
    add_load(parser)
    add_json(parser)
    parser.add_argument("-o", "--output", type=Path, metavar="OUT", help="write results and plots into this directory")
    parser.add_argument("--force", action="store_true", help="write over what is in OUT")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from replay.output import FILES, write
    from replay.run import run_policies
    from replay.tables import text_table

    out: Path | None = options.output
    if out is not None and not options.force:
        there = [name for name in FILES if (out / name).exists()]
        if there:
            raise TraceError(f"{out / there[0]}: exists; give another directory with -o, or --force to write over it")
    results = run_policies(
        options.trace, options.policy, settings=options.settings, users=options.users, pressure=options.pressure
    )
    if out is not None:
        write(out, results)
        print(f"results in {out}", file=sys.stderr)
    if options.json:
        print(json.dumps([result.to_json() for result in results], allow_nan=False, indent=1))
    else:
        sys.stdout.write(text_table(results))
    return 0
