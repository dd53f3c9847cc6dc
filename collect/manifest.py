"""The manifest of a trace: what was recorded, where, by what, and what was lost.

`manifest.json` is written last, so its presence says that the recording ended or was recovered. `REQUIRED` names the
keys every reader may rely on; `check` holds a manifest from a stranger against it.
"""

from __future__ import annotations

import json
import math
import os
from itertools import islice
from pathlib import Path
from typing import Any

from collect.errors import TraceError
from collect.schema import FORMAT_VERSION, TABLES, TABLES_SINCE

__all__ = ["FORMAT", "MANIFEST", "REQUIRED", "check", "first_line", "read", "read_known"]

FORMAT = "directmap-trace"
MANIFEST = "manifest.json"

MAX_MANIFEST_BYTES = 4 << 20
MAX_ENTRIES, MAX_NAMED, MAX_NAME = 1000, 5, 40
"""Of a directory that is no trace: how much of it is looked at, and how many names are told, each so long."""

MAX_PFN = 1 << 40
"""Page frame numbers of x86-64 have at most 52 - 12 bits (Intel SDM vol. 3A, 4.1.4, MAXPHYADDR)."""

MAX_TS = 1 << 61
"""Time stamps stay below this, so that they and their sums fit signed arithmetic: 73 years after boot."""

REQUIRED: dict[str, type] = {
    "format": str,  # FORMAT
    "format_version": int,
    "tool_version": str,
    "complete": bool,  # False: the end snapshot may be missing; `ended` says why if the recorder could, else it was killed
    "command": list,  # the recorder's command line
    "created": str,  # ISO 8601, UTC
    "ts_start_ns": int,  # CLOCK_MONOTONIC when the start snapshot was exact
    "ts_end_ns": int,
    "kernel": dict,  # release, version, boot_id, cmdline, config {CONFIG_X: value}
    "cpu": dict,  # model, n_online, possible (a range as text), emulated (bool), hypervisor (str or null)
    "memory": dict,  # max_pfn, ranges [[first_pfn, end_pfn], ...], page_offset, paging_levels, rodata [first, end], ...
    # (max_pfn: the most there was, ranges: those at the end, where memory came or went; zones {"node N ZONE": [first_pfn,
    # end_pfn]} at the start, with holes; not in older traces)
    # pid, tgid; headers: whose C headers the programs were compiled with; capabilities_kept while recording;
    # frames_split_by_attaching: 2M frames that were whole before; last_snapshot_ns: when the last one between began
    "recorder": dict,
    "probes": dict,  # attached [name], missing [{name, why, costs}]
    # pages: "scoped" | "all" | "none"; page_sample: one page block in so many, at first; steps: [{ts_ns, page_sample,
    # percent}], as --max-overhead took them; only_pages: no changes, regions and snapshots
    "sampling": dict,
    "losses": dict,  # class: events lost
    "tables": dict,  # table: [{file, rows, bytes}]
}


def read(directory: Path) -> dict[str, Any]:
    """The checked manifest of the trace in `directory`. Raises TraceError."""
    path = directory / MANIFEST
    if not directory.exists():
        raise TraceError(f"{directory}: no such directory; give the directory that `directmap-collect record -o` wrote")
    if not directory.is_dir():
        raise TraceError(f"{directory}: not a directory; give the directory that holds {MANIFEST}")
    if not path.is_file():
        if (directory / "journal").is_dir():
            raise TraceError(
                f"{path}: missing, but a journal is there: the recorder was killed or still runs; "
                f"finish it with `directmap-collect recover {directory}`"
            )
        inside = _traces_in(directory)
        if inside:
            raise TraceError(f"{directory}: not a trace itself, it holds traces: {inside}; give one of them")
        raise TraceError(f"{path}: missing; this is not a directmap trace, or it was copied without its manifest")
    manifest = read_known(path)
    check(manifest, path)
    return manifest


def _traces_in(directory: Path) -> str:
    """Names of traces that stand in a directory, a few of them; empty where none does."""
    try:
        with os.scandir(directory) as found:
            entries = list(islice(found, MAX_ENTRIES))
        names = sorted(entry.name for entry in entries if (Path(entry.path) / MANIFEST).is_file())
    except OSError:
        return ""
    shown = ", ".join(name[:MAX_NAME].encode("ascii", "backslashreplace").decode() for name in names[:MAX_NAMED])
    return shown + (f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else "")


