"""Keeps of all inputs found so far the fewest that reach the same lines of ours and lead to the same answers, and writes docs/fuzzing.md.

Coverage is counted here by Python's own tracing, so that what is kept does not depend on the fuzzer that found it.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from tests.fuzz.edits import parse
from tests.fuzz.inputs import CORPUS, FINDINGS, Runner, kept, signature
from tests.fuzz.ledger import Ledger

__all__ = ["keep"]

ROOT = Path(__file__).parents[2]
LEDGER = Path(__file__).with_name("ledger.jsonl")
"""The log of all runs so far, of all machines that it was kept on."""
MOST_BYTES = 150_000
"""Of a target's corpus."""
MOST_SECONDS = 600
"""That a target's inputs may take; the shortest come first."""
OURS = re.compile(r"/(collect|analyze|replay)/[\w/]+\.py$")


def keep(work: Path, targets: list[str]) -> None:
    """Minimise the corpora of `work` and of the repository together; add the log of `work` to the ledger."""
    for name in targets:
        found = {file.read_bytes() for file in sorted((work / name / "corpus").glob("*"))}
        inputs = sorted({data for data in {*found, *kept(name)} if parse(data) is not None}, key=lambda d: (len(d), d))
        chosen = list(_smallest(Runner(name), inputs))
        CORPUS.mkdir(exist_ok=True)
        (CORPUS / f"{name}.jsonl").write_bytes(b"".join(data + b"\n" for data in chosen))
        print(f"{name}: {len(chosen)} of {len(inputs)} inputs, {sum(map(len, chosen)):,} bytes")
    _keep_findings(work, targets)
    _keep_log(work)


def _smallest(runner: Runner, inputs: list[bytes]) -> Iterator[bytes]:
    seen: set[Any] = set()
    began, size = time.process_time(), 0
    for data in inputs:
        reached = _reached(runner, data)
        if not reached <= seen and size + len(data) < MOST_BYTES:
            seen |= reached
            size += len(data) + 1
            yield data
        if time.process_time() - began > MOST_SECONDS:
            return


def _reached(runner: Runner, data: bytes) -> set[Any]:
    """Lines of ours that an input reaches."""
    reached: set[Any] = set()

    def lines(frame: FrameType, event: str, _: object) -> Any:
        reached.add((frame.f_code.co_filename, frame.f_lineno))
        return lines

    def calls(frame: FrameType, event: str, _: object) -> Any:
        return lines if OURS.search(frame.f_code.co_filename) else None

    sys.settrace(calls)
    try:
        runner(data)
    except Exception as error:
        reached.add(signature(error))
    finally:
        sys.settrace(None)
    return reached


def _keep_findings(work: Path, targets: list[str]) -> None:
    known = [json.loads(line) for line in FINDINGS.read_text().splitlines()] if FINDINGS.exists() else []
    inputs = {(finding["target"], finding["input"]) for finding in known}
    for name in targets:
        for file in sorted((work / name / "findings").glob("*.json")):
            finding = json.loads(file.read_text())
            if (name, finding["input"]) not in inputs and parse(finding["input"].encode()) is not None:
                known.append({key: finding[key] for key in ("target", "cause", "input")})
    FINDINGS.write_text("".join(json.dumps(finding) + "\n" for finding in known))


def _keep_log(work: Path) -> None:
    """Add what the ledger does not hold yet; runs of one target on one commit become one line."""
    ledger, log = Ledger(LEDGER), Ledger(work / "log.jsonl")
    last = max((line["ended"] for line in ledger.lines), default="")
    lines = {(line["target"], line["commit"]): line for line in ledger.lines}
    for line in log.lines:
        if line["ended"] <= last or not line["inputs"]:  # a worker that a busy machine did not let begin found nothing
            continue
        known = lines.setdefault(
            (line["target"], line["commit"]), line | {"cpu_s": 0.0, "inputs": 0, "findings": [], "ended": ""}
        )
        known["cpu_s"] = round(known["cpu_s"] + line["cpu_s"], 1)
        known["inputs"] += line["inputs"]
        known["findings"] = sorted({*known["findings"], *line["findings"]})
        known["ended"] = max(known["ended"], line["ended"])
    LEDGER.write_text("".join(json.dumps(line) + "\n" for line in lines.values()))
    (ROOT / "docs/fuzzing.md").write_text(_page(Ledger(LEDGER)), encoding="utf-8")


def _page(ledger: Ledger) -> str:
    commits = "\n".join(
        f"| {at} | {', '.join(sorted({line['target'] for line in part}))} | {sum(line['cpu_s'] for line in part) / 3600:.2f} | "
        f"{sum(line['inputs'] for line in part):,} | {max(line['ended'] for line in part)[:10]} |"
        for at, part in ledger.by_commit().items()
    )
    return f"""# What was fuzzed, and for how long

`make fuzz HOURS=2` runs it, coverage-guided (atheris), with bounds checks in compiled code; hours add up over runs. An input is a short
list of edits to a small trace ([tests/fuzz/edits.py](../tests/fuzz/edits.py)). A finding is whatever is neither an answer nor one printable line
that names the place: another exception, a warning, a crash, more than 1 GB of memory, more than 20 s of CPU time, a wait for something
that does not come. What was found is mended, and replayed by `make test` with a part of the corpus.

Written by `python -m tests.fuzz keep`. CPU time is the workers' own, user and system, as the kernel counts it (wait4). Each worker runs the
corpus first, which counts as inputs: up to two thirds of what workers ran before 9c1c957b6fe2, when memory made them end early.

{ledger.table()}

The same by commit:

| commit | targets | CPU-hours | inputs run | last |
|---|---|--:|--:|---|
{commits}
"""
