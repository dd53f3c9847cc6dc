"""Finishes the trace of a recorder that was killed, or whose disk is full, from its journal."""

from __future__ import annotations

import errno
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from collect.durable import JOURNAL, give_to_sudo_user, lock, write_json
from collect.errors import HostError, TraceError
from collect.journal import TraceWriter
from collect.manifest import MANIFEST, check, first_line, read_known
from collect.schema import TABLES
from collect.segments import segment_of, table_of
from collect.trace import Trace, open_trace

__all__ = ["finish_after", "recover"]

FULL = (errno.ENOSPC, errno.EDQUOT)
NUMBERED = re.compile(r"[a-z_]+-\d{5,9}\.(parquet|arrows)")
"""Names of parts and segments of ours."""


def finish_after(error: OSError, writer: TraceWriter, manifest: dict[str, Any], seconds: float) -> HostError:
    """Save what is there after a write failed; the line that says what became of it.

    A full disk ends a recording with a trace that is whole up to there, from the room kept back; where even that does
    not do, or the disk fails otherwise, the journal stays.
    """
    path = writer.path
    if error.errno in FULL:
        try:
            writer.close_on_full_disk(manifest | {"complete": False, "ended": "the disk was full"})
        except OSError as again:
            error = again
        else:
            return HostError(
                f"{path}: {error.strerror}; the recording ended after {seconds:.0f} s and is saved up to there, without "
                "an end snapshot: analyze it as it is, or make room and record again"
            )
    writer.abandon()
    return HostError(
        f"{path}: {error.strerror}; the recording ended after {seconds:.0f} s, and what was saved is in its journal: "
        f"make room there, then `directmap-collect recover {path}`"
    )


def recover(directory: Path) -> dict[str, Any]:
    """Finish the trace of a recorder that was killed; returns the manifest that was written.

    Raises TraceError if there is no journal, or if the trace is whole already; HostError if a recorder still runs, if we
    may not write there, or if the disk is full: what was finished by then stays so, and another call carries on.
    """
    try:
        return _recover_directory(directory)
    except OSError as error:
        raise HostError(
            f"{directory}: {error.strerror}; recover it as the owner of the trace, with room on the disk (or copy it to a "
            "larger one)"
        ) from None


def _recover_directory(directory: Path) -> dict[str, Any]:
    journal = directory / JOURNAL
    if not directory.exists():
        raise TraceError(f"{directory}: no such directory; give the directory of a recording that was killed")
    if (directory / MANIFEST).is_file():
        if not journal.is_dir():
            raise TraceError(f"{directory}: whole already, nothing to recover; analyze it as it is")
        return _finish(directory)
    if not (journal / MANIFEST).is_file():
        raise TraceError(f"{journal}: no journal here; give the directory of a recording that was killed")
    held = lock(journal)
    try:
        manifest = _recover(directory, journal)
    finally:
        held.close()
    return manifest


def _recover(directory: Path, journal: Path) -> dict[str, Any]:
    manifest = read_known(journal / MANIFEST)
    for left in [journal / "reserve", *directory.glob("*.tmp"), *journal.glob("*.tmp")]:
        left.unlink(missing_ok=True)
    tables: dict[str, list[dict[str, Any]]] = {}
    parts = [part for part in sorted(journal.glob("*.arrows")) if NUMBERED.fullmatch(part.name)]
    for name in TABLES:
        whole = [path for path in sorted(directory.glob(f"{name}-*.parquet")) if NUMBERED.fullmatch(path.name)]
        tables[name] = [_segment_entry(path) for path in whole]
        numbers = {path.stem for path in whole}
        for part in [part for part in parts if table_of(part) == name]:
            if f"{name}-{part.stem.rpartition('-')[2]}" in numbers:
                continue  # the kill came between the segment and this
            entry = segment_of(part, directory)
            if entry:
                tables[name].append(entry)
    manifest |= {"tables": tables, "complete": False} | _what_the_rows_say(directory, tables, manifest)
    check(manifest, journal / MANIFEST)
    write_json(directory / MANIFEST, manifest)
    open_trace(directory)
    shutil.rmtree(journal)
    return manifest


def _finish(directory: Path) -> dict[str, Any]:
    """The kill came between the manifest and the end of the journal."""
    held = lock(directory / JOURNAL)
    trace = open_trace(directory)
    shutil.rmtree(directory / JOURNAL)
    held.close()
    return trace.manifest


def _what_the_rows_say(
    directory: Path, tables: dict[str, list[dict[str, Any]]], manifest: dict[str, Any]
) -> dict[str, Any]:
    """When the last counters were written, and the losses counted by then: the recorder had no time to sum up."""
    counters = Trace(directory, {"tables": tables}).table("counters", ["ts_ns", "counter", "value"])
    if not counters.num_rows:
        return {}
    losses = counters.filter(pc.starts_with(counters["counter"], "lost/"))
    # Each only grows, so its last value is its largest.
    totals = losses.group_by("counter").aggregate([("value", "max")])
    end, start = pc.max(counters["ts_ns"]).as_py(), manifest.get("ts_start_ns")
    return {
        "ts_end_ns": max(end, start) if isinstance(start, int) else end,
        "losses": {
            name.removeprefix("lost/"): value
            for name, value in zip(totals["counter"].to_pylist(), totals["value_max"].to_pylist(), strict=True)
        },
    }


def _segment_entry(path: Path) -> dict[str, Any]:
    try:
        if not path.is_file():
            raise OSError("not a file")
        rows = pq.ParquetFile(path).metadata.num_rows
    except (OSError, pa.ArrowException, ValueError) as error:
        raise TraceError(f"{path}: damaged ({first_line(error)}); remove it and recover again") from None
    give_to_sudo_user(path)
    return {"file": path.name, "rows": rows, "bytes": path.stat().st_size}
