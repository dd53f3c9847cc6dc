"""The tables of `make test-kernels`, made from the cells' JSONs: docs/kernels.md whole, and a part of README.md."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

from tests.vm.errors import LabError

__all__ = ["BEGIN", "END", "kernels_page", "readme_table", "with_table", "write"]

BEGIN, END = "<!-- kernels:begin -->", "<!-- kernels:end -->"

Row = tuple[str, dict[str, Any], dict[str, Any] | None]
"""A cell's name, its factors, and what its JSON says (None: it was not run)."""

_WRONG = ("level_mismatches", "attribute_mismatches")

_NONE_BETWEEN = dict.fromkeys(("snapshots", "pages_compared", "frames_read_again", *_WRONG), 0)
"""Of a recording made before snapshots were taken while the load runs."""

_HEAD = (
    "| kernel | paging | CPUs | memory | 1G entries at start | changes | 2M split | 1G split | counted | lost "
    "| pages compared | between | read again | wrong | left out: A/D, KFENCE | exact |\n"
    "|---|---|--:|--:|--:|--:|--:|--:|---|--:|--:|--:|--:|--:|--:|---|"
)


def write(root: Path, rows: Sequence[Row], current: Callable[[dict[str, Any]], bool]) -> None:
    """Write both tables. `current` says of a cell's "tool" whether it is the checkout's collect and analyze."""
    readme = root / "README.md"
    text = with_table(readme.read_text(encoding="utf-8"), readme_table(rows))
    (root / "docs" / "kernels.md").write_text(kernels_page(rows, current), encoding="utf-8")
    readme.write_text(text, encoding="utf-8")


def with_table(text: str, table: str, begin: str = BEGIN, end: str = END) -> str:
    """A text with `table` between two marks. Raises LabError where they are missing."""
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise LabError(f"README.md lacks the marks {begin} and {end}, between which the table goes. Put them back.")
    before, rest = text.split(begin)
    return f"{before}{begin}\n{table}\n{end}{rest.split(end)[1]}"


def kernels_page(rows: Sequence[Row], current: Callable[[dict[str, Any]], bool]) -> str:
    """docs/kernels.md."""
    results = [told for _, _, told in rows if told is not None]
    dates = sorted(told["date"][:10] for told in results)
    commits = sorted({told["tool"]["commit"] + (" with changes" if told["tool"]["dirty"] else "") for told in results})
    notes = []
    if any(told.get("start", {}).get("1g") == 0 for told in results):
        notes.append(
            "`-`: the start snapshot of this guest holds no 1G entry, so what happens to 1G entries was not tried there."
        )
    if any(told.get("verify", {}).get("splits", {}).get("counted_2m", 0) is None for told in results):
        notes.append("`none`: this kernel has no counters of splits in /proc/vmstat that could be compared.")
    if any(not current(told["tool"]) for told in results):
        notes.append("†: recorded by an earlier collect or read by an earlier analyze than the ones beside this file.")
    lines = [
        "# Kernels that were tried",
        "",
        "Made by `make test-kernels` from what `analyze verify --json` said of fresh recordings; not edited by hand.",
        "Every two values of two columns among kernel, flavour, paging, CPUs and memory that can exist together stand together in a",
        "row, of the four kernels that have several (5.10 has no 5-level paging); the others that Debian's archive holds have a row each. Each row is a",
        "Debian kernel in its own QEMU guest under the load `churn`.",
        "",
        f"* date: {' to '.join(dict.fromkeys((dates[0], dates[-1])))}" if dates else "* date: -",
        f"* tool: {', '.join(f'`{commit}`' for commit in commits) or '-'}",
        "* one row by hand: `make lab KERNEL=6.1 FLAVOUR=cloud-amd64 CPUS=4 MEMORY=4G [LA57=1] SCALE=0.4 OUT=lab/try`, then "
        "`.venv/bin/python -m analyze verify lab/try`",
        "",
        _HEAD,
        *(_line(name, factors, told, current) for name, factors, told in rows),
        "",
        *(f"{note}\n" for note in notes),
        "2M split, 1G split: entries that the rebuilt state says were split. counted: whether /proc/vmstat says the same. pages compared,",
        "wrong: pages whose level or attributes differ between the rebuilt state and the page tables, at the end and at every snapshot",
        "between (one every few seconds while the load ran; read again: 2M frames that changed while it was read). left out: pages at the",
        "end that differ in accessed and dirty alone, and pages of KFENCE's pool, whose present bit is not compared. lost: events of any kind;",
        "a row is exact where none of them concerns the map (a call stack does not: it tells who made a change, not which).",
    ]
    return "\n".join(lines) + "\n"


