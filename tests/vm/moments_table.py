"""docs/moments.md, from what tests/vm/test_moments.py left of each kernel: `python -m tests.vm.moments_table`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.vm.matrix import Tool

__all__ = ["HOME", "keep", "page"]

ROOT = Path(__file__).resolve().parents[2]
HOME = ROOT / "lab" / "moments"

_HEAD = (
    "| kernel | snapshots between | wrong | pages compared | changes | fewest before one | entries changed "
    "| frames read again | most rounds | not compared | lost | recorded by |\n"
    "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|"
)


def keep(verification: dict[str, Any], lab: dict[str, Any], tool: str | None = None) -> None:
    """Leave what the table needs of one recording, made by the checkout's commit or `tool`; the newest of a kernel counts."""
    between = verification["between"]
    told = {
        "release": lab["kernel"]["release"],
        "date": lab["date"],
        "tool": tool or Tool.here().commit + (" with changes" if Tool.here().dirty else ""),
        "cut_short": bool(lab["load"]["statistics"].get("cut_short")),
        "lost": verification["lost_events"],
        "exact": verification["exact"],
        "rounds": max((one["rounds"] or 0 for one in between["list"]), default=0),
        "entries": sum(one["entries_changed_since_the_one_before"] for one in between["list"]),
        **{key: value for key, value in between.items() if key != "list"},
    }
    HOME.mkdir(parents=True, exist_ok=True)
    (HOME / f"{told['release']}.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def page(results: list[dict[str, Any]]) -> str:
    """The whole page."""
    dates = sorted({told["date"][:10] for told in results})
    rows = [
        f"| {told['release']} | {told['snapshots']}{' *' if told['cut_short'] else ''} | {told['level_mismatches'] + told['attribute_mismatches']:,} "
        f"| {told['pages_compared']:,} | {told['changes']:,} | {told['fewest_changes_between_neighbours']:,} "
        f"| {told['entries']:,} | {told['frames_read_again']:,} | {told['rounds']} | {told['frames_undecided']:,} "
        f"| {told['lost']:,} | `{told['tool']}` |"
        for told in results
    ]
    lines = [
        "# The state at any moment, against the page tables",
        "",
        "Made by `tests/vm/moments_table.py` from what `analyze verify --json` said of recordings in the lab; `make test-moments`",
        "makes every row anew.",
        "In a QEMU guest of 6 GB and 2 CPUs three processes at once load and unload modules, BPF programs, kprobes, tracers and",
        "secret memory (`tests/vm/loads/moments.py`); at moments that a seed draws, the recorder is asked to read all page tables",
        "(`directmap-collect snapshot --into`, or SIGUSR1). The state that is rebuilt from the START snapshot and the changes up to",
        "that moment is held against what it read, page by page, in level and in attributes.",
        "",
        f"* date: {', '.join(dates)}",
        "* one row by hand: `python3 -m tests.vm record --kernel 6.1 --memory 6G --load moments -o lab/try`, then "
        "`.venv/bin/python -m analyze verify lab/try`",
        "",
        _HEAD,
        *rows,
        "",
        "changes: of the direct map, from one snapshot to the next, summed; fewest before one: the least there were between two",
        "neighbours. entries changed: page-table entries that these gave another value. frames read again: 2M frames that a change",
        "ran on while they were read; most rounds: how often the recorder had to begin again, at most, until nothing moved. not",
        "compared: frames that never came to rest. All three say how hard it was, not that something is wrong.",
    ]
    if any(told["cut_short"] for told in results):
        lines += ["", "*: the guest was so slow that the load ran out of its time before it had asked twenty times."]
    return "\n".join(lines) + "\n"


def main() -> None:
    results = [json.loads(path.read_text(encoding="utf-8")) for path in HOME.glob("*.json")]

    def numbers(told: dict[str, Any]) -> list[int]:
        return [int(word) for word in told["release"].split("-")[0].split("+")[0].split(".")]

    (ROOT / "docs" / "moments.md").write_text(page(sorted(results, key=numbers)), encoding="utf-8")


if __name__ == "__main__":
    main()
