"""Finishes the trace of a recorder that was killed, or whose disk is full, from its journal."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from collect.durable import JOURNAL, give_to_sudo_user, lock, write_json
from collect.errors import HostError, TraceError
from collect.journal import TraceWriter
from collect.manifest import MANIFEST
from collect.schema import TABLES
from collect.segments import segment_of, table_of
from collect.trace import open_trace

__all__ = ["finish_after", "recover"]

FULL = (errno.ENOSPC, errno.EDQUOT)


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
    try:
        manifest = json.loads((journal / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TraceError(f"{journal / MANIFEST}: unreadable ({error}); the trace cannot be recovered") from None
    for left in [journal / "reserve", *directory.glob("*.tmp"), *journal.glob("*.tmp")]:
        left.unlink(missing_ok=True)
    tables: dict[str, list[dict[str, Any]]] = {}
    for name in TABLES:
        whole = sorted(directory.glob(f"{name}-*.parquet"))
        tables[name] = [_segment_entry(path) for path in whole]
        numbers = {path.stem for path in whole}
        for part in [part for part in sorted(journal.glob("*.arrows")) if table_of(part) == name]:
            if f"{name}-{part.stem.rpartition('-')[2]}" in numbers:
                continue  # the kill came between the segment and this
            entry = segment_of(part, directory)
            if entry:
                tables[name].append(entry)
    manifest |= {"tables": tables, "complete": False} | _what_the_rows_say(directory, tables, manifest)
    write_json(directory / MANIFEST, manifest)
    open_trace(directory)
    shutil.rmtree(journal)
    return manifest  # type: ignore[no-any-return]


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
    parts = [pq.read_table(directory / segment["file"]) for segment in tables["counters"]]
    if not parts:
        return {}
    counters = pa.concat_tables(parts)
    losses = counters.filter(pc.starts_with(counters["counter"], "lost/"))
    # Each only grows, so its last value is its largest.
    totals = losses.group_by("counter").aggregate([("value", "max")])
    end = pc.max(counters["ts_ns"]).as_py()
    return {
        "ts_end_ns": max(end, manifest["ts_start_ns"]),
        "losses": {
            name.removeprefix("lost/"): value
            for name, value in zip(totals["counter"].to_pylist(), totals["value_max"].to_pylist(), strict=True)
        },
    }


def _segment_entry(path: Path) -> dict[str, Any]:
    try:
        rows = pq.ParquetFile(path).metadata.num_rows
    except (OSError, pa.ArrowException, ValueError) as error:
        raise TraceError(f"{path}: damaged ({error}); remove it and recover again") from None
    give_to_sudo_user(path)
    return {"file": path.name, "rows": rows, "bytes": path.stat().st_size}
