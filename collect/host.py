"""Facts of the machine and kernel that go into a trace's manifest."""

from __future__ import annotations

import gzip
import os
import platform
from pathlib import Path
from typing import Any

from collect.errors import HostError
from collect.kallsyms import Kallsyms
from collect.kcore import KERNEL_IMAGE_BASE, Kcore

__all__ = [
    "cpu_facts",
    "kernel_facts",
    "kfence_pool",
    "lockdown",
    "memory_facts",
    "memory_without_page_tables",
    "physical_mask",
    "possible_cpus",
    "ram_ranges",
    "xen_pv",
    "zone_ranges",
]

PAGE_BYTES = 4096
LOWEST_WITH_4_LEVELS = 0xFFFF_8000_0000_0000
"""Kernel addresses below it exist with 5-level paging only (Documentation/arch/x86/x86_64/mm.rst)."""

CONFIG_WANTED = (
    "BPF_JIT",
    "BPF_JIT_ALWAYS_ON",
    "DEBUG_PAGEALLOC",
    "HAVE_ARCH_HUGE_VMALLOC",
    "INIT_ON_ALLOC_DEFAULT_ON",
    "KFENCE",
    "KFENCE_SAMPLE_INTERVAL",
    "MEMORY_HOTPLUG",
    "NODES_SHIFT",
    "PREEMPT",
    "PREEMPT_DYNAMIC",
    "PREEMPT_LAZY",
    "PREEMPT_VOLUNTARY",
    "RANDOMIZE_BASE",
    "SECRETMEM",
    "STRICT_MODULE_RWX",
    "X86_5LEVEL",
    "X86_DIRECT_GBPAGES",
    "ARCH_HAS_EXECMEM_ROX",
)


def kernel_facts() -> dict[str, Any]:
    """Release, version, boot id, command line and the part of the configuration that bears on the direct map."""
    return {
        "release": platform.release(),
        "version": platform.version(),
        "machine": platform.machine(),
        "boot_id": _read("/proc/sys/kernel/random/boot_id"),
        "cmdline": _read("/proc/cmdline"),
        "config": _config(),
    }


def cpu_facts() -> dict[str, Any]:
    """Model, number of CPUs, and whether a hypervisor or an emulator stands below."""
    first = _read("/proc/cpuinfo").partition("\n\n")[0]  # of one CPU as of many
    pairs = (line.split(":", 1) for line in first.splitlines() if ":" in line)
    info = {key.strip(): value.strip() for key, value in pairs}
    model = info.get("model name", "unknown")
    vendor = _read("/sys/class/dmi/id/sys_vendor")
    return {
        "model": model,
        "n_online": os.cpu_count() or 1,
        "possible": _read("/sys/devices/system/cpu/possible"),
        "nodes_possible": _read("/sys/devices/system/node/possible"),
        "hypervisor": vendor if "hypervisor" in info.get("flags", "").split() else None,
        # Emulated: every instruction is interpreted, so times and rates say nothing about real machines.
        "emulated": "TCG" in model,
        "gb_pages": "pdpe1gb" in info.get("flags", "").split(),
    }


def memory_facts(kcore: Kcore, symbols: Kallsyms) -> dict[str, Any]:
    """Memory map, paging levels, the frames of rodata (which may not become writable) and KFENCE's pool.

    Raises HostError in a Xen PV domain.
    """
    if xen_pv(kcore, symbols):
        raise HostError(
            "a Xen PV domain: Xen keeps and rewrites this kernel's page tables by hypercall (arch/x86/xen/mmu_pv.c), past "
            "every probe, so a recording would be wrong and is refused; record on bare metal, in an HVM or in a PVH domain"
        )
    return {
        "max_pfn": kcore.max_pfn,
        "ranges": kcore.ranges,
        "page_offset": kcore.page_offset,
        "paging_levels": kcore.paging_levels,
        "physical_mask": physical_mask(kcore, symbols),
        "rodata": _rodata(kcore, symbols),
        "kfence_pool": kfence_pool(kcore, symbols),
        "zones": {zone: list(span) for zone, span in zone_ranges().items()},
    }


def memory_without_page_tables(vmemmap: int) -> dict[str, Any]:
    """The part of `memory_facts` that is known without /proc/kcore; what is not known is null."""
    ranges = ram_ranges()
    return {
        "max_pfn": ranges[-1][1],
        "ranges": ranges,
        "page_offset": None,
        "paging_levels": 4 if vmemmap >= LOWEST_WITH_4_LEVELS else 5,
        "physical_mask": None,
        "rodata": None,
        "kfence_pool": None,
        "zones": {zone: list(span) for zone, span in zone_ranges().items()},
    }


