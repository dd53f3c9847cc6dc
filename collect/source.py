"""The C text of the BPF programs for one kernel: constants, the programs, and the stubs that attach them."""

from __future__ import annotations

import re
from pathlib import Path

from collect.probes import CHOKE_POINT, COLLAPSE, FLUSH, HOTPLUG, Features
from collect.records import RINGS
from collect.region_probes import RegionProbe, region_probes
from collect.rows import FREE_SCOPES
from collect.schema import SCOPE_SPLIT, ChangeKind, Cpa, PageEvent, RegionEvent, RegionKind, Tier

__all__ = ["source"]

# Words of struct pt_regs (arch/x86/include/uapi/asm/ptrace.h): di, si, dx, cx, r8, r9; ax.
ARGUMENTS = (14, 13, 12, 11, 9, 8)
RETURNED = 10

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
    if pages == "all":
        parts.append("#define PAGES_ALL")
        if page_ring is not None:
            parts += ["#define PAGE_RING_CPUS {}\n#define PAGE_RING_CHUNKS {}".format(*page_ring)]
        if features.page_functions:
            parts.append("#define UNREPORTED_PAGES")
    if pages != "none":
        unreported = ["unreported_pages.c"] if pages == "all" and features.page_functions else []
        files += ["page_rings.c", *unreported, "pages.c"]
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
    for number, probe in enumerate(region_probes(features)):
        parts += _region_stubs(features, number, probe)
    return parts


def _region_stubs(features: Features, number: int, probe: RegionProbe) -> list[str]:
    """The programs at one function; `number` tells it from the others where a spare asks whether it was seen."""
    function, exits = probe.function, int(bool(probe.leave))
    if not probe.has_spare:
        return [
            _fentry(features, function, f"{probe.enter} return 0;"),
            _fexit(features, function, f"{probe.leave} return 0;"),
        ]
    first = f"if (!first_at_entry({number}, BY_FENTRY, {exits})) return 0;"
    parts = [
        _fentry(features, function, f"{first} {probe.enter} return 0;"),
        _spare(features, f"spare_enter_{function}", function, number, probe.enter, exits=exits),
    ]
    if probe.leave:
        first = f"if (!first_at_exit({number}, BY_FENTRY)) return 0;"
        parts.append(_fexit(features, function, f"{first} {probe.leave} return 0;"))
        parts.append(_spare(features, f"spare_leave_{function}", function, number, probe.leave_spare, exits=None))
    return parts


def _spare(features: Features, name: str, function: str, number: int, body: str, *, exits: int | None) -> str:
    """A kprobe's program (`exits` None: a kretprobe's): arguments and the return value from struct pt_regs."""
    signature = features.signatures[function]
    places = {f"a{i}": (place, signature[i]) for i, place in enumerate(ARGUMENTS[: len(signature) - 1])}
    if exits is None:
        places = {"ret": (RETURNED, signature[-1])}
    copies = "".join(
        f" u64 {value} = {'(u32)' if n_bytes == 4 else ''}ctx[{place}];"
        for value, (place, n_bytes) in places.items()
        if re.search(rf"\b{value}\b", body)
    )
    seen = f"first_at_exit({number}, BY_KPROBE)" if exits is None else f"first_at_entry({number}, BY_KPROBE, {exits})"
    return f"int {name}(unsigned long long *ctx) {{ if (!is_armed() || !{seen}) return 0;{copies} {body} return 0; }}"


def _page_stubs(features: Features) -> list[str]:
    """Programs at what allocates pages past the allocation tracepoint."""
    parts = []
    if bulk := features.page_functions.get("bulk"):
        # (gfp, nid, nodemask, n, array) since 6.14 (c8b979530f27, "mm: alloc_pages_bulk_noprof: drop page_list argument"), (..., n, list, array) before
        has_list = len(features.signatures[bulk]) - 1 == 6
        page_list, array = ("a4", "a5") if has_list else ("0", "a4")
        parts.append(_fentry(features, bulk, f"bulk_entry(a0, a3, {page_list}, {array}); return 0;"))
        parts.append(_fexit(features, bulk, f"bulk_exit({array}); return 0;"))
    if contig := features.page_functions.get("contiguous"):
        parts.append(_fexit(features, contig, "contig_exit(a0, a1, ret); return 0;"))
    if split := features.page_functions.get("split"):
        parts.append(_fentry(features, split, "page_split(a0, a1); return 0;"))
    return parts


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
