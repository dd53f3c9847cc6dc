"""Names and stacks, each stored once and named by a number from then on."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from collect.kallsyms import Kallsyms
from collect.schema import TABLES

__all__ = ["Interning", "trim"]

Records = npt.NDArray[np.void]
U64 = npt.NDArray[np.uint64]


class Interning:
    """The tables `strings` and `stacks` as they grow.

    Args:
        symbols: to name stack frames; read again when an address is new.
    """

    def __init__(self, symbols: Kallsyms) -> None:
        self._symbols = symbols
        self._strings: dict[bytes, int] = {b"": 0}
        self._stacks: dict[bytes, int] = {}
        self._new_strings: list[tuple[int, str]] = [(0, "")]
        self._new_stacks: list[tuple[int, U64]] = []
        # Stacks whose event was not drained yet, with the keys that the events will name.
        self._keys = np.empty(0, np.uint64)
        self._ids = np.empty(0, np.uint32)

    def string_ids(self, names: npt.NDArray[np.bytes_]) -> npt.NDArray[np.uint32]:
        """Ids of names, new ones for those that are new."""
        distinct, inverse = np.unique(names, return_inverse=True)
        ids = np.empty(len(distinct), np.uint32)
        for i, name in enumerate(distinct.tolist()):
            if name not in self._strings:
                self._strings[name] = len(self._strings)
                self._new_strings.append((self._strings[name], name.decode(errors="replace")))
            ids[i] = self._strings[name]
        return ids[inverse]

    def string_rows(self) -> pa.Table:
        """Rows of the names that are new since the last call."""
        rows, self._new_strings = self._new_strings, []
        return pa.table(
            [
                pa.array([number for number, _ in rows], pa.uint32()),
                pa.array([text for _, text in rows], pa.string()),
            ],
            schema=TABLES["strings"],
        )

    def take_stacks(self, records: Records) -> None:
        """Stacks (`records.STACK`), with the keys that events will name them by."""
        if len(records) == 0:
            return
        ips = records["ip"].copy()
        depth = np.maximum(records["n_bytes"], 0) // 8
        ips[np.arange(ips.shape[1])[None, :] >= depth[:, None]] = 0
        distinct, inverse = np.unique(ips.view(np.dtype((np.void, ips.shape[1] * 8))).ravel(), return_inverse=True)
        ids = np.empty(len(distinct), np.uint32)
        for i, raw in enumerate(distinct):
            key = raw.tobytes()
            if key not in self._stacks:
                self._stacks[key] = len(self._stacks) + 1
                frames = np.frombuffer(key, np.uint64)
                self._new_stacks.append((self._stacks[key], frames[frames != 0]))
            ids[i] = self._stacks[key]
        keys = np.concatenate([self._keys, records["key"]])
        self._ids = np.concatenate([self._ids, ids[inverse]])
        order = np.argsort(keys, kind="stable")
        self._keys, self._ids = keys[order], self._ids[order]

    def stack_ids(self, keys: U64) -> npt.NDArray[np.uint32]:
        """Ids of stacks by their keys; 0 where none was taken."""
        if len(self._keys) == 0:
            return np.zeros(len(keys), np.uint32)
        at = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return np.where(self._keys[at] == keys, self._ids[at], 0).astype(np.uint32)

    def forget_stacks(self) -> None:
        """Let go of the keys of older stacks."""
        # An event follows its stack at once; two ticks' worth of the newest keys is more than enough.
        keep = 4096
        self._keys, self._ids = self._keys[-keep:], self._ids[-keep:]

    def stack_rows(self) -> pa.Table:
        """Rows of the stacks that are new since the last call."""
        if not self._new_stacks:
            return TABLES["stacks"].empty_table()
        addresses = np.unique(np.concatenate([frames for _, frames in self._new_stacks]))
        names = self._symbols.names(addresses)
        core = self._symbols.is_core_text(addresses)
        if any(name == "?" for name, ours in zip(names, core.tolist(), strict=True) if not ours):
            self._symbols.reread()
            names = self._symbols.names(addresses)
        table = dict(zip(addresses.tolist(), names, strict=True))
        rows = [(number, trim([table[ip] for ip in frames.tolist()])) for number, frames in self._new_stacks]
        self._new_stacks = []
        return pa.table(
            [
                pa.array([number for number, _ in rows], pa.uint32()),
                pa.array([frames for _, frames in rows], TABLES["stacks"].field("frames").type),
            ],
            schema=TABLES["stacks"],
        )


def trim(frames: list[str]) -> list[str]:
    """A stack without our own probes' frames: neither the programs nor the trampolines that call them."""
    kept = [name for name in frames if name != "?" and not name.startswith(("bpf_trampoline_", "__bpf_prog_"))]
    for i, name in enumerate(kept):
        if not name.endswith("[bpf]"):
            return kept[i:]
    return kept
