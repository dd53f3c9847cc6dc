"""A trace as ui.perfetto.dev shows it: changes by thread, splits by user, levels and counters, losses and snapshots, over time.

Times are those of the trace (CLOCK_MONOTONIC, nanoseconds since boot).
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from analyze import enriched
from analyze.analysis import Analysis
from analyze.counter_series import CounterSeries
from analyze.export.perfetto_writer import BEGIN, COUNTER, END, INSTANT, Events, Writer
from analyze.health import Health
from analyze.nesting import nested_events
from analyze.words.health import verdict_text
from analyze.words.plain_text import plain
from collect.errors import HostError
from collect.schema import LEAF_PAGES, Level, Moment

__all__ = ["write_perfetto"]

MAX_COUNTERS = 4096
"""Counters that get a track; a machine of many nodes has some hundreds, a forged trace may name millions."""

BATCH_EVENTS = 1 << 16
"""Begins and ends of changes that are gathered together."""

_LEVELS = {"entries_1g": ("1G", Level.G1), "entries_2m": ("2M", Level.M2), "entries_4k": ("4K", Level.K4)}


def write_perfetto(analysis: Analysis, health: Health, path: Path) -> None:
    """Write it. Raises HostError where `path` cannot be written."""
    try:
        with path.open("wb") as file:
            _write(analysis, health, file)
    except OSError as error:
        raise HostError(f"{path}: cannot be written ({error.strerror}); choose another -o") from None


def _write(analysis: Analysis, health: Health, file: BinaryIO) -> None:
    writer = Writer(file)
    top = writer.track("direct map")
    _recording(analysis, health, writer, top)
    _levels(analysis, writer, top)
    _splits(analysis, writer, top)
    _snapshots(analysis, writer, top)
    _losses(analysis, health, writer, top)
    _counters(analysis, writer)
    _changes(analysis, writer)


def _recording(analysis: Analysis, health: Health, writer: Writer, top: int) -> None:
    """One slice from START to END that says whose trace this is and whether to believe it."""
    manifest = analysis.trace.manifest
    said = {
        "health": verdict_text(health),
        "exact": "yes" if health.exact else "no",
        "kernel": str(manifest["kernel"].get("release")),
        "machine": str(manifest["cpu"].get("model")) + (", emulated: times say nothing" if health.emulated else ""),
        "created": str(manifest["created"]),
        "recorder": f"directmap {manifest['tool_version']}",
    }
    texts = {key: _one(plain(value, 400)) for key, value in said.items()}
    begin = manifest["ts_start_ns"]
    end = max(manifest["ts_end_ns"], begin)
    _slices(writer, writer.track("recording", top), [begin], [end], _one(health.trace), texts)


def _levels(analysis: Analysis, writer: Writer, top: int) -> None:
    table = enriched.levels(analysis)
    ts = table["ts_ns"].to_numpy().astype(np.int64)
    for column, (name, level) in _LEVELS.items():
        mapped = table[column].to_numpy().astype(np.int64) * (LEAF_PAGES[level] * 4096)
        track = writer.counter(f"mapped by {name} entries", top, is_bytes=True)
        writer.write(Events(COUNTER, ts, np.full(len(ts), track), value=mapped))


def _splits(analysis: Analysis, writer: Writer, top: int) -> None:
    """An instant for each split, on the track of its user."""
    table = enriched.splits(analysis)
    columns = {name: table[name].combine_chunks() for name in table.column_names}
    users = columns["user"]
    tracks = np.array([writer.track(f"splits by {user}", top) for user in users.dictionary.to_pylist()], np.int64)
    if not len(table):
        return
    names = [f"{size} split" for size in columns["level"].dictionary.to_pylist()]
    writer.write(
        Events(
            INSTANT,
            columns["ts_ns"].to_numpy().astype(np.int64),
            tracks[users.indices.to_numpy()],
            name=pa.DictionaryArray.from_arrays(columns["level"].indices, pa.array(names)),
            numbers={name: columns[name].to_numpy() for name in ("pid", "tgid", "call_id")},
            addresses={name: columns[name].to_numpy() for name in ("pfn", "page")},
            texts={"owner": columns["name"], **{name: columns[name] for name in ("comm", "call", "attrs", "stack")}},
        )
    )


def _snapshots(analysis: Analysis, writer: Writer, top: int) -> None:
    """A slice for each, from its first to its last reading of a page table."""
    names_used = ("snapshot", "moment", "ts_ns", "ts_end_ns")
    columns = {name: analysis.rebuilt.snapshots.column(name) for name in names_used}
    if not len(columns["snapshot"]):
        return
    numbers, first = np.unique(columns["snapshot"], return_index=True)
    place = np.searchsorted(numbers, columns["snapshot"])
    begin = np.full(len(numbers), np.iinfo(np.int64).max)
    end = np.zeros(len(numbers), np.int64)
    np.minimum.at(begin, place, columns["ts_ns"].astype(np.int64))
    np.maximum.at(end, place, columns["ts_end_ns"].astype(np.int64))
    moments = [f"snapshot: {Moment(moment).name.lower()}" for moment in columns["moment"][first].tolist()]
    names = pa.array(moments).dictionary_encode()
    _slices(writer, writer.track("snapshots", top), begin, np.maximum(end, begin), names, {})


def _losses(analysis: Analysis, health: Health, writer: Writer, top: int) -> None:
    """A slice for each time in which a class of events was lost."""
    spans = [(lost, span) for lost in health.losses for span in lost.spans]
    if not spans:
        return
    start = analysis.trace.manifest["ts_start_ns"]
    for lost in health.losses:
        track = writer.track(f"lost: {lost.text}", top)
        begin = [start + round(span.from_s * 1e9) for span in lost.spans]
        end = [start + round(span.to_s * 1e9) for span in lost.spans]
        names = pa.array([f"{span.lost:,} lost" for span in lost.spans], pa.string()).dictionary_encode()
        doubts = pa.array(["; ".join(lost.puts_in_doubt)] * len(begin), pa.string()).dictionary_encode()
        _slices(writer, track, begin, end, names, {"puts in doubt": doubts})


def _counters(analysis: Analysis, writer: Writer) -> None:
    """Every counter of the trace as it was read."""
    series = CounterSeries(analysis.trace)
    groups: dict[str, int] = {}
    for name in series.names[:MAX_COUNTERS]:
        ts, values = series.of(name)
        group = name.split("/", 1)[0]
        if group not in groups:
            groups[group] = writer.track(plain(f"counters: {group}"))
        is_kb = group == "meminfo"
        track = writer.counter(plain(name), groups[group], is_bytes=is_kb)
        value = np.minimum(values, np.uint64(1 << 52)).astype(np.int64) * (1024 if is_kb else 1)
        writer.write(Events(COUNTER, ts, np.full(len(ts), track), value=value))


def _changes(analysis: Analysis, writer: Writer) -> None:
    """A slice for each change on the track of its thread; calls nested in it below it."""
    table = enriched.changes(analysis)
    if not len(table):
        return
    columns = {name: table[name].combine_chunks() for name in table.column_names}
    tgid, pid = columns["tgid"].to_numpy().astype(np.int64), columns["pid"].to_numpy().astype(np.int64)
    tasks, first, thread = np.unique(tgid << 32 | pid, return_index=True, return_inverse=True)
    comms = columns["comm"].take(pa.array(first)).to_pylist()
    for at in np.unique(tasks >> 32, return_index=True)[1].tolist():
        writer.process(int(tasks[at]) >> 32, comms[at])
    tracks = np.array(
        [
            writer.thread(int(task) & 0xFFFF_FFFF, int(task) >> 32, comm)
            for task, comm in zip(tasks, comms, strict=True)
        ],
        np.int64,
    )
    changes = analysis.rebuilt.changes
    row, is_end, ts = nested_events(
        thread.reshape(-1).astype(np.int64),
        changes.columns["ts_ns"],
        changes.exit_ns,
        changes.columns["depth"].astype(np.int64),
    )
    track = tracks[thread.reshape(-1)]
    numbers = ("cpu", "n_pages", "n_done", "call_id", "parent_id", "has_exit")
    texts = ("user", "space", "set", "cleared", "level_before", "level_first", "level_last", "stack")
    for first_event in range(0, len(row), BATCH_EVENTS):
        part = slice(first_event, first_event + BATCH_EVENTS)
        begins, ends = np.flatnonzero(~is_end[part]), np.flatnonzero(is_end[part])
        called, ended = row[part][begins], row[part][ends]
        at = pa.array(called)
        taken = {name: column.take(at) for name, column in columns.items()}
        writer.write(
            Events(
                BEGIN,
                ts[part][begins],
                track[called],
                name=taken["call"],
                place=begins,
                numbers={name: taken[name].to_numpy(zero_copy_only=False).astype(np.uint64) for name in numbers},
                addresses={name: taken[name].to_numpy() for name in ("address", "pfn")},
                texts={"owner": taken["name"], **{name: taken[name] for name in texts}},
            ),
            Events(END, ts[part][ends], track[ended], place=ends),
        )


def _slices(
    writer: Writer,
    track: int,
    begin: npt.NDArray[np.int64] | list[int],
    end: npt.NDArray[np.int64] | list[int],
    names: pa.DictionaryArray,
    texts: dict[str, pa.DictionaryArray],
) -> None:
    """Slices of one track, one after the other."""
    tracks, place = np.full(len(begin), track), 2 * np.arange(len(begin))
    writer.write(
        Events(BEGIN, np.asarray(begin, np.int64), tracks, name=names, place=place, texts=texts),
        Events(END, np.asarray(end, np.int64), tracks, place=place + 1),
    )


def _one(text: str) -> pa.DictionaryArray:
    """A dictionary column of one cell."""
    return pa.array([text], pa.string()).dictionary_encode()
