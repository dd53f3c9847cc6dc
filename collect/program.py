"""Puts the BPF programs together for this kernel and loads them through BCC, the distribution's package."""

from __future__ import annotations

import ctypes
import importlib
import os
import platform
import re
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from collect.errors import HostError
from collect.probes import CHOKE_POINT, Features, RegionAlloc
from collect.records import ARRAY, CHANGE, FRAMES, LOSSES, PAGE, REGION, STACK
from collect.ring import Ring
from collect.rows import FREE_SCOPES
from collect.schema import SCOPE_SPLIT, Cpa, PageEvent, RegionEvent, RegionKind, Tier

__all__ = ["Program", "import_bcc"]

SETTLE_SECONDS = 0.05
PAGE_TRACEPOINTS = ("mm_page_alloc", "mm_page_free")
GROUPS = ("changes", "exits", "regions", "pages", "spare", "vfree")
KPROBES = ("kprobe_change_entry", "kretprobe_change_exit")
"""The second pair at the choke point; see collect/bpf/changes.c."""
BPF_SOURCES = Path(__file__).parent / "bpf"
SYSTEM_PACKAGES = (
    "/usr/lib/python3/dist-packages",
    "/usr/lib/python{}.{}/site-packages",
    "/usr/lib64/python{}.{}/site-packages",
)

RINGS: dict[str, tuple[np.dtype[np.void], int]] = {
    # layout, pages of 4 KiB (powers of two). Rare events never share a ring with page events.
    "change_ring": (CHANGE, 4096),
    "stack_ring": (STACK, 2048),
    "array_ring": (ARRAY, 512),
    "region_ring": (REGION, 512),
    "frames_ring": (FRAMES, 2048),
    "page_ring": (PAGE, 1024),
}


def import_bcc() -> ModuleType:
    """BCC's Python module: from the environment, else by path from the distribution's packages.

    Raises HostError naming the package to install; PyPI's namesake, a library about crystals, is told apart by `BPF`.
    """
    advice = "install the distribution's package: python3-bpfcc (Debian, Ubuntu) or python3-bcc (Fedora, RHEL)"
    found: str | None = None
    try:
        module = importlib.import_module("bcc")
        if hasattr(module, "BPF"):
            return module
        found = getattr(module, "__file__", None) or "?"
    except (ImportError, OSError):  # OSError: its library, libbcc, is missing
        pass
    for pattern in SYSTEM_PACKAGES:
        folder = Path(pattern.format(sys.version_info.major, sys.version_info.minor))
        if not (folder / "bcc" / "__init__.py").is_file():
            continue
        for name in [name for name in sys.modules if name == "bcc" or name.startswith("bcc.")]:
            del sys.modules[name]
        sys.path.insert(0, str(folder))
        try:
            module = importlib.import_module("bcc")
        except (ImportError, OSError) as error:
            raise HostError(
                f"{folder}/bcc: does not load into Python {platform.python_version()} ({error}); {advice}"
            ) from None
        finally:
            sys.path.remove(str(folder))
        if hasattr(module, "BPF"):
            return module
    if found:
        raise HostError(f"{found}: this 'bcc' is PyPI's namesake, not the BPF compiler; {advice}")
    raise HostError(f"bcc: not found; {advice}")


