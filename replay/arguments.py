"""Arguments that several commands of `directmap-replay` share."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from collect.completion import suggest

__all__ = [
    "add_against",
    "add_files",
    "add_json",
    "add_load",
    "add_policies",
    "add_settings",
]


def add_policies(parser: argparse.ArgumentParser) -> None:
    """--policy, as `options.policy`."""
    policy = parser.add_argument(
        "--policy",
        action=_Policies,
        nargs="+",
        default=[],
        metavar="NAME",
        help="policies to replay, with blanks or commas between, as NAME, NAME:parameter=value,... or NAME+merge (default: all; "
        "see `policies`)",
    )
    suggest(policy, policy_names)


class _Policies(argparse.Action):
    """Adds the policies named to those of an earlier --policy."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        named = [name for text in values for name in separate(text)]
        setattr(namespace, self.dest, [*getattr(namespace, self.dest), *named])


def separate(text: str) -> list[str]:
    """The policies of `NAME,NAME:parameter=value,parameter=value,NAME`.

    What stands behind a comma is a parameter of the policy before it if it has a value and no name: `x=1`, but not `NAME:x=1`.
    """
    return re.split(r",(?![^:,=]*=)", text)


def policy_names() -> Sequence[str]:
    """What --policy takes as it stands, for completion."""
    from replay.policies.choose import known

    return list(known())


def add_settings(parser: argparse.ArgumentParser) -> None:
    """--set, as `options.settings`."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="settings",
        metavar="NAME.PARAMETER=VALUE",
        help="set a parameter of a policy, wherever it is named; may be given again",
    )


def add_against(parser: argparse.ArgumentParser) -> None:
    """--against, as `options.against`."""
    parser.add_argument(
        "--against",
        default="none",
        metavar="NAME",
        help="the policy that savings are held against (default: none, what was recorded)",
    )


def add_load(parser: argparse.ArgumentParser) -> None:
    """--users and --pressure, as `options.users` and `options.pressure`."""
    parser.add_argument(
        "--users", metavar="USER,...", help="whose requests a policy serves, such as modules,bpf (default: everybody's)"
    )
    parser.add_argument(
        "--pressure",
        metavar="SCENARIO",
        help="when memory is short: EVERY_SECONDS:PAGES, a file of lines SECONDS PAGES, or trace (what it counted)",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """--json, as `options.json`."""
    parser.add_argument("--json", action="store_true", help="for programs: JSON on stdout instead of the table")


def add_files(parser: argparse.ArgumentParser) -> None:
    """-o FILE, as often as wanted, as `options.output`, and --force."""
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="write a picture (.svg, .png, .pdf) or the table (.csv, .json); may be given again",
    )
    parser.add_argument("--force", action="store_true", help="write over what is there")


def add_costs(parser: argparse.ArgumentParser) -> None:
    """--costs, as `options.costs`."""
    parser.add_argument(
        "--costs",
        type=Path,
        metavar="FILE",
        help="what a call, a flush, a page cost: .toml or .json, as docs/costs-example.toml; without it nothing is priced",
    )
