"""What a policy may know of the recorded machine: nodes, and free blocks by order at 1 Hz."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from collect.schema import HUGE_FRAME_PAGES
from collect.trace import Trace
from replay.placement import Host

__all__ = ["read_host", "whole_ram"]

N_ORDERS = 11
_PREFIX = "buddyinfo/"


def read_host(trace: Trace) -> Host:
    """Nodes and free blocks from the counters `buddyinfo/NODE/ZONE/ORDER`; zone DMA is left out, GFP_KERNEL spares it."""
    table = trace.table("counters")
    table = table.filter(pc.starts_with(table.column("counter"), _PREFIX))
    names = table.column("counter").combine_chunks().dictionary_encode()
    parts = [_parse(name) for name in _dictionary(names)]
    nodes = {node for node, _, order in parts if order >= 0}
    pages = sum(end - first for first, end in trace.manifest["memory"]["ranges"])
    n_frames = max(1, pages // HUGE_FRAME_PAGES)
    if not table.num_rows:
        return Host(1, np.zeros(0, np.int64), np.zeros((0, N_ORDERS), np.int64), n_frames)
    order_of = np.array([order if zone != "DMA" else -1 for _, zone, order in parts], np.int64)
    order = order_of[_indices(names)]
    ts = table.column("ts_ns").to_numpy().astype(np.int64)
    free_ns, at = np.unique(ts, return_inverse=True)
    free_blocks = np.zeros((len(free_ns), N_ORDERS), np.int64)
    counted = order >= 0
    values = np.minimum(table.column("value").to_numpy(), np.uint64(1 << 40)).astype(np.int64)
    np.add.at(free_blocks, (at.reshape(-1)[counted], order[counted]), values[counted])
    return Host(max(1, len(nodes)), free_ns, free_blocks, n_frames)


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
