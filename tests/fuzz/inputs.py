"""Runs one input of one target: makes the trace that it states, hands it over, and holds the answer to its bounds."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tempfile
import time
import traceback
import zlib
from pathlib import Path

from collect.journal import TraceWriter
from collect.page_events import PACKED_TABLE, pack
from collect.records import PAGE_EVENT
from collect.trace import open_trace
from tests.fuzz.answers import MOST_MEMORY, MOST_SECONDS, Finding, target
from tests.fuzz.edits import Base, Draft, parse, written
from tests.machine import write_trace

__all__ = [
    "CORPUS",
    "FINDINGS",
    "FOCUS",
    "Runner",
    "first_inputs",
    "kept",
    "killed",
    "name_of",
    "scratch_of",
    "signature",
]

CORPUS = Path(__file__).with_name("corpus")
"""A file a target, an input a line."""
FINDINGS = CORPUS / "findings.jsonl"
"""Inputs that once led to something: {target, cause, input}."""

_TABLES = ["cell"] * 8 + ["column"] * 2 + ["add"] * 4 + ["take"] * 2 + ["order", "raw"]
_FILES = ["poke"] * 6 + ["cut"] * 2 + ["loose"] * 2 + ["pad", "swap", "gone", "kind", "extra", "schema", "claim"]
_MANIFEST = ["set"] * 6 + ["del"]
FOCUS = {
    "read": _FILES * 2 + _MANIFEST * 2 + ["raw", "take", "add"],
    "rebuilt": _TABLES * 2 + _MANIFEST,
    "replayed": _TABLES * 2 + _MANIFEST,
    "recovered": ["poke"] * 8 + ["cut"] * 5 + ["swap", "gone", "pad", "kind", "extra"] + _MANIFEST + _TABLES,
    "commanded": _TABLES + _MANIFEST * 2 + _FILES,
    "drawn": _TABLES + _MANIFEST,
}
"""Kinds of edits by target, each as often as it is to be made."""


class Runner:
    """Runs inputs of one target in a directory of its own."""

    def __init__(self, name: str, scratch: Path | None = None) -> None:
        self.name = name
        at = scratch or scratch_of(os.getpid()) / name
        self.directory = at / "trace"
        self._compiled = False
        whole = write_trace(at / "base", 51, scale=0.02)
        self.base = Base(killed(whole, at / "killed") if name == "recovered" else whole)

    def draft(self) -> Draft:
        return Draft(self.base)

    def __call__(self, data: bytes) -> None:
        """Raises Finding, or whatever else the target raises. What is no list of edits is the whole trace.

        The first one may take its time, to compile.
        """
        draft = self.draft()
        draft.make(parse(data) or [])
        written(draft, self.directory)
        _forget_peak()
        began = time.process_time()
        try:
            target(self.name, self.directory, zlib.crc32(data))
        finally:
            compiled, self._compiled = self._compiled, True
        took, peak = time.process_time() - began, _peak()
        if peak > MOST_MEMORY:
            raise Finding(f"took {peak >> 20} MiB of memory")
        if took > MOST_SECONDS and compiled:
            raise Finding(f"took {took:.0f} s")


def scratch_of(pid: int) -> Path:
    """Where a process keeps the trace in work: in memory, where that can be."""
    shm = Path("/dev/shm")
    return (shm if os.access(shm, os.W_OK) else Path(tempfile.gettempdir())) / f"directmap-fuzz-{pid}"


def killed(whole: Path, directory: Path, most_rows: int = 1 << 20) -> Path:
    """The journal and first segments of a recorder that was killed while it recorded what the trace `whole` holds.

    Of no table more than `most_rows`.
    """
    trace = open_trace(whole)
    writer = TraceWriter(directory, {k: v for k, v in trace.manifest.items() if k != "tables"}, reserve_bytes=4096)
    for name in trace.manifest["tables"]:
        table = trace.table(name).slice(0, most_rows)
        if name in ("counters", "strings", "stacks"):
            writer.append(name, table.slice(0, len(table) // 2))
    writer.roll()
    for name in trace.manifest["tables"]:
        table = trace.table(name).slice(0, most_rows)
        for batch in table.slice(len(table) // 2 if name in ("counters", "strings", "stacks") else 0).to_batches(100):
            writer.append(name, batch)
    import numpy as np

    events = np.zeros(50, PAGE_EVENT)
    events["ts"] = trace.manifest["ts_start_ns"] + np.arange(50)
    writer.append(PACKED_TABLE, pack(events))
    writer.sync()
    writer.abandon()
    return directory


def _forget_peak() -> None:
    """Let the kernel forget the largest resident size so far (Documentation/filesystems/proc.rst, clear_refs)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    return 0


def first_inputs(name: str) -> list[bytes]:
    """What a target begins with: nothing edited, and an edit of some kinds that chance finds late."""
    hot = ["add", "snapshots", 0, {"snapshot": 9, "moment": 6, "level": 0, "n_leaves": 512, "pfn": 1 << 18}, 1]
    inputs: list[list[object]] = [
        [],
        [hot],
        [hot, ["add", "changes", 5, {"kind": 3, "call_id": 1 << 40, "n_pages": 512}, 1]],
        [["add", "changes", 5, {"kind": 2, "call_id": 1 << 40, "n_pages": 1 << 15}, 1]],
        [["add", "changes", 5, {"kind": 1, "call_id": 1 << 40, "ret": 2}, 1]],
        [["cell", "changes", "ret", 9, -12]],
        [["cell", "changes", "has_pgd", 9, 1]],
        [["column", "snapshots", "moment", 1]],
        [["set", ["format_version"], 1]],
        [["set", ["memory", "kfence_pool"], [512, 1024]]],
        [["set", ["memory", "paging_levels"], 5]],
    ]
    return [json.dumps(edits).encode() for edits in inputs]


def kept(name: str) -> list[bytes]:
    """The corpus of a target in the repository, and what it once found."""
    file = CORPUS / f"{name}.jsonl"
    inputs = file.read_bytes().splitlines() if file.exists() else []
    findings = [json.loads(line) for line in FINDINGS.read_text().splitlines()] if FINDINGS.exists() else []
    return inputs + [finding["input"].encode() for finding in findings if finding["target"] == name]


def name_of(data: bytes) -> str:
    """The name of an input's file."""
    return hashlib.sha256(data).hexdigest()[:16]


def signature(error: BaseException) -> str:
    """What findings of one cause have in common: the exception, where ours raised it, and its words without numbers."""
    frames = [
        f for f in traceback.extract_tb(error.__traceback__) if re.search(r"/(collect|analyze|replay)/", f.filename)
    ]
    at = f"{'/'.join(Path(frames[-1].filename).parts[-2:])}:{frames[-1].name}" if frames else "?"
    words = "".join(c if c.isprintable() else "?" for c in str(error))
    words = re.sub(r"/\S+/", "", words)
    words = re.sub(r"(0x)?[0-9a-f]*\d[0-9a-f]*", "#", words)[:110]
    return f"{type(error).__name__} {at} {words}"
