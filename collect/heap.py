"""Memory that is not needed any more goes back to the kernel: a recording may last for days, on a machine that has other work."""

from __future__ import annotations

import contextlib
import ctypes
import re
from pathlib import Path

import pyarrow as pa

__all__ = ["give_back", "give_back_compiler"]

MADV_PAGEOUT = 21  # since 5.4, 1a4e58cce84e "mm: introduce MADV_PAGEOUT"; include/uapi/asm-generic/mman-common.h
COMPILER = re.compile(r"/lib(LLVM|clang|bcc)[^/]*$")


def give_back() -> None:
    """What the allocators of C and of Arrow keep of what was freed, in all their arenas.

    Each thread has an arena of its own, which keeps what passes through it: without this, 100 MB at a million page
    events a second.
    """
    pa.default_memory_pool().release_unused()
    with contextlib.suppress(AttributeError):  # a GNU function
        ctypes.CDLL(None).malloc_trim(0)


def give_back_compiler() -> None:
    """The libraries of bcc's compiler, which are mapped and will not be used again: they come back by themselves if they are.

    The kernel does so for files that the caller could write (mm/madvise.c, can_do_pageout), so for root.
    """
    libc = ctypes.CDLL(None)
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, mode, *_, path = line.split(None, 5)
        if COMPILER.search(path) and "w" not in mode:
            first, end = (int(address, 16) for address in span.split("-"))
            libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(end - first), MADV_PAGEOUT)
