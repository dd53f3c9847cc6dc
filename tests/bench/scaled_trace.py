"""Traces of any size for the analyzer's benchmark, made of real ones: their rows again and again, later and elsewhere.

The format is what the recorder writes, segment by segment; what the rows mean is real only within one repetition. Nothing
made here is shown to anybody as a recording.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from collect.schema import HUGE_FRAME_PAGES, TABLES, Level, Moment, Pte, Space
from collect.segments import write_segment
from collect.trace import open_trace

__all__ = ["many_changes", "many_pages", "wide_host"]

GIGA = 1 << 18
MEMORIES = 4
"""Page events of one repetition fall into another memory than those of the next three."""
SEGMENT_ROWS = 4_000_000
PLAIN = int(Pte.P | Pte.RW | Pte.A | Pte.D | Pte.G | Pte.NX)


def many_pages(state: Path, events: Path, target: Path, n_rows: int) -> Path:
    """The trace `state` with `n_rows` page events from `events`, on memory behind its own.

    Args:
        state: a whole recording, whose map, changes and regions stay as they are.
        events: a recording with --pages all.
    """
    shutil.copytree(state, target)
    manifest = json.loads((target / "manifest.json").read_text())
    for segment in manifest["tables"]["pages"]:
        (target / segment["file"]).unlink()
    source = open_trace(events)
    table = source.table("pages").sort_by("ts_ns")
    ts = table["ts_ns"].to_numpy() - table["ts_ns"].to_numpy()[0]
    pfn = table["pfn"].to_numpy()
    length = int(ts[-1]) + 1
    size = -(-source.manifest["memory"]["max_pfn"] // GIGA) * GIGA
    behind = -(-manifest["memory"]["max_pfn"] // GIGA) * GIGA
    manifest["tables"]["pages"] = []
    made = repetition = 0
    while made < n_rows:
        n = min(n_rows - made, table.num_rows)
        shifted = table.slice(0, n)
        columns = {
            "ts_ns": ts[:n] + np.uint64(manifest["ts_start_ns"] + repetition * length),
            "pfn": pfn[:n] + np.uint64(behind + repetition % MEMORIES * size),
        }
        for name, cells in columns.items():
            at = TABLES["pages"].get_field_index(name)
            shifted = shifted.set_column(at, TABLES["pages"].field(at), pa.array(cells))
        for first in range(0, n, SEGMENT_ROWS):
            batches = shifted.slice(first, SEGMENT_ROWS).combine_chunks().to_batches()
            number = len(manifest["tables"]["pages"])
            manifest["tables"]["pages"].append(write_segment(target, "pages", number, batches))
        made += n
        repetition += 1
    end = behind + MEMORIES * size
    manifest["memory"] |= {"max_pfn": end, "ranges": [*manifest["memory"]["ranges"], [behind, end]]}
    manifest["ts_end_ns"] = max(manifest["ts_end_ns"], manifest["ts_start_ns"] + repetition * length)
    manifest["sampling"] = {"pages": "all", "page_sample": 1}
    manifest["cpu"] |= {key: source.manifest["cpu"][key] for key in ("model", "emulated")}
    return _finished(target, manifest)


def many_changes(source: Path, target: Path, n_rows: int) -> Path:
    """The trace `source` with its changes again and again, each time later, until there are `n_rows` of them."""
    shutil.copytree(source, target)
    trace = open_trace(source)
    manifest = json.loads((target / "manifest.json").read_text())
    for name in ("changes", "splits"):
        for segment in manifest["tables"].get(name, []):
            (target / segment["file"]).unlink()
        manifest["tables"][name] = []
    table = trace.table("changes")
    inside = np.flatnonzero(table["ts_ns"].to_numpy() >= manifest["ts_start_ns"])
    table = table.take(inside)
    length = manifest["ts_end_ns"] - manifest["ts_start_ns"] + 1_000_000_000
    most_id = int(table["call_id"].to_numpy().max()) + 1
    made = repetition = 0
    while made < n_rows:
        part = table.slice(0, min(n_rows - made, table.num_rows))
        for name, shift in (("ts_ns", length), ("call_id", most_id), ("parent_id", most_id)):
            cells = part[name].to_numpy()
            moved = np.where((cells > 0) | (name == "ts_ns"), cells + np.uint64(repetition * shift), cells)
            at = TABLES["changes"].get_field_index(name)
            part = part.set_column(at, TABLES["changes"].field(at), pa.array(moved))
        number = len(manifest["tables"]["changes"])
        manifest["tables"]["changes"].append(
            write_segment(target, "changes", number, part.combine_chunks().to_batches())
        )
        made += part.num_rows
        repetition += 1
    moved_ns = (repetition - 1) * length
    manifest["ts_end_ns"] += moved_ns
    snapshots = trace.table("snapshots")
    late = np.isin(snapshots["moment"].to_numpy(), (Moment.END, Moment.AFTER_DETACH))
    for name in ("ts_ns", "ts_end_ns"):
        cells = snapshots[name].to_numpy() + np.where(late, np.uint64(moved_ns), np.uint64(0))
        at = TABLES["snapshots"].get_field_index(name)
        snapshots = snapshots.set_column(at, TABLES["snapshots"].field(at), pa.array(cells))
    for segment in manifest["tables"]["snapshots"]:
        (target / segment["file"]).unlink()
    manifest["tables"]["snapshots"] = [write_segment(target, "snapshots", 0, snapshots.combine_chunks().to_batches())]
    return _finished(target, manifest)


def wide_host(source: Path, target: Path, n_bytes: int, split_share: float) -> Path:
    """The trace `source` with more memory behind its own, up to `n_bytes`, of whose 2M frames a share is split.

    Each split frame has one page that is read-only, so three runs; the split ones are spread evenly.
    """
    shutil.copytree(source, target)
    trace = open_trace(source)
    manifest = json.loads((target / "manifest.json").read_text())
    behind = -(-manifest["memory"]["max_pfn"] // GIGA) * GIGA
    end = n_bytes >> 12
    frames = np.arange(behind // HUGE_FRAME_PAGES, end // HUGE_FRAME_PAGES)
    split = np.floor(np.arange(1, len(frames) + 1) * split_share) > np.floor(np.arange(len(frames)) * split_share)
    special = frames[split] * HUGE_FRAME_PAGES
    at = (np.arange(len(special)) * 37) % (HUGE_FRAME_PAGES - 2) + 1
    between = np.concatenate((frames[:1] - 1, frames[split], frames[-1:] + 1))  # 2M leaves lie behind each but the last
    gaps = np.flatnonzero(np.diff(between) > 1)
    runs = [
        (special, Level.K4, at, PLAIN),
        (special + at, Level.K4, np.ones(len(special), np.int64), PLAIN & ~int(Pte.RW)),
        (special + at + 1, Level.K4, HUGE_FRAME_PAGES - 1 - at, PLAIN),
        ((between[:-1][gaps] + 1) * HUGE_FRAME_PAGES, Level.M2, np.diff(between)[gaps] - 1, PLAIN),
    ]
    pfn = np.concatenate([run[0] for run in runs])
    order = np.argsort(pfn)
    level = np.concatenate([np.full(len(run[0]), int(run[1])) for run in runs])[order]
    leaves = np.concatenate([run[2] for run in runs])[order]
    attrs = np.concatenate([np.full(len(run[0]), run[3], np.uint64) for run in runs])[order]
    old = trace.table("snapshots").to_pandas()
    parts = [trace.table("snapshots")]
    for number, rows in old[old["space"] == Space.DIRECT_MAP].groupby("snapshot"):
        first = rows.iloc[0]
        cells = {name: np.full(len(pfn), first[name]) for name in ("snapshot", "moment", "ts_ns", "ts_end_ns", "space")}
        cells |= {"pfn": pfn[order], "level": level, "n_leaves": leaves, "attrs": attrs}
        assert number == first["snapshot"]
        parts.append(
            pa.table([pa.array(cells[f.name]).cast(f.type) for f in TABLES["snapshots"]], schema=TABLES["snapshots"])
        )
    for segment in manifest["tables"]["snapshots"]:
        (target / segment["file"]).unlink()
    whole = pa.concat_tables(parts).combine_chunks()
    manifest["tables"]["snapshots"] = [write_segment(target, "snapshots", 0, whole.to_batches())]
    manifest["memory"] |= {"max_pfn": end, "ranges": [*manifest["memory"]["ranges"], [behind, end]]}
    return _finished(target, manifest)


def _finished(target: Path, manifest: dict[str, Any]) -> Path:
    (target / "manifest.json").write_text(json.dumps(manifest, indent=1))
    return target
