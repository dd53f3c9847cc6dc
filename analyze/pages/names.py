"""Names of what page events hold as numbers: gfp flags, migratetypes, scopes. The names are the kernel's."""

from __future__ import annotations

from collections.abc import Mapping

from analyze.region_owners import KIND_NAMES, USER_OF_KIND
from analyze.users import USER_NAMES, User
from collect.schema import SCOPE_SPLIT

__all__ = ["gfp_names", "migratetype_name", "scope_name", "scope_user"]

_BITS = [
    "DMA",
    "HIGHMEM",
    "DMA32",
    "MOVABLE",
    "RECLAIMABLE",
    "HIGH",
    "IO",
    "FS",
    "ZERO",
    "ATOMIC",
    "DIRECT_RECLAIM",
    "KSWAPD_RECLAIM",
    "WRITE",
    "NOWARN",
    "RETRY_MAYFAIL",
    "NOFAIL",
    "NORETRY",
    "MEMALLOC",
    "COMP",
    "NOMEMALLOC",
    "HARDWALL",
    "THISNODE",
    "ACCOUNT",
    "ZEROTAGS",
    "NO_OBJ_EXT",
]
"""___GFP_* by bit, which did not move from 5.10 to 7.3 (include/linux/gfp.h, from 6.0 gfp_types.h); 9 is unused from 6.4 on."""

_FLAG = {name: 1 << bit for bit, name in enumerate(_BITS)}


def _mask(names: str) -> int:
    return sum(_FLAG[name] for name in names.split())


_RECLAIM = _mask("DIRECT_RECLAIM KSWAPD_RECLAIM")
_KERNEL = _RECLAIM | _mask("IO FS")
_HIGHUSER_MOVABLE = _KERNEL | _mask("HARDWALL HIGHMEM MOVABLE")
_TRANSHUGE_LIGHT = (_HIGHUSER_MOVABLE | _mask("COMP NOMEMALLOC NOWARN")) & ~_RECLAIM

_COMPOUND: tuple[tuple[int, str], ...] = (
    (_TRANSHUGE_LIGHT | _FLAG["DIRECT_RECLAIM"], "GFP_TRANSHUGE"),
    (_TRANSHUGE_LIGHT, "GFP_TRANSHUGE_LIGHT"),
    (_HIGHUSER_MOVABLE, "GFP_HIGHUSER_MOVABLE"),
    (_KERNEL | _mask("HARDWALL HIGHMEM"), "GFP_HIGHUSER"),
    (_KERNEL | _FLAG["HARDWALL"], "GFP_USER"),
    (_KERNEL | _FLAG["ACCOUNT"], "GFP_KERNEL_ACCOUNT"),
    (_KERNEL, "GFP_KERNEL"),
    (_RECLAIM | _FLAG["IO"], "GFP_NOFS"),
    (_mask("HIGH ATOMIC KSWAPD_RECLAIM"), "GFP_ATOMIC"),  # with __GFP_ATOMIC to 6.3, without it from then on
    (_mask("HIGH KSWAPD_RECLAIM"), "GFP_ATOMIC"),
    (_RECLAIM, "GFP_NOIO"),
    (_FLAG["KSWAPD_RECLAIM"], "GFP_NOWAIT"),
    (_FLAG["DMA"], "GFP_DMA"),
    (_FLAG["DMA32"], "GFP_DMA32"),
)
"""In the order in which the kernel takes them out (include/trace/events/mmflags.h, __def_gfpflag_names)."""

_MIGRATETYPES = ("UNMOVABLE", "MOVABLE", "RECLAIMABLE", "HIGHATOMIC")


def gfp_names(gfp: int) -> str:
    """Flags as the kernel's tracepoints print them: `GFP_KERNEL|__GFP_ZERO`; "none" for 0 (mmflags.h, show_gfp_flags)."""
    names = []
    for mask, name in _COMPOUND:
        if gfp & mask == mask:
            names.append(name)
            gfp &= ~mask
    for bit, name in enumerate(_BITS):
        if gfp >> bit & 1:
            names.append(f"__GFP_{name}")
            gfp &= ~(1 << bit)
    if gfp:
        names.append(f"{gfp:#x}")
    return "|".join(names) or "none"


def migratetype_name(number: int, config: Mapping[str, object]) -> str:
    """A migratetype (include/linux/mmzone.h, enum migratetype). What 4 and 5 are, the kernel's configuration decides."""
    if number < len(_MIGRATETYPES):
        return _MIGRATETYPES[number]
    later = ("CMA", "ISOLATE") if config.get("CONFIG_CMA") == "y" else ("CMA or ISOLATE",)
    return later[number - 4] if number - 4 < len(later) else str(number)


def scope_name(scope: int) -> str:
    """What was being allocated (`collect.schema.RegionKind`), or "" outside of any region."""
    return (
        "page table of a split"
        if scope == SCOPE_SPLIT
        else str(KIND_NAMES[scope]) or ("" if scope == 0 else str(scope))
    )


def scope_user(scope: int) -> str:
    """Whose pages of a scope are, by the kind of the region alone; "other" where that does not tell."""
    kinds = {int(kind): user for kind, user in USER_OF_KIND.items()}
    return USER_NAMES[kinds.get(scope, User.OTHER)]
