"""What this kernel offers to our probes: symbols, prototypes, struct layouts. Features, never versions.

Where functions came and went, every name is tried and the ones that exist are used; the kernel that made a second name
necessary stands beside it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from collect.btf import Btf
from collect.errors import HostError
from collect.kallsyms import Kallsyms
from collect.kernel_calls import kernel_calls
from collect.schema import ChangeKind, RegionKind

__all__ = ["CHOKE_POINT", "COLLAPSE", "FLUSH", "HOTPLUG", "Features", "Missing", "probe_features"]

CHOKE_POINT = "__change_page_attr_set_clr"
"""Every change by way of CPA ends here (arch/x86/mm/pat/set_memory.c); it calls itself, so it is never inlined."""

FLUSH = "flush_tlb_all"
"""What every split ends in (arch/x86/mm/tlb.c; see collect/bpf/splits.c)."""

COLLAPSE = "collapse_large_pages"
"""Puts large entries back (arch/x86/mm/pat/set_memory.c), since 6.15, "x86/mm/pat: restore large ROX pages after
fragmentation"."""

HOTPLUG = {"arch_add_memory": ChangeKind.HOTPLUG_ADD, "arch_remove_memory": ChangeKind.HOTPLUG_REMOVE}
"""Map and unmap memory that comes and goes (arch/x86/mm/init_64.c)."""

PAGE_BYTES = 4096

# struct cpa_data: the same 72 bytes from 5.10 to 7.3, private to set_memory.c, so taken from BTF and compared.
CPA_MEMBERS = {
    "VADDR": "vaddr",
    "PGD": "pgd",
    "MASK_SET": "mask_set",
    "MASK_CLR": "mask_clr",
    "NUMPAGES": "numpages",
    "CURPAGE": "curpage",
    "FLAGS": "flags",
    "BITS": "force_split",
    "PAGES": "pages",
}


@dataclass(frozen=True)
class RegionAlloc:
    """A function that hands out a region: its kind, and which argument is the size in bytes (None: one page)."""

    function: str
    kind: RegionKind
    size_argument: int | None


@dataclass(frozen=True)
class RegionFree:
    """A function that takes a region back; its first argument is the address."""

    function: str
    kind: RegionKind


REGION_ALLOCS = (
    RegionAlloc("bpf_prog_pack_alloc", RegionKind.BPF_IMAGE, 0),  # since 5.18, "bpf: Introduce bpf_prog_pack allocator"
    RegionAlloc("bpf_jit_binary_alloc", RegionKind.BPF_IMAGE, 0),  # before; kept for architectures without packs
    RegionAlloc("bpf_jit_alloc_exec_page", RegionKind.BPF_IMAGE, None),  # trampolines, to 6.0
    RegionAlloc("module_alloc", RegionKind.MODULE_ALLOC, 0),  # to 6.9
    RegionAlloc(
        "execmem_alloc", RegionKind.EXECMEM, 1
    ),  # since 6.10, "mm: introduce execmem_alloc() and execmem_free()"
    RegionAlloc("execmem_vmalloc", RegionKind.EXECMEM, 1),  # since 6.13: what fills the ROX cache
)
REGION_FREES = (
    RegionFree("bpf_prog_pack_free", RegionKind.BPF_IMAGE),
    RegionFree("bpf_jit_free_exec", RegionKind.BPF_IMAGE),
    RegionFree("module_memfree", RegionKind.MODULE_ALLOC),
    RegionFree("execmem_free", RegionKind.EXECMEM),
)
SECRET_FREES = (
    "secretmem_free_folio",  # since 6.0
    "secretmem_freepage",  # 5.14 to 5.19
)


PAGE_FUNCTIONS = {
    # What mm_page_alloc does not report, by what it does; the first that exists.
    "bulk": (
        "alloc_pages_bulk_noprof",  # since 6.10, "mm: enable page allocation tagging"
        "__alloc_pages_bulk",  # 5.13 to 6.9
    ),
    "contiguous": (
        "alloc_contig_frozen_range_noprof",  # since 7.0; the next calls it
        "alloc_contig_range_noprof",  # since 6.10
        "alloc_contig_range",
    ),
    "split": ("split_page",),
}


