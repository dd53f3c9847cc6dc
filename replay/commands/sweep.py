"""`directmap-replay sweep`: a policy over the values of its parameters."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from collect.command_line import Subparsers, add_command
from replay.arguments import add_against, add_costs, add_files, add_json, add_load, add_settings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from replay.sweep import Sweep

__all__ = ["add_to"]

EXAMPLES = (
    (
        "directmap-replay sweep my-trace --policy gfp-unmapped --over gfp-unmapped.refill-order=0:9:1",
        "from single pages to blocks of 2M",
    ),
    (
        "directmap-replay sweep my-trace --policy gfp-unmapped --over gfp-unmapped.refill-order=5,7,9 --over gfp-unmapped.variant=posted,ideal -o sweep.svg",
        "two parameters at a time, as a picture",
    ),
    (
        "directmap-replay sweep my-trace --policy prog-pack:old-pack=no --over prog-pack.pages=64:512:64",
        "sizes of a pack, where another parameter is fixed",
    ),
)


def add_to(commands: Subparsers) -> None:
    what = "one policy over the values of one or two of its parameters"
    parser = add_command(commands, "sweep", what, EXAMPLES)
    parser.add_argument("trace", type=Path, metavar="DIR", help="a trace")
    parser.add_argument(
        "--policy",
        required=True,
        metavar="NAME",
        help="as NAME, NAME:parameter=value,... or NAME+merge; see `policies`",
    )
    parser.add_argument(
        "--over",
        action="append",
        required=True,
        metavar="NAME.PARAMETER=VALUES",
        help="a parameter and its values: V1,V2,... or, of a number, LO:HI:STEP with both ends; may be given twice",
    )
    add_against(parser)
    add_settings(parser)
    add_load(parser)
    add_costs(parser)
    add_json(parser)
    add_files(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from replay.costs import read_costs
    from replay.output_files import check_outputs, tell
    from replay.rows_csv import sweep_csv
    from replay.sweep import sweep

    check_outputs(options.output, force=options.force)
    costs = read_costs(options.costs) if options.costs is not None else None
    found = sweep(
        options.trace,
        options.policy,
        options.over,
        against=options.against,
        settings=options.settings,
        users=options.users,
        pressure=options.pressure,
        costs=costs,
    )

    def figure() -> Figure:
        from replay.plots_sweep import sweep_figure

        return sweep_figure(found)

    return tell(
        options, figure=figure, table=lambda: sweep_csv(found), json_value=found.to_json, lines=lambda: _lines(found)
    )


def _lines(found: Sweep) -> list[str]:
    from analyze.words.terminal import clean, size, wrapped
    from replay.rows_text import Group, priced_rows, saved_by_user_table, tables
    from replay.side_by_side import doubts

    facts = found.base.result.provenance
    against = found.base.result.policy
    over = " and ".join(axis.titled for axis in found.axes)
    lines = wrapped(
        f"{found.base.trace}: Linux {clean(facts['kernel'], 40)}, {size(facts['memory_pages'])}, "
        f"{facts['requests']:,} requests"
    )
    lines += wrapped(
        f"{found.policy} over {over}. a-b: the trace leaves open where between a and b. Saved: 2M frames less than under "
        f"{clean(against)}; below 0: more."
    )
    rows = [row for _, row in found.points]
    for doubt in doubts([found.base, *rows]):
        lines += wrapped("- " + doubt, hang=2)
    names = [" ".join(str(value) for value in values) for values, _ in found.points]
    group = Group("", [against, *names], [found.base, *rows])
    return [
        *lines,
        "",
        *tables([group], against),
        *saved_by_user_table([group], against),
        *priced_rows([group], found.costs, against),
    ]
