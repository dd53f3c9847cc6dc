"""Stacks of a trace: their frames, and sets of symbols found in them without a loop per event."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from collect.errors import TraceError
from collect.trace import Trace

__all__ = ["Stacks", "symbol"]

MAX_STACK_ID = 1 << 26

MAX_LANDMARKS = 4

_INNER = re.compile(r"(__)?change_page_attr|bpf_trampoline|bpf_prog_[0-9a-f]{16}|__bpf_prog_e|ftrace_trampoline|0x")
"""What the choke point and the recorder's own probe put into every stack."""


def symbol(frame: str) -> str:
    """The kernel's name in a frame: without offset, module and the suffixes that compilers give to parts and clones."""
    name = frame.split("+", 1)[0].split(" ", 1)[0]
    return name.split(".", 1)[0] or name


class Stacks:
    """All stacks of a trace. Raises TraceError where ids come twice or are out of bounds."""

    def __init__(self, trace: Trace) -> None:
        table = trace.table("stacks")
        ids = table["stack_id"].to_numpy()
        if len(ids) and ids.max() > MAX_STACK_ID:
            raise TraceError(f"{trace.path}: table stacks: stack_id {ids.max()} is out of bounds; copy the trace anew")
        if len(np.unique(ids)) < len(ids):
            raise TraceError(f"{trace.path}: table stacks: a stack_id comes twice; copy the trace anew")
        self._frames: dict[int, list[str]] = dict(zip(ids.tolist(), table["frames"].to_pylist(), strict=True))
        self.symbols: dict[int, list[str]] = {key: [symbol(f) for f in value] for key, value in self._frames.items()}
        self.size = int(ids.max()) + 1 if len(ids) else 1

    def frames(self, stack_id: int) -> list[str]:
        """Frames innermost first, as recorded; empty for 0 or an unknown id."""
        return self._frames.get(int(stack_id), [])

    def landmarks(self, stack_id: int) -> list[str]:
        """The functions that tell where a change came from, innermost first: the API, and who called it."""
        symbols = self.symbols.get(int(stack_id), [])
        telling = [name for name in symbols if not _INNER.match(name)] or symbols
        return [name for i, name in enumerate(telling) if i == 0 or name != telling[i - 1]][:MAX_LANDMARKS]

    def having(self, names: Iterable[str]) -> npt.NDArray[np.bool_]:
        """By stack id: does the stack hold one of these symbols?"""
        wanted = frozenset(names)
        found = np.zeros(self.size, np.bool_)
        for stack_id, symbols in self.symbols.items():
            found[stack_id] = not wanted.isdisjoint(symbols)
        return found

    def known(self, stack_ids: npt.NDArray[np.uint32]) -> npt.NDArray[np.int64]:
        """Ids that index arrays of `size`: an unknown one becomes 0, which stands for no stack."""
        ids = stack_ids.astype(np.int64)
        return np.where(ids < self.size, ids, 0)