def read_known(path: Path) -> dict[str, Any]:
    """A manifest as far as it is known: that of a journal, whose recorder may have been killed. Raises TraceError."""
    try:
        if not path.is_file() or path.stat().st_size > MAX_MANIFEST_BYTES:
            raise TraceError(
                f"{path}: larger than {MAX_MANIFEST_BYTES >> 20} MiB, so not a manifest; copy the trace anew"
            )
        manifest = json.loads(
            path.read_text(encoding="utf-8"), parse_int=_integer, parse_float=_real, parse_constant=_real
        )
    except (OSError, ValueError, RecursionError) as error:
        raise TraceError(
            f"{path}: unreadable ({first_line(error)}); copy the trace anew from where it was recorded"
        ) from None
    if not isinstance(manifest, dict):
        raise TraceError(f"{path}: not the manifest of a directmap trace; give the directory that the recorder wrote")
    return manifest


def _integer(text: str) -> int:
    """A number as any column could hold it; what is larger no recorder wrote, and no arithmetic of ours was made for."""
    if len(text) > 20 or not -(1 << 63) <= (value := int(text)) < 1 << 64:
        raise ValueError(f"a number of {len(text)} digits, past 64 bits")
    return value


def _real(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError("a number that is not finite")
    return value


def check(manifest: object, path: Path) -> None:
    """Hold a parsed manifest against `REQUIRED` and the bounds of the format. Raises TraceError."""
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise TraceError(f"{path}: not the manifest of a directmap trace; give the directory that the recorder wrote")
    version = manifest.get("format_version")
    if not isinstance(version, int) or version < 1:
        raise TraceError(
            f"{path}: format_version is {str(version)[:40]!r}, not a number from 1 up; copy the trace anew"
        )
    if version > FORMAT_VERSION:
        raise TraceError(
            f"{path}: format version {version}, this directmap reads up to {FORMAT_VERSION}; install a newer directmap"
        )
    for key, kind in REQUIRED.items():
        if not isinstance(manifest.get(key), kind):
            raise TraceError(f"{path}: key {key!r} is missing or not a {kind.__name__}; copy the trace anew")
    for key in ("ts_start_ns", "ts_end_ns"):
        if not 0 <= manifest[key] < MAX_TS:
            raise TraceError(f"{path}: key {key!r} is out of range; copy the trace anew")
    _check_memory(manifest["memory"], path)
    for name, since in TABLES_SINCE.items():
        if version < since:
            manifest["tables"].setdefault(name, [])
    _check_tables(manifest["tables"], path)
    losses = manifest["losses"]
    if not all(isinstance(value, int) and value >= 0 for value in losses.values()):
        raise TraceError(f"{path}: 'losses' must map names to counts; copy the trace anew")


def _check_memory(memory: dict[str, Any], path: Path) -> None:
    max_pfn = memory.get("max_pfn")
    if not isinstance(max_pfn, int) or not 0 < max_pfn <= MAX_PFN:
        raise TraceError(
            f"{path}: memory.max_pfn is {str(max_pfn)[:40]!r}, not a page frame number; copy the trace anew"
        )
    if memory.get("paging_levels") not in (4, 5):
        raise TraceError(f"{path}: memory.paging_levels must be 4 or 5; copy the trace anew")
    ranges = memory.get("ranges")
    if not isinstance(ranges, list):
        raise TraceError(f"{path}: memory.ranges is missing; copy the trace anew")
    last = 0
    for pair in ranges:
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(pfn, int) for pfn in pair)):
            raise TraceError(f"{path}: memory.ranges must hold pairs [first_pfn, end_pfn]; copy the trace anew")
        if not last <= pair[0] < pair[1] <= max_pfn:
            raise TraceError(f"{path}: memory.ranges is not ascending or passes max_pfn; copy the trace anew")
        last = pair[1]
    for key in ("rodata", "kfence_pool"):
        pair = memory.get(key)
        if pair is not None and not (
            isinstance(pair, list) and len(pair) == 2 and all(isinstance(n, int) and 0 <= n <= MAX_PFN for n in pair)
        ):
            raise TraceError(f"{path}: memory.{key} must be a pair of page frame numbers or null; copy the trace anew")


def _check_tables(tables: dict[str, Any], path: Path) -> None:
    for name in TABLES:
        segments = tables.get(name)
        if not isinstance(segments, list):
            raise TraceError(f"{path}: table {name!r} is not listed; copy the trace anew")
        for segment in segments:
            if not (
                isinstance(segment, dict)
                and isinstance(segment.get("file"), str)
                and isinstance(segment.get("rows"), int)
                and isinstance(segment.get("bytes"), int)
            ):
                raise TraceError(f"{path}: a segment of table {name!r} lacks file, rows or bytes; copy the trace anew")
            file = segment["file"]
            if not file.startswith(f"{name}-") or not file.endswith(".parquet") or "/" in file or "\0" in file:
                raise TraceError(
                    f"{path}: table {name!r} names the file {file[:80]!r}, not {name}-NNNNN.parquet; copy the trace anew"
                )


def first_line(error: BaseException) -> str:
    """What a library says of an error, for a line of ours."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
