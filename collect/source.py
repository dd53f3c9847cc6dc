"""The C text of the BPF programs for one kernel: constants, the programs, and the stubs that attach them."""

from __future__ import annotations

import re
from pathlib import Path

from collect.probes import CHOKE_POINT, COLLAPSE, FLUSH, HOTPLUG, Features, RegionAlloc
from collect.records import RINGS
from collect.rows import FREE_SCOPES
from collect.schema import SCOPE_SPLIT, ChangeKind, Cpa, PageEvent, RegionEvent, RegionKind, Tier

__all__ = ["source"]

BPF_SOURCES = Path(__file__).parent / "bpf"


def source(
    features: Features,
    *,
    pages: str,
    changes: bool = True,
    page_ring: tuple[int, int] | None = None,
    ring_pages: dict[str, int] | None = None,
) -> str:
    """The C text for this kernel: constants, the programs, and the stubs that attach them.

    Args:
        features: from `probes.probe_features`.
        pages: `none`, `scoped` or `all`.
        changes: with the programs at the choke point and on regions.
        page_ring: CPUs and chunks of the rings of all page events; None where the kernel has no atomic fetch for them.
        ring_pages: pages of 4 KiB (a power of two) of rings that shall not have the size that `records.RINGS` gives.
    """
    sizes = {name: n_pages for name, (_, n_pages) in RINGS.items()} | (ring_pages or {})
    constants = dict(features.offsets)
    constants |= {"CPA_PAGES_ARRAY": int(Cpa.PAGES_ARRAY), "SCOPE_SPLIT": SCOPE_SPLIT}
    constants |= dict(zip(("SCOPE_FREE", "SCOPE_FREE_BLOCK"), FREE_SCOPES, strict=True))
    constants |= {f"KIND_{kind.name}": int(kind) for kind in RegionKind}
    constants |= {f"KIND_CHANGE_{kind.name}": int(kind) for kind in ChangeKind}
    constants |= {f"TIER_{tier.name}": int(tier) for tier in Tier}
    constants |= {f"EVENT_{event.name}": int(event) for event in RegionEvent}
    constants |= {f"EVENT_PAGE_{event.name}": int(event) for event in PageEvent}
    constants |= {f"{name.upper()}_PAGES": n_pages for name, n_pages in sizes.items()}
    parts = [f"#define {name} {value}{'ULL' if value >> 31 else ''}" for name, value in constants.items()]
    files = ["records.h"]
    if changes:
        parts.append("#define REGIONS")
        files += ["regions.c", "changes.c", *(["splits.c"] if features.splits else []), "other_writers.c"]
    if pages != "none":
        files += ["page_rings.c", "pages.c"]
    if pages == "all":
        parts.append("#define PAGES_ALL")
        if page_ring is not None:
            parts += ["#define PAGE_RING_CPUS {}\n#define PAGE_RING_CHUNKS {}".format(*page_ring)]
        if features.page_functions:
            files.append("unreported_pages.c")
    parts += [(BPF_SOURCES / name).read_text() for name in files]
    parts += _stubs(features) if changes else []
    parts += _page_stubs(features) if pages == "all" else []
    return "\n".join(parts)