def ram_ranges(path: Path = Path("/proc/iomem")) -> list[list[int]]:
    """RAM as [first_pfn, end_pfn) pairs of whole pages, ascending. Raises HostError where addresses are hidden."""
    found = []
    for line in _read(str(path)).splitlines():
        span, _, name = line.partition(" : ")
        if name.startswith("System RAM") and not line.startswith(" "):
            first, last = (int(number, 16) for number in span.split("-"))
            found.append([-(-first // PAGE_BYTES), (last + 1) // PAGE_BYTES])
    found = [pair for pair in found if pair[0] < pair[1]]
    if not found:
        raise HostError(
            f"{path}: names no RAM; its addresses are shown to CAP_SYS_ADMIN only, so run it as root (sudo)"
        )
    return found


def zone_ranges(path: Path = Path("/proc/zoneinfo")) -> dict[str, tuple[int, int]]:
    """First and end page frame number of each zone that holds pages, by "node N ZONE"."""
    found: dict[str, tuple[int, int]] = {}
    zone, spanned = "", 0
    for line in _read(str(path)).splitlines():
        words = line.replace(",", "").split()
        if line.startswith("Node"):
            zone = f"node {words[1]} {words[3]}"
        elif words and words[0] == "spanned":
            spanned = int(words[1])
        elif words and words[0] == "start_pfn:" and spanned:
            first = int(words[1])
            found[zone] = (first, first + spanned)
    return found


def xen_pv(kcore: Kcore, symbols: Kallsyms) -> bool:
    """Whether this kernel runs in a Xen PV domain.

    By the kernel's own `xen_domain_type` (include/xen/xen.h: XEN_NATIVE 0, XEN_PV_DOMAIN 1, XEN_HVM_DOMAIN 2, which PVH is
    too); a kernel without CONFIG_XEN has no such symbol. /sys/hypervisor/type says "xen" of all domains.
    """
    at = symbols.address("xen_domain_type")
    return at is not None and kcore.read_u64(at) & 0xFFFF_FFFF == 1


def physical_mask(kcore: Kcore, symbols: Kallsyms) -> int:
    """The kernel's `physical_mask`: address bits of an entry, without the encryption bit (arch/x86/mm/pgtable.c)."""
    at = symbols.address("physical_mask")
    return kcore.read_u64(at) if at is not None else (1 << 52) - 1


def lockdown() -> str:
    """The active lockdown mode, `none` where there is no such thing."""
    text = _read("/sys/kernel/security/lockdown")
    return text[text.index("[") + 1 : text.index("]")] if "[" in text else "none"


def possible_cpus() -> int:
    """One more than the highest number that a CPU of this machine may get."""
    listed = _read("/sys/devices/system/cpu/possible")  # "0-3", or "0,2-5"
    return int(listed.replace("-", ",").split(",")[-1] or 0) + 1


def _rodata(kcore: Kcore, symbols: Kallsyms) -> list[int] | None:
    """Page frames of rodata, [first, end), while the kernel protects them (protect_rodata, arch/x86/mm/pat/set_memory.c):
    booted with rodata=off it never sets `kernel_set_to_readonly` (mark_rodata_ro, arch/x86/mm/init_64.c).
    """
    start, end = symbols.address("__start_rodata"), symbols.address("__end_rodata")
    protects = symbols.address("kernel_set_to_readonly")
    if start is None or end is None or (protects is not None and not kcore.read_u64(protects) & 0xFF):
        return None
    base = int(kcore.note.get("NUMBER(phys_base)", "0"))
    return [(address - KERNEL_IMAGE_BASE + base) >> 12 for address in (start, end)]


def kfence_pool(kcore: Kcore, symbols: Kallsyms) -> list[int] | None:
    """KFENCE's pool as [first_pfn, end_pfn), None where there is none (yet).

    KFENCE_POOL_SIZE (include/linux/kfence.h) is (CONFIG_KFENCE_NUM_OBJECTS + 1) * 2 pages; no parameter changes it.
    """
    at = symbols.address("__kfence_pool")
    address = kcore.read_u64(at) if at is not None else 0
    if not address:
        return None
    objects = int(_config().get("CONFIG_KFENCE_NUM_OBJECTS", "255"))
    first = (address - kcore.page_offset) >> 12
    return [first, first + 2 * (objects + 1)]


def _config() -> dict[str, str]:
    release = platform.release()
    for path in (
        f"/boot/config-{release}",
        f"/usr/lib/modules/{release}/config",
        f"/lib/modules/{release}/build/.config",
    ):
        text = _read(path)
        if text:
            break
    else:
        try:
            text = gzip.decompress(Path("/proc/config.gz").read_bytes()).decode()
        except OSError:
            text = ""
    found = dict(line.split("=", 1) for line in text.splitlines() if line.startswith("CONFIG_") and "=" in line)
    wanted = {f"CONFIG_{name}" for name in CONFIG_WANTED} | {"CONFIG_KFENCE_NUM_OBJECTS"}
    return {name: value for name, value in found.items() if name in wanted}


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace").strip()
    except OSError:
        return ""
