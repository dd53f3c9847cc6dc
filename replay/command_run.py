"""`directmap-replay run`: a trace under policies."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from collect.errors import TraceError
from replay.arguments import Subparsers, add_command, add_costs, add_json, add_load, add_policies, add_settings

__all__ = ["add_to"]

EXAMPLES = """\
  directmap-replay run trace                                 under every policy
  directmap-replay run trace --policy none gfp-unmapped      under these two
  directmap-replay run trace --policy gfp-unmapped+merge --set gfp-unmapped.variant=cover
  directmap-replay run trace --users bpf -o out              for BPF alone; table, JSON and plots into out
  directmap-replay run trace --costs my-costs.toml           priced, against what was recorded
"""


def add_to(commands: Subparsers) -> None:
    parser = add_command(
        commands, "run", "replay a trace under policies: what would have been split and held", EXAMPLES
    )
    parser.add_argument("trace", type=Path, metavar="DIR", help="the directory that directmap-collect record wrote")
    add_policies(parser)
    add_settings(parser)
    add_load(parser)
    add_costs(parser)
    add_json(parser)
    parser.add_argument("-o", "--output", type=Path, metavar="OUT", help="write results and plots into this directory")
    parser.add_argument("--force", action="store_true", help="write over what is in OUT")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from replay.costs import read_costs
    from replay.measures import BASELINE
    from replay.output import FILES, results_json, write
    from replay.policies.choose import choose
    from replay.progress import Progress
    from replay.run import run_chosen
    from replay.tables import text_table

    out: Path | None = options.output
    if out is not None and not options.force:
        there = [name for name in FILES if (out / name).exists()]
        if there:
            raise TraceError(f"{out / there[0]}: exists; give another directory with -o, or --force to write over it")
    costs = read_costs(options.costs) if options.costs is not None else None
    policies = choose(options.policy, options.settings)
    if costs is not None and all(policy.label != BASELINE for policy in policies):
        policies = [*choose([BASELINE]), *policies]  # what all is held against
    with Progress(len(policies)) as progress:
        results = run_chosen(options.trace, policies, users=options.users, pressure=options.pressure, progress=progress)
    if out is not None:
        write(out, results, costs)
        print(f"results in {out}", file=sys.stderr)
    if options.json:
        print(json.dumps(results_json(results, costs), allow_nan=False, indent=1))
    else:
        sys.stdout.write(text_table(results, costs))
    return 0
