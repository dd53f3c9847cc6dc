"""The loaded BPF programs: attaching them, their rings and maps, what they lost, detaching them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import time
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from collect.atomic_fetch import put_fetch
from collect.compiler import Compiled, compile_program, import_bcc
from collect.errors import HostError
from collect.host import possible_cpus
from collect.kernel_calls import PLACEHOLDERS, put_kernel_calls
from collect.page_ring import PageRings, ring_chunks, sampled_below
from collect.privileges import perf_events_refused
from collect.probes import CHOKE_POINT, COLLAPSE, FLUSH, HOTPLUG, PAGE_FUNCTIONS, Features, Missing
from collect.records import LOSSES, RINGS
from collect.region_probes import region_probes
from collect.ring import Ring
from collect.source import source
from collect.syscalls import has_atomic_fetch, recursion_misses

__all__ = ["Program"]

SETTLE_SECONDS = 0.05
ALL_PAGES_RING_PAGES = 16384
"""Of `page_ring` where all page events go through it."""

PAGE_TRACEPOINTS = ("mm_page_alloc", "mm_page_free")
PAGE_ROLES: dict[str, tuple[str, ...]] = {"none": (), "scoped": ("first",), "all": ("first", "spare")}
"""The programs at each of them, in order of attachment; see collect/bpf/pages.c."""

PAGE_RINGS = ("page_ring", "bulk_ring")
GROUPS = ("changes", "exits", "splits", "regions", "pages", "unreported", "spare", "vfree")
KPROBES = ("kprobe_change_entry", "kretprobe_change_exit")
"""The second pair at the choke point; see collect/bpf/changes.c."""
SPLIT_KPROBE = "kprobe_split"


class Program:
    """The loaded and attached programs, their rings and maps.

    Args:
        features: from `probes.probe_features`.
        constants: macros for the walk (TOP_PGT, PAGE_OFFSET_BASE, VMEMMAP_BASE, PHYS_MASK, LEVELS).
        pages: page allocations and frees to record: `none`, `scoped` (in scope of the regions) or `all`.
        changes: record changes and regions; without them only page events, which any kernel with raw tracepoints lets be seen.
        sample: with `all`, one page block in so many.
        ring_bytes: for the rings of all page events together.

    Attributes:
        headers: whose C headers the programs were compiled with.
        rings: the BPF ring buffers by name.
        page_rings: the rings of all page events; None where they are not recorded, or go through `page_ring` (before 5.12).
        stand_ins: probes whose programs stand in for fentry's and fexit's where these were not run.
    """

    _bpf: Any

    def __init__(
        self,
        features: Features,
        constants: dict[str, int],
        *,
        pages: str,
        changes: bool = True,
        sample: int = 1,
        ring_bytes: int | None = None,
    ) -> None:
        bcc = import_bcc()
        if changes and not hasattr(bcc.BPF, "support_kfunc"):
            raise HostError("this bcc cannot attach fentry programs; it must be 0.15 or later")
        n_cpus = possible_cpus()
        page_ring = None
        if pages == "all" and has_atomic_fetch():
            page_ring = (n_cpus, ring_chunks(n_cpus, ring_bytes) if ring_bytes else ring_chunks(n_cpus))
        ring_pages = {name: n_pages for name, (_, n_pages) in RINGS.items()}
        if pages == "all" and page_ring is None:
            ring_pages["page_ring"] = ALL_PAGES_RING_PAGES
        text = source(features, pages=pages, changes=changes, page_ring=page_ring, ring_pages=ring_pages)
        flags = [
            f"-D{name}={value:#x}ULL" if value >= 1 << 31 else f"-D{name}={value}" for name, value in constants.items()
        ]
        self.missing: list[Missing] = []
        self._bpf, self.headers = self._compiled(bcc, text, flags, features.kernel_calls)
        self.rings = {
            name: Ring(self._bpf[name].map_fd, ring_pages[name], dtype)
            for name, (dtype, _) in RINGS.items()
            if name != "bulk_ring" or (pages == "all" and features.page_functions)
        }
        self.page_rings: PageRings | None = None
        if page_ring is not None:
            maps = (self._bpf["page_chunks"].map_fd, self._bpf["page_positions"].map_fd)
            self.page_rings = PageRings(*maps, *page_ring)
        self._sample = sample
        self._changes, self._all_pages = changes, pages == "all"
        self._losses = self._bpf["losses"]
        self._splits_by_kprobe = self._bpf["splits_by_kprobe"] if changes and features.splits else None
        # Attached by hand: bcc takes one program a tracepoint. The kernel calls them in order of attachment.
        self._roles = PAGE_ROLES[pages]
        self._links = {
            role: [self._attach_raw(bcc, f"{role}_{name}", name) for name in PAGE_TRACEPOINTS] for role in self._roles
        }
        self._missed_when_off: int | None = None
        self.stand_ins = self._attach_stand_ins(features) if changes else []
        self._before: dict[str, int] = {}
        self._calls = self._bpf["calls"] if changes else {}

    def _compiled(self, bcc: ModuleType, text: str, flags: list[str], calls: dict[int, int]) -> Compiled:
        """With calls of the kernel's functions; without them, as before 6.10, where the kernel refuses those."""
        if calls:
            try:
                return compile_program(bcc, text, flags, partial(put_kernel_calls, bcc.lib, ids=calls))
            except HostError as error:
                costs = "a task that is preempted as its stack is walked lets the stacks of others be lost, and counted"
                self.missing.append(Missing(", ".join(PLACEHOLDERS.values()), str(error), costs))
        return compile_program(bcc, text, flags, partial(put_kernel_calls, bcc.lib, ids={}))

    def arm(self) -> None:
        """Let the programs record; until now they were attached and silent.

        A call that was inside a probed function just then shows a return without an entry; it belongs to the time
        before the recording, so losses are counted from a moment after.
        """
        self._bpf["armed"][ctypes.c_int(0)] = ctypes.c_uint32(1)
        self.set_sample(self._sample)
        if self.page_rings is not None:
            self.page_rings.start(self._sample)
        time.sleep(SETTLE_SECONDS)
        self._before = self._lost_until_now()

    def losses(self) -> dict[str, int]:
        """Events lost since `arm`, by class."""
        missed = self._missed()
        lost = {name: n - self._before[name] for name, n in self._lost_until_now().items() if name in LOSSES}
        if self.page_rings is not None:
            lost["pages_ring_full"] += self.page_rings.n_lost
        # An entry is lost where fentry and kprobe were both skipped; an exit, where the call stays in the map.
        if self._missed_when_off is not None:
            missed["pages"] = self._missed_when_off
        counted = ["changes", "splits", "regions", *(["pages", "unreported"] if self._all_pages else [])]
        return lost | {f"{group}_programs_not_run": missed[group] for group in counted}

    def page_programs_not_run(self) -> int:
        """Page events since `arm` that neither program of a tracepoint saw.

        Not a loss while only pages in scope of regions are recorded: a region's frames are read from the page tables
        when it is made, and are free when it is.
        """
        return self._missed()["pages"]

    def only_stand_ins_saw(self) -> int:
        """Entries and exits since `arm`, of changes, splits and regions, that a kprobe saw and fentry or fexit did not."""
        now = self._lost_until_now()
        return sum(now[name] - self._before[name] for name in ("kprobe_only", "splits_rescued", "regions_rescued"))

    def _missed(self) -> dict[str, int]:
        """Times that neither a program nor the one that stands in for it was run, by group, since `arm`.

        A spare that was skipped had nothing to do. vfree is called from interrupts too, and concerns us for blocks of
        the ROX cache only; whether one of their frees went unseen, the recorder finds out from the page tables.
        """
        n = {name: n - self._before[name] for name, n in self._lost_until_now().items()}
        stood_in = {
            "changes": n["kprobe_only"],
            "splits": n["splits_rescued"],
            "regions": n["regions_rescued"],
            "pages": n["rescued"],
        }
        return {group: max(0, n[f"{group}_programs_not_run"] - stood_in.get(group, 0)) for group in GROUPS}

    def _lost_until_now(self) -> dict[str, int]:
        lost = {name: sum(self._losses[ctypes.c_int(i)]) for i, name in enumerate(LOSSES)}
        lost |= {f"{group}_programs_not_run": 0 for group in GROUPS}
        for name, function in self._bpf.funcs.items():
            lost[f"{_group(name.decode())}_programs_not_run"] += recursion_misses(function.fd) or 0
        lost["kprobe_only"] = sum(self._bpf["kprobe_only"][ctypes.c_int(0)]) if self._changes else 0
        reported, met = (sum(self._splits_by_kprobe[ctypes.c_int(i)]) if self._splits_by_kprobe else 0 for i in (0, 1))
        lost["splits_rescued"] = reported - met
        spares = self._bpf["region_spares"] if self._changes else None
        by_kprobe, met, exits = (sum(spares[ctypes.c_int(i)]) if spares else 0 for i in range(3))
        lost["regions_rescued"] = by_kprobe - met + exits
        lost["rescued"] = sum(self._bpf["rescued"][ctypes.c_int(0)]) if self._roles else 0
        return lost

    def running_calls(self) -> set[int]:
        """Ids of the calls that are inside the choke point now."""
        return {int(call.call_id) for call in self._calls.values()}

    def drain(self, *, pages: bool = True) -> dict[str, npt.NDArray[np.void]]:
        """What each ring holds, the rings of whole events before those of their parts (which were written earlier).

        Without `pages`, those of page events are left as they are.
        """
        drained = {name: ring.drain() for name, ring in self.rings.items() if pages or name not in PAGE_RINGS}
        if self.page_rings is not None and pages:
            drained["page_events"] = self.page_rings.drain()
        return drained

    def set_sample(self, sample: int) -> None:
        """From now on record one page block in `sample`; 0: none, for good, and what only that needed is detached.

        Where all pages are recorded beside changes, the programs stay that record those in scope of regions.
        """
        self._sample = sample
        if self.page_rings is not None:
            self.page_rings.set_sample(sample)
        elif self._all_pages:
            self._bpf["page_sample"][ctypes.c_int(0)] = ctypes.c_uint64(sampled_below(sample))
        if sample == 0:
            # What a spare would have taken in from here on was not to be recorded.
            self._missed_when_off = self._missed()["pages"]
            in_scope = self._changes and self._all_pages
            self._detach_pages(*(role for role in self._roles if role == "spare" or not in_scope))

    def _detach_pages(self, *roles: str) -> None:
        for role in roles:
            for link in self._links.pop(role, []):
                os.close(link)

    def page_program_fds(self) -> list[int]:
        """Descriptors of the programs that run for page events, by which the kernel tells what they cost."""
        return [function.fd for name, function in self._bpf.funcs.items() if b"mm_page_" in name]

    def detach(self) -> None:
        """Detach and unload everything."""
        self._detach_pages(*self._links)
        self._bpf.cleanup()

    def _attach_stand_ins(self, features: Features) -> list[str]:
        """The second pair of programs at the choke point, at a split's flush and at the regions' functions; what was attached.

        None where they are not needed or do harm. Not needed where the kernel does not guard trampolines against recursion
        (before 5.12: no count of misses). Harm: a kretprobe hides the caller from stacks, until the unwinder learned to look
        behind it (5.16, "x86/unwind: Recover kretprobe trampoline entry", whose symbol is kretprobe_find_ret_addr, or
        rethook's since 5.18).
        """
        if all(recursion_misses(function.fd) is None for function in self._bpf.funcs.values()):
            return []
        wanted = [(FLUSH, SPLIT_KPROBE, "")] if features.splits else []
        if features.unwinds_kretprobes:
            wanted.append((CHOKE_POINT, *KPROBES))
            for probe in region_probes(features):
                if probe.has_spare:
                    leave = f"spare_leave_{probe.function}" if probe.leave else ""
                    wanted.append((probe.function, f"spare_enter_{probe.function}", leave))
        attached: list[str] = []
        for function, enter, leave in wanted:
            # bcc raises bare Exception; fentry and fexit do without, and count what they miss
            with contextlib.suppress(Exception):
                self._bpf.attach_kprobe(event=function, fn_name=enter)
                attached.append(f"kprobe:{function}")
                if leave:
                    self._bpf.attach_kretprobe(event=function, fn_name=leave)
                    attached[-1] = f"kprobe+kretprobe:{function}"
        if wanted and not attached:
            self.missing.append(
                Missing(
                    "kprobes",
                    perf_events_refused() or "none could be attached",
                    "changes and regions that fentry and fexit are not run for are lost, and counted",
                )
            )
        return attached

    def _attach_raw(self, bcc: ModuleType, program: str, tracepoint: str) -> int:
        if self.page_rings is not None and not put_fetch(bcc.lib, self._bpf.module, program.encode()):
            raise HostError(f"{program}: the compiler left no place for the atomic fetch; this is a bug in directmap")
        function = self._bpf.load_func(program, bcc.BPF.RAW_TRACEPOINT)
        link: int = bcc.lib.bpf_attach_raw_tracepoint(function.fd, tracepoint.encode())
        if link < 0:
            raise HostError(f"raw tracepoint {tracepoint}: cannot be attached; record with --pages none")
        return link


def _group(program: str) -> str:
    """Which of `GROUPS` a program belongs to, by its name."""
    if CHOKE_POINT in program:
        return "exits" if program.startswith("kretfunc") else "changes"
    if program.endswith(tuple(f"__{function}" for function in (COLLAPSE, *HOTPLUG))):
        return "exits" if program.startswith("kretfunc") else "changes"
    if program.endswith(f"__{FLUSH}"):
        return "splits"
    if program.startswith("spare_") or program in (*KPROBES, SPLIT_KPROBE):
        return "spare"
    if program.endswith("__vfree"):
        return "vfree"
    if program.endswith(tuple(f"__{function}" for names in PAGE_FUNCTIONS.values() for function in names)):
        return "unreported"
    return "pages" if "mm_page_" in program else "regions"