@dataclass(frozen=True)
class Missing:
    """A probe that this kernel does not offer, why, and what the trace lacks without it."""

    name: str
    why: str
    costs: str


@dataclass
class Features:
    """What was found.

    Attributes:
        signatures: bytes of the parameters and the return value of each function to attach to (choke point included).
        allocs, frees: region functions that exist.
        secret_fault, secret_free: secretmem's functions, or None.
        offsets: constants for the programs, by macro name.
        page_functions: functions that hand out pages past the allocation tracepoint, by what they do.
        splits: splits are observed as they are done.
        hotplug: by function, which parameters are the first physical address and the size in bytes.
        unwinds_kretprobes: a stack taken below a kretprobe shows the caller, not the probe's trampoline.
        kernel_calls: see `collect.kernel_calls.kernel_calls`.
        missing: what is not there.
    """

    signatures: dict[str, tuple[int, ...]] = field(default_factory=dict)
    allocs: list[RegionAlloc] = field(default_factory=list)
    frees: list[RegionFree] = field(default_factory=list)
    secret_fault: str | None = None
    secret_free: str | None = None
    offsets: dict[str, int] = field(default_factory=dict)
    page_functions: dict[str, str] = field(default_factory=dict)
    splits: bool = False
    hotplug: dict[str, tuple[int, int]] = field(default_factory=dict)
    unwinds_kretprobes: bool = False
    kernel_calls: dict[int, int] = field(default_factory=dict)
    missing: list[Missing] = field(default_factory=list)

    @property
    def attached(self) -> list[str]:
        """Names of everything that will be attached."""
        tracepoints = ["raw_tracepoint:module_load", "raw_tracepoint:module_free"]
        return [f"{'fentry' if name == FLUSH else 'fentry+fexit'}:{name}" for name in self.signatures] + tracepoints


def probe_features(symbols: Kallsyms, btf: Btf, *, all_pages: bool = False) -> Features:
    """Look for everything; with `all_pages` also for what allocates pages past the tracepoint.

    Raises HostError for what a trace cannot do without.
    """
    features = Features()
    _choke_point(features, symbols, btf)
    _splits(features, symbols, btf)
    _other_writers(features, symbols, btf)
    for alloc in REGION_ALLOCS:
        if _use(features, symbols, btf, alloc.function):
            features.allocs.append(alloc)
    for free in REGION_FREES:
        if _use(features, symbols, btf, free.function):
            features.frees.append(free)
    backing = {alloc.function for alloc in features.allocs} & {"module_alloc", "execmem_alloc"}
    if not backing:
        features.missing.append(
            Missing(
                "module_alloc, execmem_alloc", "neither is a symbol with a prototype here", "regions are not recorded"
            )
        )
    _secretmem(features, symbols, btf)
    for function, costs in (
        ("bpf_int_jit_compile", "BPF images have no names"),
        ("load_module", "module areas are not tied to their module's name"),
        *(
            (("vfree", "frees of the ROX cache's blocks are not recorded"),)
            if "execmem_vmalloc" in features.signatures
            else ()
        ),
    ):
        if not _use(features, symbols, btf, function):
            features.missing.append(Missing(function, "not a symbol with a prototype here", costs))
    _names(features, btf)
    if all_pages:
        _page_functions(features, symbols, btf)
    features.kernel_calls = kernel_calls(btf)
    features.unwinds_kretprobes = "kretprobe_find_ret_addr" in symbols or "rethook_find_ret_addr" in symbols
    return features


def _page_functions(features: Features, symbols: Kallsyms, btf: Btf) -> None:
    for role, names in PAGE_FUNCTIONS.items():
        found = next((name for name in names if _use(features, symbols, btf, name)), None)
        if found is not None:
            features.page_functions[role] = found
        else:
            costs = {"bulk": "nothing before 5.13; else bulk allocations of pages are not recorded"}
            features.missing.append(
                Missing(
                    " or ".join(names),
                    "not a symbol with a prototype here",
                    costs.get(role, f"{role} allocations of pages are not recorded"),
                )
            )