class Program:
    """The loaded and attached programs, their rings and maps.

    Args:
        features: from `probes.probe_features`.
        constants: macros for the walk (TOP_PGT, PAGE_OFFSET_BASE, VMEMMAP_BASE, PHYS_MASK, LEVELS).
        pages: record page allocations and frees in scope of the regions.
    """

    def __init__(self, features: Features, constants: dict[str, int], *, pages: bool) -> None:
        bcc = import_bcc()
        if not bcc.BPF.support_kfunc():
            raise HostError(
                "this kernel or bcc cannot attach fentry programs (needs BTF, 5.5 or later, and bcc 0.15 or later)"
            )
        text = source(features, pages=pages)
        flags = [
            f"-D{name}={value:#x}ULL" if value >= 1 << 31 else f"-D{name}={value}" for name, value in constants.items()
        ]
        # <linux/ptrace.h> of 7.x holds anonymous members that an older bcc's clang refuses without these.
        flags += ["-fms-extensions", "-Wno-microsoft-anon-tag", "-Wno-unused-function"]
        try:
            self._bpf: Any = bcc.BPF(text=text, cflags=flags)
        except Exception as error:  # bcc raises bare Exception for all that can go wrong
            raise HostError(f"the BPF programs do not load here: {error}; see the compiler's messages above") from None
        self.rings = {name: Ring(self._bpf[name].map_fd, n_pages, dtype) for name, (dtype, n_pages) in RINGS.items()}
        self._losses = self._bpf["losses"]
        # Attached by hand: bcc takes one program a tracepoint. The kernel calls them in order of attachment.
        self._links = [
            self._attach_raw(bcc, f"{role}_{name}", name)
            for name in PAGE_TRACEPOINTS
            for role in ("first", "spare")
            if pages
        ]
        self.kprobes = self._attach_kprobes(features)
        self._before: dict[str, int] = {}
        self._calls = self._bpf["calls"]

    def arm(self) -> None:
        """Let the programs record; until now they were attached and silent.

        A call that was inside a probed function just then shows a return without an entry; it belongs to the time
        before the recording, so losses are counted from a moment after.
        """
        self._bpf["armed"][ctypes.c_int(0)] = ctypes.c_uint32(1)
        time.sleep(SETTLE_SECONDS)
        self._before = self._lost_until_now()

    def losses(self) -> dict[str, int]:
        """Events lost since `arm`, by class."""
        missed = self._missed()
        lost = {name: n - self._before[name] for name, n in self._lost_until_now().items() if name in LOSSES}
        # An entry is lost where fentry and kprobe were both skipped; an exit, where the call stays in the map.
        return lost | {f"{group}_programs_not_run": missed[group] for group in ("changes", "regions")}

    def page_programs_not_run(self) -> int:
        """Page events since `arm` that neither program of a tracepoint saw.

        Not a loss while only pages in scope of regions are recorded: a region's frames are read from the page tables
        when it is made, and are free when it is.
        """
        return self._missed()["pages"]

    def _missed(self) -> dict[str, int]:
        """Times that neither a program nor the one that stands in for it was run, by group, since `arm`.

        A spare that was skipped had nothing to do. vfree is called from interrupts too, and concerns us for blocks of
        the ROX cache only; whether one of their frees went unseen, the recorder finds out from the page tables.
        """
        n = {name: n - self._before[name] for name, n in self._lost_until_now().items()}
        stood_in = {"changes": n["kprobe_only"], "pages": n["rescued"]}
        return {group: max(0, n[f"{group}_programs_not_run"] - stood_in.get(group, 0)) for group in GROUPS}

    def _lost_until_now(self) -> dict[str, int]:
        lost = {name: sum(self._losses[ctypes.c_int(i)]) for i, name in enumerate(LOSSES)}
        lost |= {f"{group}_programs_not_run": 0 for group in GROUPS}
        for name, function in self._bpf.funcs.items():
            lost[f"{_group(name.decode())}_programs_not_run"] += recursion_misses(function.fd) or 0
        lost["kprobe_only"] = sum(self._bpf["kprobe_only"][ctypes.c_int(0)])
        lost["rescued"] = sum(self._bpf["rescued"][ctypes.c_int(0)]) if self._links else 0
        return lost

    def running_calls(self) -> set[int]:
        """Ids of the calls that are inside the choke point now."""
        return {int(call.call_id) for call in self._calls.values()}

    def drain(self) -> dict[str, npt.NDArray[np.void]]:
        """What each ring holds, the rings of whole events before those of their parts (which were written earlier)."""
        return {name: ring.drain() for name, ring in self.rings.items()}

    def detach(self) -> None:
        """Detach and unload everything."""
        for link in self._links:
            os.close(link)
        self._bpf.cleanup()

    def _attach_kprobes(self, features: Features) -> bool:
        """The second pair of programs at the choke point; False where it is not needed or does harm.

        Not needed where the kernel does not guard trampolines against recursion (before 5.12: no count of misses).
        Harm: a kretprobe hides the caller from stacks, until the unwinder learned to look behind it (5.16, "x86/unwind:
        Recover kretprobe trampoline entry", whose symbol is kretprobe_find_ret_addr, or rethook's since 5.18).
        """
        entry, exit_ = KPROBES
        guarded = any(recursion_misses(function.fd) is not None for function in self._bpf.funcs.values())
        if not guarded or not features.unwinds_kretprobes:
            return False
        try:
            self._bpf.attach_kprobe(event=CHOKE_POINT, fn_name=entry)
            self._bpf.attach_kretprobe(event=CHOKE_POINT, fn_name=exit_)
        except Exception:  # bcc raises bare Exception; fentry and fexit do without, and count what they miss
            return False
        return True

    def _attach_raw(self, bcc: ModuleType, program: str, tracepoint: str) -> int:
        function = self._bpf.load_func(program, bcc.BPF.RAW_TRACEPOINT)
        link: int = bcc.lib.bpf_attach_raw_tracepoint(function.fd, tracepoint.encode())
        if link < 0:
            raise HostError(f"raw tracepoint {tracepoint}: cannot be attached; record with --pages none")
        return link


