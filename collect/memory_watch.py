"""What changes of the machine's memory while a recording runs: memory that comes or goes, KFENCE's pool."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from collect.host import kfence_pool
from collect.kallsyms import Kallsyms
from collect.kcore import Kcore
from collect.kernel import Kernel
from collect.pagetables import Walker
from collect.rows import RowMaker
from collect.schema import LEAF_PAGES, ChangeKind, Level

__all__ = ["MemoryWatch", "memory_watch"]

HOTPLUG_KINDS = (ChangeKind.HOTPLUG_ADD, ChangeKind.HOTPLUG_REMOVE)


class MemoryWatch:
    """Keeps everyone's idea of the memory's extent up to date.

    Args:
        kcore, walker, rows: told of memory that comes.
        memory: of the manifest (`host.memory_facts`); updated in place.
    """

    def __init__(self, kcore: Kcore, symbols: Kallsyms, walker: Walker, rows: RowMaker, memory: dict[str, Any]) -> None:
        self._kcore, self._symbols, self.walker, self._rows = kcore, symbols, walker, rows
        self._memory = memory
        self._pending: list[tuple[int, int]] = []
        self._moved = False
        vmalloc = symbols.address("vmalloc_base")  # where the kernel's next area begins (asm/pgtable_64_types.h)
        if vmalloc is not None:
            mapped = walker.mapped_gigs((kcore.read_u64(vmalloc) - kcore.page_offset) >> 30)
            if mapped > walker.n_gigs:
                self._reach(mapped * LEAF_PAGES[Level.G1])

    def note(self, changes: npt.NDArray[np.void]) -> None:
        """Look for hotplug among drained changes, before rows are made of them."""
        for change in changes[np.isin(changes["kind"], HOTPLUG_KINDS)]:
            first = int(change["address"] - np.uint64(self._kcore.page_offset)) >> 12
            end = first + int(change["n_pages"])
            if (first, end) not in self._pending:
                self._pending.append((first, end))
            self._moved = True
            self._reach(end)

    def _reach(self, end_pfn: int) -> None:
        self.walker.reach(end_pfn)
        self._rows.max_pfn = max(self._rows.max_pfn, end_pfn)
        self._memory["max_pfn"] = max(self._memory["max_pfn"], end_pfn)

    def take(self) -> list[tuple[int, int]]:
        """Ranges [first_pfn, end_pfn) to read again: their entries were made in code that cannot be probed."""
        taken, self._pending = self._pending, []
        if taken:
            self._kcore.reopen()
        return taken

    def finish(self) -> None:
        """At the end of the recording: the memory there is now, and KFENCE's pool, which may have come late."""
        if self._moved:
            self._kcore.reopen()
            self._memory["ranges"] = self._kcore.ranges
            self._memory["max_pfn"] = max(self._memory["max_pfn"], self._kcore.max_pfn)
        # kfence_init_late (mm/kfence/core.c, since 5.18) makes the pool when sample_interval is first set through sysfs.
        self._memory["kfence_pool"] = self._memory["kfence_pool"] or kfence_pool(self._kcore, self._symbols)


def memory_watch(kernel: Kernel, rows: RowMaker) -> MemoryWatch | None:
    """The watch over a kernel whose page tables are read; None where they are not."""
    if kernel.kcore is None or kernel.walker is None:
        return None
    return MemoryWatch(kernel.kcore, kernel.symbols, kernel.walker, rows, kernel.memory)
