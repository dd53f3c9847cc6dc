"""What was fuzzed, for how long, on which code: one JSON line for each worker that ran."""

from __future__ import annotations

import json
import subprocess
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

__all__ = ["Ledger", "commit"]


class Ledger:
    """A file of lines {target, commit, cpu_s, inputs, findings: [cause], ended}."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[dict[str, Any]] = []
        if path.exists():
            self.lines = [json.loads(line) for line in path.read_text().splitlines() if line]

    def enter(self, target: str, at: str, seconds: float, inputs: int, findings: list[str]) -> None:
        """Add what one worker did."""
        line = {
            "target": target, "commit": at, "cpu_s": round(seconds, 1), "inputs": inputs, "findings": findings,
            "ended": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }  # fmt: skip
        self.lines.append(line)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def seconds(self, target: str) -> float:
        """CPU time of a target so far."""
        return float(sum(line["cpu_s"] for line in self.lines if line["target"] == target))

    def by_commit(self) -> dict[str, list[dict[str, Any]]]:
        """The lines of each commit, in the order of the file."""
        parts: dict[str, list[dict[str, Any]]] = {}
        for line in self.lines:
            parts.setdefault(line["commit"], []).append(line)
        return parts

    def table(self) -> str:
        """A table in Markdown: a row a target, and their sum."""
        rows: dict[str, list[Any]] = defaultdict(lambda: [0.0, 0, set()])
        for line in self.lines:
            row = rows[line["target"]]
            row[0] += line["cpu_s"]
            row[1] += line["inputs"]
            row[2].update(line["findings"])
        out = ["| target | CPU-hours | inputs run | findings, all mended |", "|---|--:|--:|--:|"]
        for name, (seconds, inputs, findings) in rows.items():
            out.append(f"| {name} | {seconds / 3600:.2f} | {inputs:,} | {len(findings)} |")
        seconds, inputs = (sum(row[i] for row in rows.values()) for i in (0, 1))
        causes: set[str] = set().union(*(row[2] for row in rows.values())) if rows else set()
        out.append(f"| all | {seconds / 3600:.2f} | {inputs:,} | {len(causes)} |")
        return "\n".join(out)


def commit(root: Path) -> str:
    """The commit that is checked out, with a + where the work tree differs."""
    said = subprocess.run(
        ["git", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"],
        cwd=root,
        capture_output=True,
        text=True,
    )
    return said.stdout.strip() or "unknown"