def source(features: Features, *, pages: bool) -> str:
    """The C text for this kernel: constants, the programs, and the stubs that attach them."""
    constants = dict(features.offsets)
    constants |= {"CPA_PAGES_ARRAY": int(Cpa.PAGES_ARRAY), "SCOPE_SPLIT": SCOPE_SPLIT}
    constants |= dict(zip(("SCOPE_FREE", "SCOPE_FREE_BLOCK"), FREE_SCOPES, strict=True))
    constants |= {f"KIND_{kind.name}": int(kind) for kind in RegionKind}
    constants |= {f"TIER_{tier.name}": int(tier) for tier in Tier}
    constants |= {f"EVENT_{event.name}": int(event) for event in RegionEvent}
    constants |= {f"EVENT_PAGE_{event.name}": int(event) for event in PageEvent}
    constants |= {f"{name.upper()}_PAGES": n_pages for name, (_, n_pages) in RINGS.items()}
    parts = [f"#define {name} {value}" for name, value in constants.items()]
    files = ["records.h", "regions.c", "changes.c"] + (["pages.c"] if pages else [])
    parts += [(BPF_SOURCES / name).read_text() for name in files]
    parts += _stubs(features)
    return "\n".join(parts)


def _stubs(features: Features) -> list[str]:
    parts = [
        _fentry(features, CHOKE_POINT, "return change_entry(a0, a1, BY_FENTRY, 0);"),
        _fexit(features, CHOKE_POINT, "return change_exit(ctx, a0, ret);"),
    ]
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


def _group(program: str) -> str:
    """Which of `GROUPS` a program belongs to, by its name."""
    if CHOKE_POINT in program:
        return "exits" if program.startswith("kretfunc") else "changes"
    if program.startswith("spare_") or program in KPROBES:
        return "spare"
    if program.endswith("__vfree"):
        return "vfree"
    return "pages" if "mm_page_" in program else "regions"


def recursion_misses(fd: int) -> int | None:
    """Times a program was not run because it was running already on that CPU; None before 5.12, which did not count.

    `struct bpf_prog_info.recursion_misses` (include/uapi/linux/bpf.h, since 9ed9e9ba2337, "bpf: Count the number of
    times recursion was prevented").
    """
    offset, length = 208, 256
    info = ctypes.create_string_buffer(length)

    class Attr(ctypes.Structure):
        _fields_ = (
            ("fd", ctypes.c_uint32),
            ("length", ctypes.c_uint32),
            ("info", ctypes.c_uint64),
            ("rest", ctypes.c_char * 112),
        )

    attr = Attr(fd, length, ctypes.addressof(info))
    bpf_syscall, get_info_by_fd = 321, 15
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(bpf_syscall, get_info_by_fd, ctypes.byref(attr), ctypes.sizeof(attr)) != 0:
        return None
    return int.from_bytes(info.raw[offset : offset + 8], "little") if attr.length >= offset + 8 else None
