"""docs/json.md against what `directmap-replay` prints: every printed key is documented, every documented key is printed."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import pytest

from replay import __main__ as commands
from tests.unit.test_json_keys import expanded, met_in, pattern, printed

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "json.md").read_text()
SECTIONS = dict(re.findall(r"^## replay (\w+)\n(.*?)(?=^## |\Z)", TEXT, re.DOTALL | re.MULTILINE))
CHURN = str(ROOT / "sample_traces" / "6.1-churn")
BPF = str(ROOT / "sample_traces" / "5.10-bpf")
COSTS = ["--costs", str(ROOT / "docs" / "costs-example.toml")]
POLICIES = ["--policy", "none", "gfp-unmapped", "pageblock-flip:compaction=never", "rox-cache+merge"]

RUNS: dict[str, list[list[str]]] = {
    "run": [[CHURN, *POLICIES, "clairvoyant", "rox-cache"], [CHURN, *POLICIES, *COSTS]],
    "compare": [[CHURN, BPF, *POLICIES, *COSTS]],
    "sweep": [[CHURN, "--policy", "gfp-unmapped", "--over", "gfp-unmapped.refill-order=8,9", *COSTS]],
    "policies": [[]],
}
"""What is run of each: together they print all keys."""

ONLY_SOMETIMES = {"results[].not_served_by_user.USER", "judgement.doubts[]", "judgement.narrow[]"}
"""What no sample has anything of: each has a free block whenever one is asked for, is exact, and is decided."""


def documented(command: str) -> set[str]:
    rows = re.findall(r"^\| (`.*?`) \| ", SECTIONS[command], re.MULTILINE)
    return {path for row in rows for cell in re.findall(r"`([^`]+)`", row) for path in expanded(cell)}


def run(capsys: pytest.CaptureFixture[str], command: str, arguments: list[str]) -> Any:
    assert commands.main([command, *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("command", SECTIONS)
def test_the_documented_keys_are_those_printed(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    patterns = {path: pattern(path) for path in documented(command)}
    missing = set(patterns)
    for arguments in RUNS[command]:
        # a policy's or parameter's name may hold dots: gfp-unmapped.refill-order
        paths = (
            (re.sub(r"(?<=values\.)gfp-unmapped\.", "", path), is_whole)
            for path, is_whole in printed(run(capsys, command, arguments))
        )
        missing -= met_in(paths, patterns, command)
    assert missing <= ONLY_SOMETIMES, f"docs/json.md promises of {command} what it does not print"


def test_every_command_with_json_is_documented() -> None:
    parser = commands._parser()
    (choices,) = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    with_json = {name for name, one in choices.items() if any("--json" in a.option_strings for a in one._actions)}
    assert with_json == set(SECTIONS) == set(RUNS)
