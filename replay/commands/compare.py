"""`directmap-replay compare`: traces and policies on the same axes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from collect.command_line import Subparsers, add_command
from replay.arguments import add_against, add_costs, add_files, add_json, add_load, add_policies, add_settings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from replay.side_by_side import SideBySide

__all__ = ["add_to"]

EXAMPLES = (
    ("directmap-replay compare before after", "two traces under every policy"),
    ("directmap-replay compare a b c --policy gfp-unmapped prog-pack clairvoyant", "three traces under three policies"),
    (
        "directmap-replay compare a b --against ungrouped --policy prog-pack:requests=asked",
        "as if the recorded kernels had had no caches",
    ),
    ("directmap-replay compare a b -o compare.svg -o compare.csv", "a picture and a table"),
)


def add_to(commands: Subparsers) -> None:
    what = "traces and policies on the same axes, and what each would have saved"
    parser = add_command(commands, "compare", what, EXAMPLES)
    parser.add_argument("traces", type=Path, nargs="+", metavar="DIR", help="traces")
    add_policies(parser)
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
    from replay.rows_csv import comparison_csv
    from replay.side_by_side import compare

    check_outputs(options.output, force=options.force)
    costs = read_costs(options.costs) if options.costs is not None else None
    found = compare(
        options.traces,
        options.policy,
        against=options.against,
        settings=options.settings,
        users=options.users,
        pressure=options.pressure,
        costs=costs,
    )

    def figure() -> Figure:
        from replay.plots_compare import compare_figure

        return compare_figure(found)

    return tell(
        options,
        figure=figure,
        table=lambda: comparison_csv(found),
        json_value=found.to_json,
        lines=lambda: _lines(found),
    )


def _lines(found: SideBySide) -> list[str]:
    from analyze.words.terminal import clean, size, wrapped
    from replay.rows_text import Group, priced_rows, saved_by_user_table, tables

    groups = []
    for trace in found.traces:
        rows = [row for row in found.rows if row.trace == trace]
        facts = rows[0].result.provenance
        heading = f"{trace}: Linux {clean(facts['kernel'], 40)}, {size(facts['memory_pages'])}, {facts['requests']:,} requests"
        groups.append(Group(heading, ["  " + row.result.policy for row in rows], rows))
    lines = wrapped(
        f"a-b: the trace leaves open where between a and b. Saved: 2M frames less than under {clean(found.against)}; "
        "below 0: more."
    )
    lines += ["", "What speaks against comparing the rows as they stand:"]
    for doubt in found.doubts or ["nothing that the traces know of."]:
        lines += wrapped("- " + doubt, hang=2)
    return [
        *lines,
        "",
        *tables(groups, found.against),
        *saved_by_user_table(groups, found.against),
        *priced_rows(groups, found.costs, found.against),
    ]