def _use(features: Features, symbols: Kallsyms, btf: Btf, function: str) -> bool:
    signature = btf.signature(function)
    if function not in symbols or signature is None:
        return False
    features.signatures[function] = signature
    return True


def _choke_point(features: Features, symbols: Kallsyms, btf: Btf) -> None:
    if not _use(features, symbols, btf, CHOKE_POINT):
        raise HostError(
            f"{CHOKE_POINT}: not a symbol with a BTF prototype on this kernel, so changes cannot be seen; "
            "directmap needs x86-64 Linux 5.10 or later with CONFIG_DEBUG_INFO_BTF and CONFIG_KALLSYMS_ALL"
        )
    n_params = len(features.signatures[CHOKE_POINT]) - 1
    if n_params != 2:
        raise HostError(f"{CHOKE_POINT}: takes {n_params} arguments, not 2; this kernel is not known yet")
    for macro, member in CPA_MEMBERS.items():
        offset = btf.offset("cpa_data", member)
        if offset is None:
            raise HostError(
                f"struct cpa_data: no member {member!r} on this kernel; recording would be wrong, so it is refused"
            )
        features.offsets[f"CPA_{macro}_OFFSET"] = offset
    if btf.size("page") != 64:
        raise HostError(f"struct page: {btf.size('page')} bytes, not 64; recording would be wrong, so it is refused")


def _splits(features: Features, symbols: Kallsyms, btf: Btf) -> None:
    flush, choke = symbols.extent(FLUSH), symbols.extent(CHOKE_POINT)
    if flush is None or choke is None or not _use(features, symbols, btf, FLUSH):
        features.missing.append(
            Missing(
                FLUSH, "not a symbol with a prototype here", "splits are rebuilt by our rules, not observed as well"
            )
        )
        return
    features.splits = True
    features.offsets |= dict(zip(("FLUSH_BEGIN", "FLUSH_END", "CHOKE_BEGIN", "CHOKE_END"), flush + choke, strict=True))


def _other_writers(features: Features, symbols: Kallsyms, btf: Btf) -> None:
    """Collapse and hotplug. The parameters of arch_remove_memory begin with the node in 5.10, not since 5.15 (65a2aa5f482e)
    (65a2aa5f482e, "mm/memory_hotplug: remove nid parameter from arch_remove_memory()"): they are taken by name.
    """
    if COLLAPSE in symbols and not _use(features, symbols, btf, COLLAPSE):
        features.missing.append(
            Missing(COLLAPSE, "no prototype here", "large entries put back are not seen; verify would say so")
        )
    for function in HOTPLUG:
        names = btf.parameters(function) or ()
        if "start" in names and "size" in names and _use(features, symbols, btf, function):
            features.hotplug[function] = (names.index("start"), names.index("size"))
        else:
            features.missing.append(
                Missing(
                    function,
                    "not a symbol with the known parameters here (no memory hotplug?)",
                    "memory that comes or goes is not seen; verify would say so",
                )
            )


def _secretmem(features: Features, symbols: Kallsyms, btf: Btf) -> None:
    if not _use(features, symbols, btf, "secretmem_fault"):
        features.missing.append(
            Missing("secretmem_fault", "no secretmem in this kernel (it came with 5.14)", "nothing")
        )
        return
    features.secret_fault = "secretmem_fault"
    features.secret_free = next((name for name in SECRET_FREES if _use(features, symbols, btf, name)), None)
    if features.secret_free is None:
        features.missing.append(
            Missing(" or ".join(SECRET_FREES), "not a symbol here", "frees of secret pages are not recorded")
        )


def _names(features: Features, btf: Btf) -> None:
    aux, name, module = btf.offset("bpf_prog", "aux"), btf.offset("bpf_prog_aux", "name"), btf.offset("module", "name")
    if aux is not None and name is not None:
        features.offsets |= {"PROG_AUX_OFFSET": aux, "AUX_NAME_OFFSET": name}
    else:
        features.missing.append(Missing("struct bpf_prog_aux.name", "not in BTF", "BPF images have no names"))
    if module is None:
        raise HostError("struct module: no member 'name' in this kernel's BTF; is CONFIG_MODULES off?")
    features.offsets["MODULE_NAME_OFFSET"] = module
