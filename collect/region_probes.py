"""Which programs stand at the functions that hand out and take back regions (collect/bpf/regions.c)."""

from __future__ import annotations

from dataclasses import dataclass

from collect.probes import Features, RegionAlloc
from collect.schema import RegionKind

__all__ = ["RegionProbe", "region_probes"]


@dataclass(frozen=True)
class RegionProbe:
    """Programs at one function, as statements over its arguments a0, a1, ... and `ret`.

    Attributes:
        enter, leave: at entry and exit; `leave` "" where the exit does not matter.
        leave_spare: what a kretprobe does in the place of `leave`: it knows `ret`, but no arguments any more.
        has_spare: kprobe and kretprobe stand in where fentry or fexit was skipped.
    """

    function: str
    enter: str
    leave: str = ""
    leave_spare: str = ""
    has_spare: bool = True


def region_probes(features: Features) -> list[RegionProbe]:
    """All of them, for this kernel's functions."""
    probes = [_alloc(alloc) for alloc in features.allocs]
    for free in features.frees:
        asked = free.kind < RegionKind.MODULE_ALLOC
        tier, group = ("TIER_ASKED", "CLASS_ASKED") if asked else ("TIER_BACKING", "CLASS_BACKING")
        leave = "" if asked else "region_free_exit();"
        enter = f"region_free(ctx, {tier}, {group}, KIND_{free.kind.name}, a0);"
        probes.append(RegionProbe(free.function, enter, leave, leave))
    if features.secret_fault:
        enter = "enter_scope(KIND_SECRET_PAGE, new_id(bpf_ktime_get_ns()), 4096);"
        leave = "u64 a, b; u8 c; leave_scope(KIND_SECRET_PAGE, &a, &b, &c);"
        probes.append(RegionProbe(features.secret_fault, enter, leave, leave))
    if features.secret_free:
        probes.append(RegionProbe(features.secret_free, "secret_page_free(ctx, frame_of(a0));"))
    pairs = {
        "bpf_int_jit_compile": ("compile_enter(a0);", "compile_exit();"),
        "load_module": ("enter_scope(KIND_MODULE, new_id(bpf_ktime_get_ns()), 0);", "module_scope_exit();"),
        # Called from interrupts too, for whatever lies in vmalloc: no spare. Whether the free of a block of the ROX cache,
        # which is all that concerns us, went unseen, the recorder finds out from the page tables.
        "vfree": ("block_free_enter(ctx, a0);", "block_free_exit();"),
    }
    probes += [
        RegionProbe(function, enter, leave, leave, has_spare=function != "vfree")
        for function, (enter, leave) in pairs.items()
        if function in features.signatures
    ]
    return probes


def _alloc(alloc: RegionAlloc) -> RegionProbe:
    size = "4096" if alloc.size_argument is None else f"a{alloc.size_argument}"
    tier = "TIER_ASKED" if alloc.kind < RegionKind.MODULE_ALLOC else "TIER_BACKING"
    kind = f"KIND_{alloc.kind.name}"
    return RegionProbe(
        alloc.function,
        f"region_alloc_enter({kind}, {size});",
        f"region_alloc_exit(ctx, {tier}, {kind}, ret, {size});",
        f"region_alloc_exit(ctx, {tier}, {kind}, ret, top_size());",
    )
