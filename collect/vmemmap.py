"""Where the kernel's array of `struct page` begins, found without /proc/kcore.

A page's frame number is its struct's place in that array, (page - vmemmap_base) / 64, and `vmemmap_base` moves with
KASLR. Where neither /proc/kcore nor a symbol for it is at hand (no CONFIG_KALLSYMS_ALL), it follows from pages of our
own: the allocation tracepoint says where their structs are, /proc/self/pagemap which frames they are.
"""

from __future__ import annotations

import mmap
import threading
from pathlib import Path

import numpy as np
import numpy.typing as npt

from collect.compiler import compile_program, import_bcc
from collect.errors import HostError

__all__ = ["base_from_pages", "find_vmemmap"]

U64 = npt.NDArray[np.uint64]

STRUCT_PAGE_BYTES = 64
BASE_ALIGNMENT = 1 << 30
N_PAGES = 64
N_SEEN = 4 * N_PAGES
PRESENT = np.uint64(1 << 63)
FRAME = np.uint64((1 << 55) - 1)
"""Documentation/admin-guide/mm/pagemap.rst: bits 0 to 54 are the frame's number, to CAP_SYS_ADMIN only."""

_TEXT = """
BPF_ARRAY(seen, u64, N_SEEN);
BPF_ARRAY(n_seen, u32, 1);

RAW_TRACEPOINT_PROBE(mm_page_alloc)
{
	u32 zero = 0, *n = n_seen.lookup(&zero);
	u64 page = ctx->args[0];

	if (n && ctx->args[1] == 0 && (u32)bpf_get_current_pid_tgid() == TID && *n < N_SEEN) {
		seen.update(n, &page);
		*n += 1;
	}
	return 0;
}
"""


def find_vmemmap() -> int:
    """`vmemmap_base`. Raises HostError where raw tracepoints are refused or frame numbers are hidden."""
    flags = [f"-DN_SEEN={N_SEEN}", f"-DTID={threading.get_native_id()}"]
    bpf = compile_program(import_bcc(), _TEXT, flags).bpf
    try:
        pfns = _touch(N_PAGES)
        n = next(iter(bpf["n_seen"].values())).value
        pages = np.array([entry.value for entry in bpf["seen"].values()][:n], np.uint64)
    finally:
        bpf.cleanup()
    base = base_from_pages(pages, pfns)
    if base is None:
        raise HostError(
            f"vmemmap_base: {n} allocations and {len(pfns)} pages of our own do not agree on it; page events would have "
            "wrong frame numbers, so recording is refused; try again"
        )
    return base


def base_from_pages(pages: U64, pfns: U64) -> int | None:
    """The base by which the structs at addresses `pages` are those of the frames `pfns`; None if they disagree.

    Pairs are not known, and either side may hold others. Neighbours shift a base by a few structs, which its alignment
    rules out: memory is placed by whole 1 GiB (arch/x86/mm/kaslr.c, kernel_randomize_memory).
    """
    bases, n = np.unique(pages[None, :] - pfns[:, None] * np.uint64(STRUCT_PAGE_BYTES), return_counts=True)
    aligned = bases & np.uint64(BASE_ALIGNMENT - 1) == 0
    bases, n = bases[aligned], n[aligned]
    if len(bases) == 0 or n.max() * 4 < len(pfns) * 3:
        return None
    return int(bases[np.argmax(n)])


def _touch(n_pages: int) -> U64:
    """Have pages allocated for us, one by one; their frames."""
    with mmap.mmap(-1, n_pages * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as area:
        area.madvise(mmap.MADV_NOHUGEPAGE)
        for at in range(0, len(area), mmap.PAGESIZE):
            area[at] = 1
        start = np.frombuffer(area, np.uint8)
        first = start.ctypes.data // mmap.PAGESIZE
        del start
        try:
            with Path("/proc/self/pagemap").open("rb", buffering=0) as pagemap:
                pagemap.seek(8 * first)
                entries = np.frombuffer(pagemap.read(8 * n_pages), np.uint64)
        except OSError as error:
            raise HostError(f"/proc/self/pagemap: {error.strerror}; `record --only-pages` needs it") from None
    frames: U64 = entries[entries & PRESENT != 0] & FRAME
    if not frames.any():
        raise HostError("/proc/self/pagemap: frame numbers are hidden; `record --only-pages` needs CAP_SYS_ADMIN")
    return frames
