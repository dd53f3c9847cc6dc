"""The running kernel as a recording needs it: symbols, features, page tables, and the constants of the programs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from collect.btf import Btf
from collect.errors import HostError
from collect.host import memory_facts, memory_without_page_tables
from collect.kallsyms import Kallsyms
from collect.kcore import Kcore
from collect.pagetables import Walker
from collect.probes import Features, Missing, probe_features
from collect.vmemmap import find_vmemmap

__all__ = ["ANY_FRAME", "Kernel", "kernel_for_changes", "kernel_for_pages"]

VMEMMAP_BASE = 0xFFFF_EA00_0000_0000
"""Without KASLR of memory, with 4 levels (arch/x86/include/asm/pgtable_64_types.h, __VMEMMAP_BASE_L4)."""

ANY_FRAME = (1 << 52) - 1
"""Address bits of an entry where the kernel's own mask is not known, those inside a page included as in the kernel's."""

FRAME_BITS = 0x000F_FFFF_FFFF_F000


@dataclass
class Kernel:
    """What was found.

    Attributes:
        symbols: of the kernel.
        features: what the probes can attach to.
        memory: facts for the manifest.
        vmemmap: address of `struct page` of frame 0.
        constants: macros for the programs.
        kcore, walker: the page tables; None where only page events are recorded.
        missing: what the trace lacks for want of a probe, or because it was not asked for.
    """

    symbols: Kallsyms
    features: Features
    memory: dict[str, Any]
    vmemmap: int
    constants: dict[str, int]
    kcore: Kcore | None = None
    walker: Walker | None = None
    missing: list[Missing] = field(default_factory=list)

    @property
    def page_offset(self) -> int:
        """Virtual address of the direct map's first page; 0 where it is not known and nothing needs it."""
        return self.kcore.page_offset if self.kcore else 0


def kernel_for_changes(*, all_pages: bool = False) -> Kernel:
    """Everything that a whole recording needs (with `all_pages`, one of all page events).

    Raises HostError for what it cannot do without.
    """
    symbols = Kallsyms()
    features = probe_features(symbols, Btf(), all_pages=all_pages)
    # bcc would look for it too, but finds no symbol for anyone but uid 0, whatever the capabilities.
    if "bpf_trampoline_link_prog" not in symbols:
        raise HostError(
            "this kernel cannot attach fentry programs (no bpf_trampoline_link_prog: 5.5 or later has it, with "
            "CONFIG_DEBUG_INFO_BTF and CONFIG_BPF_JIT); `record --only-pages` does without"
        )
    kcore = Kcore()
    memory = memory_facts(kcore, symbols)
    at = symbols.address("vmemmap_base")
    vmemmap = kcore.read_u64(at) if at is not None else VMEMMAP_BASE
    constants = {
        "TOP_PGT": kcore.top_pgt,
        "PAGE_OFFSET_BASE": kcore.page_offset,
        "VMEMMAP_BASE": vmemmap,
        "PHYS_MASK": memory["physical_mask"] & FRAME_BITS,
        "LEVELS": kcore.paging_levels,
    }
    walker = Walker(kcore, memory["physical_mask"])
    return Kernel(symbols, features, memory, vmemmap, constants, kcore, walker, features.missing)


def kernel_for_pages() -> Kernel:
    """What page events alone need: raw tracepoints, and where `struct page` of frame 0 is. Raises HostError."""
    vmemmap = find_vmemmap()
    memory = memory_without_page_tables(vmemmap)
    constants = {
        "TOP_PGT": 0,
        "PAGE_OFFSET_BASE": 0,
        "VMEMMAP_BASE": vmemmap,
        "PHYS_MASK": FRAME_BITS,
        "LEVELS": memory["paging_levels"],
    }
    why = "only page events were asked for (--only-pages)"
    missing = [
        Missing("choke point", why, "changes and regions are not recorded"),
        Missing(
            "bulk, contiguous and split allocations",
            why,
            "what the tracepoint mm_page_alloc does not report is not recorded",
        ),
        Missing("page tables", why, "there are no snapshots, so no state to rebuild or verify"),
    ]
    return Kernel(Kallsyms(), Features(), memory, vmemmap, constants, missing=missing)