def _stubs(features: Features) -> list[str]:
    parts = [
        _fentry(features, CHOKE_POINT, "return change_entry(a0, a1, BY_FENTRY, 0);"),
        _fexit(features, CHOKE_POINT, "return change_exit(ctx, a0, ret);"),
    ]
    if features.splits:
        parts.append(_fentry(features, FLUSH, "return split_done(ctx, BY_FENTRY);"))
    if COLLAPSE in features.signatures:
        parts.append(_fentry(features, COLLAPSE, "return collapse_entry(a0);"))
        parts.append(_fexit(features, COLLAPSE, "return writer_exit(ctx, KIND_CHANGE_COLLAPSE, ret, (s32)ret > 0);"))
    for function, (start, n_bytes) in features.hotplug.items():
        kind = f"KIND_CHANGE_{HOTPLUG[function].name}"
        returns = "ret" if features.signatures[function][-1] else "0"
        parts.append(_fentry(features, function, f"return hotplug_entry({kind}, a{start}, a{n_bytes});"))
        parts.append(_fexit(features, function, f"return writer_exit(ctx, {kind}, {returns}, 1);"))
    for alloc in features.allocs:
        size = _size(alloc)
        tier = "TIER_ASKED" if alloc.kind < RegionKind.MODULE_ALLOC else "TIER_BACKING"
        kind = f"KIND_{alloc.kind.name}"
        parts.append(_fentry(features, alloc.function, f"region_alloc_enter({kind}, {size}); return 0;"))
        parts.append(
            _fexit(features, alloc.function, f"region_alloc_exit(ctx, {tier}, {kind}, ret, {size}); return 0;")
        )
    for free in features.frees:
        asked = free.kind < RegionKind.MODULE_ALLOC
        tier, group = ("TIER_ASKED", "CLASS_ASKED") if asked else ("TIER_BACKING", "CLASS_BACKING")
        parts.append(
            _fentry(features, free.function, f"region_free(ctx, {tier}, {group}, KIND_{free.kind.name}, a0); return 0;")
        )
        if not asked:
            parts.append(_fexit(features, free.function, "region_free_exit(); return 0;"))
    if features.secret_fault:
        enter = "enter_scope(KIND_SECRET_PAGE, new_id(bpf_ktime_get_ns()), 4096); return 0;"
        leave = "u64 a, b; u8 c; leave_scope(KIND_SECRET_PAGE, &a, &b, &c); return 0;"
        parts += [_fentry(features, features.secret_fault, enter), _fexit(features, features.secret_fault, leave)]
    if features.secret_free:
        parts.append(_fentry(features, features.secret_free, "secret_page_free(ctx, frame_of(a0)); return 0;"))
    pairs = {
        "bpf_int_jit_compile": ("compile_enter(a0);", "compile_exit();"),
        "load_module": ("enter_scope(KIND_MODULE, new_id(bpf_ktime_get_ns()), 0);", "module_scope_exit();"),
        "vfree": ("block_free_enter(ctx, a0);", "block_free_exit();"),
    }
    for function, (enter, leave) in pairs.items():
        if function in features.signatures:
            parts.append(_fentry(features, function, f"{enter} return 0;"))
            parts.append(_fexit(features, function, f"{leave} return 0;"))
    return parts


def _page_stubs(features: Features) -> list[str]:
    """Programs at what allocates pages past the allocation tracepoint."""
    return []


def _size(alloc: RegionAlloc) -> str:
    return "4096" if alloc.size_argument is None else f"a{alloc.size_argument}"


def _stub(macro: str, features: Features, function: str, body: str, *, returns: bool) -> str:
    """One attached function.

    Arguments are copied out of the context, each in its own width, so that the verifier takes pointers as numbers.
    """
    signature = features.signatures[function]
    names = [f"a{i}" for i in range(len(signature) - 1)] + (["ret"] if returns else [])
    params = "".join(f", u64 typed_{name}" for name in names)
    copies = "".join(
        f" u64 {name} = 0; bpf_probe_read_kernel(&{name}, {min(n_bytes or 8, 8)}, (void *)&ctx[{i}]);"
        for i, (name, n_bytes) in enumerate(zip(names, signature, strict=False))
        if re.search(rf"\b{name}\b", body)
    )
    return f"{macro}({function}{params}) {{ if (!is_armed()) return 0;{copies} {body} }}"


def _fentry(features: Features, function: str, body: str) -> str:
    return _stub("KFUNC_PROBE", features, function, body, returns=False)


def _fexit(features: Features, function: str, body: str) -> str:
    return _stub("KRETFUNC_PROBE", features, function, body, returns=True)