def _line(
    name: str, factors: dict[str, Any], told: dict[str, Any] | None, current: Callable[[dict[str, Any]], bool]
) -> str:
    release = told.get("release") if told else None
    machine = f"| {release or name} | {factors['levels']}-level | {factors['cpus']} | {factors['gigabytes']} GB "
    if told is None:
        return f"{machine}{'| ' * 11}| not run |"
    found = told.get("verify")
    if found is None:
        return f"{machine}{'| ' * 11}| **no**: {told['why']} |"
    splits, between, exceptions = found["splits"], found.get("between", _NONE_BETWEEN), found["exceptions"]
    counted = {None: "none", True: "agrees", False: "**disagrees**"}[splits["agree"]]
    verdict = "yes" if told["good"] else f"**no**: {told['why']}"
    cells = (
        f"{told['start']['1g'] or '-'}",
        f"{found['changes']:,}",
        f"{splits['found_2m']:,}",
        f"{splits['found_1g']:,}" if told["start"]["1g"] else "-",
        counted,
        f"{found['lost_events']:,}",
        f"{found['pages_compared'] + between['pages_compared']:,}",
        f"{between['snapshots']:,}",
        f"{between['frames_read_again'] or 0:,}",
        f"{sum(part[what] for part in (found, between) for what in _WRONG):,}",
        f"{exceptions['accessed_dirty_pages']:,}, {exceptions['kfence_pages']:,}",
        verdict + ("" if current(told["tool"]) else " †"),
    )
    return f"{machine}| {' | '.join(cells)} |"


def readme_table(rows: Sequence[Row]) -> str:
    """The short table: a line a kernel, every number the sum over its cells."""
    lines = [
        "| kernel | recordings exact | paging | CPUs | memory | changes | 2M, 1G entries split | snapshots between | pages compared | wrong | lost |",
        "|---|--:|---|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for kernel in dict.fromkeys(factors["kernel"] for _, factors, _ in rows):
        mine = [(factors, told) for _, factors, told in rows if factors["kernel"] == kernel]
        ran = [(factors, told) for factors, told in mine if told is not None and "verify" in told]
        if not ran:
            lines.append(f"| {kernel} | 0 of {len(mine)} {'| ' * 9}|")
            continue
        good = sum(told["good"] for _, told in ran)
        releases = sorted({re.sub(r"-(cloud-)?amd64$", "", told["release"]) for _, told in ran})
        values = {name: ", ".join(map(str, sorted({factors[name] for factors, _ in ran}))) for name in mine[0][0]}

        def total(*path: str, of: Sequence[tuple[Any, dict[str, Any]]] = ran) -> int:
            return sum(reduce(getitem, path, {"between": _NONE_BETWEEN} | told["verify"]) for _, told in of)

        wrong = sum(total(*where, what) for where in ((), ("between",)) for what in _WRONG)
        cells = (
            ", ".join(releases),
            f"{good} of {len(mine)}",
            f"{values['levels']} levels",
            values["cpus"],
            f"{values['gigabytes']} GB",
            f"{total('changes'):,}",
            f"{total('splits', 'found_2m'):,}, {total('splits', 'found_1g'):,}",
            f"{total('between', 'snapshots'):,}",
            f"{total('pages_compared') + total('between', 'pages_compared'):,}",
            f"{wrong:,}",
            f"{total('lost_events'):,}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
