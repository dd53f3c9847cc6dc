"""docs/json.md against what the commands print: every printed key is documented, every documented key is printed."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from analyze import __main__ as commands
from collect.schema import TABLES
from collect.trace import open_trace
from tests.machine import write_trace
from tests.machine.rewrite import rewrite, with_cell, with_manifest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "json.md").read_text()
SECTIONS = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", TEXT, re.DOTALL | re.MULTILINE))
ARGUMENTS = {"diff": ["--from", "10%"]}


def expanded(path: str) -> Iterator[str]:
    """`a.{b,c[]}` as `a.b` and `a.c[]`."""
    parts = [
        part[1:-1].split(",") if part.startswith("{") else [part] for part in re.findall(r"\{[^}]*\}|[^{}]+", path)
    ]
    for chosen in product(*parts):
        yield "".join(chosen)


def documented(command: str) -> set[str]:
    rows = re.findall(r"^\| (`.*?`) \| ", SECTIONS[command], re.MULTILINE)
    return {path for row in rows for cell in re.findall(r"`([^`]+)`", row) for path in expanded(cell)}


def pattern(path: str) -> re.Pattern[str]:
    """A documented path as a pattern of printed ones: CAPITALS stand for any key, `.*` for anything below."""
    below = path.endswith(".*")
    parts = [
        r"[^.\[\]]+" + (r"\[\]" if part.endswith("[]") else "")
        if re.fullmatch(r"[A-Z]+(\[\])?", part)
        else re.escape(part)
        for part in path.removesuffix(".*").split(".")
    ]
    return re.compile(r"\.".join(parts) + (r"(\..*|\[\].*)?" if below else ""))


def printed(value: Any, path: str = "") -> Iterator[tuple[str, bool]]:
    """Paths of all values, and whether the path ends there: not so for an empty list or dict, or a null."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from printed(inner, f"{path}.{key}" if path else key)
        if not value:
            yield path, False
    elif isinstance(value, list):
        for inner in value:
            yield from printed(inner, f"{path}[]")
        if not value:
            yield f"{path}[]", False
    else:
        yield path, value is not None


def met_in(paths: Iterable[tuple[str, bool]], patterns: Mapping[str, re.Pattern[str]], command: str) -> set[str]:
    """The documented paths that a command printed something of; whatever is among `paths`, as `printed` gives them, must be documented."""
    found: set[str] = set()
    for path, is_whole in paths:
        met = {name for name, form in patterns.items() if form.fullmatch(path)}
        if not met and not is_whole:  # empty here: what would stand below is documented
            met = {name for name in patterns if name.startswith((path.removesuffix("[]"), path))}
            assert met, f"{command} prints {path}, which docs/json.md does not know"
            continue
        assert met, f"{command} prints {path}, which docs/json.md does not know"
        found |= met
    return found


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A real one, and one with something of everything that may be wrong with a trace."""
    folder = tmp_path_factory.mktemp("json")
    ill = write_trace(folder / "well", 8, scale=0.1)
    probe = {"name": "vfree", "why": "gone", "costs": "late frees"}
    ill = with_manifest(ill, folder / "ill", losses={"changes_ring_full": 5, "pages_ring_full": 2}, probes={"missing": [probe]},
        cpu={"emulated": False}, sampling={"pages": "all"},
    )  # fmt: skip
    trace = open_trace(ill)
    start = trace.manifest["ts_start_ns"]
    ill = with_manifest(ill, ill, ts_end_ns=start + 30 * 10**9)
    lost = {"ts_ns": [start, start + 10**9], "counter": ["lost/changes_ring_full"] * 2, "value": [0, 5]}
    rewrite(ill, ill, "counters", pa.concat_tables([trace.table("counters"), pa.table(lost, TABLES["counters"])]))
    snapshots = trace.table("snapshots").to_pandas()
    row = int(np.flatnonzero((snapshots["moment"] == 2) & (snapshots["level"] == 1))[0])
    with_cell(ill, ill, "snapshots", "attrs", row, int(snapshots["attrs"][row]) ^ 2)
    changes = trace.table("changes").to_pandas()
    row = int(np.flatnonzero((changes["space"] == 0) & (changes["level_first"] == 1) & (changes["stack_id"] > 0))[-30])
    with_cell(ill, ill, "changes", "level_first", row, 2)
    return [ROOT / "sample_traces" / "7.2-churn", ill]


def run(capsys: pytest.CaptureFixture[str], command: str, trace: Path, other: Path) -> Any:
    arguments = [str(other)] if command == "compare" else ARGUMENTS.get(command, [])
    assert commands.main([command, "--json", str(trace), *arguments]) in (0, 1)
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("command", SECTIONS)
def test_the_documented_keys_are_those_printed(
    command: str, traces: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    patterns = {path: pattern(path) for path in documented(command)}
    missing = set(patterns)
    for trace, other in zip(traces, reversed(traces), strict=True):
        missing -= met_in(printed(run(capsys, command, trace, other)), patterns, command)
    assert missing <= ONLY_SOMETIMES, f"docs/json.md promises of {command} what it does not print"


ONLY_SOMETIMES = {f"scaled_events.{name}" for name in ("estimate", "low", "high")}
"""What neither trace has anything of: this, one of a sampled recording."""


def test_every_command_with_json_is_documented() -> None:
    parser = commands._parser()
    (choices,) = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    with_json = {name for name, one in choices.items() if any("--json" in a.option_strings for a in one._actions)}
    assert with_json - {"report"} == set(SECTIONS)


def test_report_prints_what_summary_prints(
    traces: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert commands.main(["report", str(traces[0]), "--json", "-o", str(tmp_path / "out")]) == 0
    of_report = json.loads(capsys.readouterr().out)
    assert of_report == run(capsys, "summary", traces[0], traces[1])
    assert of_report == json.loads((tmp_path / "out" / "report.json").read_text())


def test_what_a_loss_puts_in_doubt_is_said_by_every_command(
    traces: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for command in SECTIONS:
        arguments = [str(traces[1])] if command == "compare" else ARGUMENTS.get(command, [])
        assert commands.main([command, str(traces[1]), *arguments]) in (0, 1)
        out = capsys.readouterr().out
        head = "\n".join(out.splitlines()[:8])
        assert re.search("in doubt|not exact|broken|lower bound", head, re.IGNORECASE), command
        assert all(line.isascii() and len(line) < 80 for line in out.splitlines()), command


def test_the_notation_means_what_it_says() -> None:
    assert set(expanded("a[].{b,c[]}")) == {"a[].b", "a[].c[]"}
    assert pattern("losses.CLASS").fullmatch("losses.changes_ring_full")
    assert not pattern("losses.CLASS").fullmatch("losses.a.b")
    assert pattern("a.*").fullmatch("a[].b.c") and not pattern("a.*").fullmatch("ab.c")
    assert dict(printed({"a": [{"b": 1}, {}], "c": None})) == {"a[].b": True, "a[]": False, "c": False}
