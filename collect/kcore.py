"""Kernel memory through /proc/kcore: an ELF core file whose notes say where the page tables are.

Needs CAP_SYS_RAWIO; refused under lockdown=confidentiality (fs/proc/kcore.c). The VMCOREINFO note carries what a walk
needs, so no symbol table is asked for (arch/x86/kernel/vmcore_info_64.c, before 7.x crash_core_64.c).
"""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt

from collect.errors import HostError

__all__ = ["KERNEL_IMAGE_BASE", "Kcore"]

KERNEL_IMAGE_BASE = 0xFFFF_FFFF_8000_0000
"""`__START_KERNEL_map` (Documentation/arch/x86/x86_64/mm.rst)."""

PT_LOAD, PT_NOTE = 1, 4
NO_ADDRESS = 0xFFFF_FFFF_FFFF_FFFF


class Kcore:
    """An opened /proc/kcore.

    What it offers is settled when it is opened (fs/proc/kcore.c, open_kcore: kcore_update_ram); `reopen` follows memory
    that has come or gone since.

    Attributes:
        page_offset: virtual address of the direct map's first page.
        ranges: RAM as [first_pfn, end_pfn) pairs, ascending.
        max_pfn: end of the last of them.
        top_pgt: virtual address of the kernel's top page table (`init_top_pgt`).
        paging_levels: 4 or 5.
    """

    def __init__(self, path: Path = Path("/proc/kcore")) -> None:
        self._path = path
        self._fd = -1
        self.reopen()

    def reopen(self) -> None:
        """Open it anew, for the memory that is there now; where that is not permitted any more, go on with what there was.

        Raises HostError.
        """
        path = self._path
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except PermissionError:
            if self._fd >= 0:
                return
            raise _unreadable(path, "Permission denied") from None
        except FileNotFoundError:
            raise HostError(
                f"{path}: this kernel has none (CONFIG_PROC_KCORE is off), so the page tables cannot be read: boot a kernel that "
                "has it; page events alone can be recorded (`directmap-collect record --only-pages`)"
            ) from None
        except OSError as error:
            raise _unreadable(path, error.strerror) from None
        self.close()
        self._fd = fd
        try:
            header = os.pread(self._fd, 64, 0)
        except OSError as error:
            raise _unreadable(path, error.strerror) from None
        if header[:4] != b"\x7fELF":
            raise HostError(f"{path}: not an ELF core file")
        phoff, n_headers = struct.unpack_from("<Q", header, 32)[0], struct.unpack_from("<H", header, 56)[0]
        raw = os.pread(self._fd, 56 * n_headers, phoff)
        self._segments: list[tuple[int, int, int]] = []  # virtual start, end, file offset
        ram: list[tuple[int, int, int]] = []  # virtual, physical, bytes
        note = b""
        for i in range(n_headers):
            kind, _, offset, virtual, physical, _, size, _ = struct.unpack_from("<IIQQQQQQ", raw, 56 * i)
            if kind == PT_NOTE:
                note = os.pread(self._fd, struct.unpack_from("<Q", raw, 56 * i + 32)[0], offset)
            elif kind == PT_LOAD:
                self._segments.append((virtual, virtual + size, offset))
                if physical != NO_ADDRESS and virtual < KERNEL_IMAGE_BASE:
                    ram.append((virtual, physical, size))
        if not ram:
            raise HostError(f"{path}: names no RAM; this kernel's direct map cannot be found")
        # RAM segments lie in the direct map, the lowest of the kernel's areas but for the LDT's.
        self.page_offset = min(virtual - physical for virtual, physical, _ in ram)
        ram = sorted((p, s) for v, p, s in ram if v - p == self.page_offset)  # type: ignore[misc]
        self.ranges = [[first >> 12, (first + size) >> 12] for first, size in ram]  # type: ignore[misc]
        self.max_pfn = self.ranges[-1][1]
        self.note = dict(re.findall(r"^(\w+\(?[\w.]*\)?)=(.*)$", note.decode("latin-1"), re.MULTILINE))
        top = self.note.get("SYMBOL(init_top_pgt)") or self.note.get("SYMBOL(swapper_pg_dir)")
        if top is None:
            raise HostError(f"{path}: its VMCOREINFO note lacks init_top_pgt; not an x86-64 kernel of 4.14 or later?")
        self.top_pgt = int(top, 16)
        self.paging_levels = 5 if self.note.get("NUMBER(pgtable_l5_enabled)", "0") == "1" else 4

    def read(self, virtual: int, size: int) -> bytes:
        """`size` bytes at a virtual address. Raises HostError if the kernel does not give them."""
        for again in (False, True):
            if again:
                self.reopen()  # memory may have come since, and page tables with it
            for start, end, offset in self._segments:
                if start <= virtual and virtual + size <= end:
                    data = os.pread(self._fd, size, offset + virtual - start)
                    if len(data) == size:
                        return data
                    break
        raise HostError(
            f"/proc/kcore: cannot read {size} bytes at {virtual:#x}; is memory being hot-plugged? try again"
        )

    def read_u64(self, virtual: int) -> int:
        """One 64-bit word."""
        return int.from_bytes(self.read(virtual, 8), "little")

    def table(self, virtual: int) -> npt.NDArray[np.uint64]:
        """The 512 entries of the page table at a virtual address."""
        return np.frombuffer(self.read(virtual, 4096), dtype=np.uint64)

    def close(self) -> None:
        """Let go of the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _unreadable(path: Path, why: str | None) -> HostError:
    return HostError(f"{path}: {why}; run as root (CAP_SYS_RAWIO), without lockdown=confidentiality")
