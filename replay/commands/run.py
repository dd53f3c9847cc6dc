"""`directmap-replay run`: a trace under policies, and whether a cache would have been worth it."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from collect.command_line import Subparsers, add_command
from replay.arguments import add_costs, add_json, add_load, add_policies, add_settings

if TYPE_CHECKING:
    from analyze.analysis import Analysis

__all__ = ["add_to"]

EXAMPLES = (
    ("directmap-replay run my-trace", "under every policy, and with merging alone"),
    (
        "directmap-replay run my-trace -o my-replay",
        "the same, and report and replay as one page in my-replay/report.html",
    ),
    (
        "directmap-replay run my-trace --policy none gfp-unmapped clairvoyant",
        "under these three: as recorded, a cache, and what none can beat",
    ),
    (
        "directmap-replay run my-trace --policy none gfp-unmapped+merge --set gfp-unmapped.variant=cover",
        "with a parameter set, and large entries put back behind it",
    ),
    ("directmap-replay run my-trace --users bpf", "for BPF alone"),
    ("directmap-replay run my-trace --threshold idle-share=0.001", "another notion of how much a cache may hold"),
    ("directmap-replay run my-trace --costs my-costs.toml", "priced, against what was recorded"),
)


def add_to(commands: Subparsers) -> None:
    parser = add_command(
        commands,
        "run",
        "replay a trace under policies: what would have been split and held, and was it worth it",
        EXAMPLES,
    )
    parser.add_argument("trace", type=Path, metavar="DIR", help="the directory that directmap-collect record wrote")
    add_policies(parser)
    add_settings(parser)
    add_load(parser)
    add_costs(parser)
    parser.add_argument(
        "--threshold",
        action="append",
        default=[],
        dest="thresholds",
        metavar="NAME=SHARE",
        help="where the answer draws its lines: little-share (saved frames below that share of the memory are little; 0.01), part "
        "(of what can be saved at most, that a cache must save; 0.5), idle-share (of the memory, above which a cache has its "
        "price; 0.01), rising (of the splits, in the last fifth of the time: the load was not done; 0.1)",
    )
    add_json(parser)
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="OUT",
        help="directory for report and replay as one page, with its pictures, tables and JSON",
    )
    parser.add_argument("--force", action="store_true", help="write over what is in OUT")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from replay.costs import read_costs
    from replay.judgement import judge, thresholds
    from replay.measures import BASELINE
    from replay.policies.choose import choose, known
    from replay.policies.eager_merge import SUFFIX
    from replay.progress import Progress
    from replay.results_json import results_json
    from replay.run import run_chosen
    from replay.tables import text_table

    limits = thresholds(options.thresholds)
    costs = read_costs(options.costs) if options.costs is not None else None
    policies = choose(options.policy or [*known(), BASELINE + SUFFIX], options.settings)
    if costs is not None and all(policy.label != BASELINE for policy in policies):
        policies = [*choose([BASELINE]), *policies]  # what all is held against
    analysis = _analysed(options.trace, options.output, options.force) if options.output is not None else None
    with Progress(len(policies)) as progress:
        results = run_chosen(
            options.trace,
            policies,
            users=options.users,
            pressure=options.pressure,
            progress=progress,
            rebuilt=analysis.rebuilt if analysis is not None else None,
        )
    found = judge(results, limits)
    if analysis is not None:
        from replay.report import write_replay_report

        page = write_replay_report(analysis, results, found, options.output, costs=costs).page
        print(f"report and replay: {page}", file=sys.stderr)
    if options.json:
        print(json.dumps(results_json(results, costs, found), allow_nan=False, indent=1))
    else:
        sys.stdout.write(text_table(results, costs, found))
    return 0


def _analysed(trace: Path, out: Path, force: bool) -> Analysis:
    """The analysis of a trace, once it is sure that it can be read and its report written."""
    from analyze.analysis import analyse_trace
    from analyze.report.writer import claim_output
    from collect.trace import open_trace

    opened = open_trace(trace)  # a damaged trace leaves no empty directory behind
    claim_output(out, force)
    return analyse_trace(opened)
