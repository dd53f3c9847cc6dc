"""What a policy may know of the recorded machine: nodes, and free blocks by order at 1 Hz."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from analyze.directmap import DirectMap
from collect.schema import HUGE_FRAME_PAGES, Pte
from collect.trace import Trace
from replay.next_pages import every_page_recorded, next_single_pages
from replay.placement import Host
from replay.pressure import Pressure

__all__ = ["read_host", "room", "whole_ram"]

Int64 = npt.NDArray[np.int64]

_ORDINARY = np.uint64(int(Pte.P | Pte.RW))

N_ORDERS = 11
_PREFIX = "buddyinfo/"


def read_host(trace: Trace, start: DirectMap | None = None, pressure: Pressure | None = None) -> Host:
    """Nodes and free blocks from the counters `buddyinfo/NODE/ZONE/ORDER`; zone DMA is left out, GFP_KERNEL spares it.

    `start`: the map at the start, for the room in frames that are split already. Raises TraceError.
    """
    table = trace.table("counters")
    table = table.filter(pc.starts_with(table.column("counter"), _PREFIX))
    names = table.column("counter").combine_chunks().dictionary_encode()
    parts = [_parse(name) for name in _dictionary(names)]
    nodes = {node for node, _, order in parts if order >= 0}
    ranges = trace.manifest["memory"]["ranges"]
    pages = sum(end - first for first, end in ranges)
    order_of = np.array([order if zone != "DMA" else -1 for _, zone, order in parts], np.int64)
    free_ns, free_blocks = np.zeros(0, np.int64), np.zeros((0, N_ORDERS), np.int64)
    if table.num_rows:
        order = order_of[_indices(names)]
        ts = table.column("ts_ns").to_numpy().astype(np.int64)
        free_ns, at = np.unique(ts, return_inverse=True)
        free_blocks = np.zeros((len(free_ns), N_ORDERS), np.int64)
        counted = order >= 0
        values = np.minimum(table.column("value").to_numpy(), np.uint64(1 << 40)).astype(np.int64)
        np.add.at(free_blocks, (at.reshape(-1)[counted], order[counted]), values[counted])
    host = Host(
        n_nodes=max(1, len(nodes)),
        free_ns=free_ns,
        free_blocks=free_blocks,
        n_frames=max(1, pages // HUGE_FRAME_PAGES),
        room=room(start, ranges) if start is not None else np.zeros(0, np.int64),
        next_pages=partial(next_single_pages, trace) if every_page_recorded(trace) else None,
        recorder_programs=_recorder_programs(trace.manifest["probes"].get("attached")),
    )
    if pressure is None:
        return host
    when, how_much = pressure.moments(trace, host, pages)
    return replace(host, pressure_ns=when, pressure_pages=how_much)


def _recorder_programs(attached: Any) -> int:
    """How many programs the recorder loaded, by the manifest's names of them: `fentry+fexit:FUNCTION` are two."""
    names = attached if isinstance(attached, list) else []
    return sum(1 + name.partition(":")[0].count("+") for name in names if isinstance(name, str))


def room(start: DirectMap, ranges: Iterable[tuple[int, int]]) -> Int64:
    """Ordinary pages (RAM, present, writable) of each 2M frame that 4K entries map."""
    frames = start.split_frames()
    in_ram = np.zeros(len(frames) * HUGE_FRAME_PAGES, np.bool_)
    pages = (frames[:, None] * HUGE_FRAME_PAGES + np.arange(HUGE_FRAME_PAGES)).reshape(-1)
    for first, end in ranges:
        in_ram[np.searchsorted(pages, first) : np.searchsorted(pages, end)] = True
    attrs = start.pages_of(frames)
    ordinary: npt.NDArray[np.bool_] = attrs & _ORDINARY == _ORDINARY
    counts: Int64 = (ordinary & in_ram.reshape(attrs.shape)).sum(axis=1)
    return counts


def _dictionary(names: Any) -> list[str]:
    return names.dictionary.to_pylist() if hasattr(names, "dictionary") else []


def _indices(names: Any) -> npt.NDArray[np.int64]:
    return np.asarray(names.indices.to_numpy(zero_copy_only=False), np.int64)


def _parse(name: str) -> tuple[str, str, int]:
    """(node, zone, order) of a counter's name; order -1 where it is none of ours."""
    parts = name.removeprefix(_PREFIX).split("/")
    if len(parts) != 3 or not parts[2].isdecimal() or int(parts[2]) >= N_ORDERS:
        return "", "", -1
    return parts[0], parts[1], int(parts[2])


def whole_ram(ranges: Iterable[tuple[int, int]], n_frames: int) -> npt.NDArray[np.bool_]:
    """Per 2M frame, whether all of it is RAM. `ranges`: [first, end) page frame numbers."""
    whole = np.zeros(n_frames, np.bool_)
    for first, end in ranges:
        whole[-(-first // HUGE_FRAME_PAGES) : end // HUGE_FRAME_PAGES] = True
    return whole
