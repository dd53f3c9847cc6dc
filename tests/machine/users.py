"""What the users of the direct map do: the life of modules, BPF programs, probes and secret memory.

Stacks are those that real kernels show (innermost first); the sequences of calls are those of kernel/module, kernel/bpf
and mm/secretmem.c in 5.10 and 6.1.
"""

from __future__ import annotations

from collections.abc import Callable

from collect.schema import Cpa, Pte, RegionEvent, RegionKind, Space, Tier
from tests.machine.kernel import IMAGE_BASE, NX, PAGE_OFFSET, RW, Machine, P, Steps, Task

CALL = ("__change_page_attr_set_clr", "change_page_attr_set_clr")
SYSCALL = ("do_syscall_64", "entry_SYSCALL_64_after_hwframe")
KWORKER = ("process_one_work", "worker_thread", "kthread", "ret_from_fork")
WORKER = Task(77, 77, "kworker/0:1", 0)

LOAD = ("load_module", "__do_sys_finit_module", *SYSCALL)
UNLOAD = ("free_module", "__do_sys_delete_module", *SYSCALL)
BPF_LOAD = ("bpf_int_jit_compile", "bpf_prog_select_runtime", "bpf_prog_load", "__sys_bpf", "__x64_sys_bpf", *SYSCALL)
BPF_FREE = ("bpf_jit_free", "bpf_prog_free_deferred", *KWORKER)
KPROBE = ("alloc_insn_page", "__get_insn_slot", "arch_prepare_kprobe", "register_kprobe", *SYSCALL)
FTRACE = ("arch_ftrace_update_trampoline", "ftrace_startup", "register_ftrace_function", *SYSCALL)
FAULT = ("secretmem_fault", "__do_fault", "do_fault", "handle_mm_fault", "exc_page_fault", "asm_exc_page_fault")
EVICT = ("secretmem_free_folio", "delete_from_page_cache_batch", "truncate_inode_pages_range", "evict", *SYSCALL)
TTM = ("set_pages_array_wc", "ttm_pool_alloc [ttm]", "ttm_tt_populate [ttm]", "drm_ioctl [drm]", *SYSCALL)
DELAYED = ("vfree", "delayed_vfree_work", *KWORKER)


class Area:
    """Pages mapped side by side in the module area, with the regions that stand for them."""

    def __init__(self, m: Machine, task: Task, n: int, kind: RegionKind, parent: int, stack: tuple[str, ...]) -> None:
        self.region = m.recorder.new_id()
        self.parent = parent
        self.address = m.address(n)
        self.pfns = m.allocate(n, scope=int(kind), region=self.region, task=task)
        self.kind = kind
        m.region(
            task, RegionEvent.ALLOC, Tier.BACKING, kind, self.region,
            parent=parent, address=self.address, n_bytes=n * 4096, pfns=self.pfns, stack=("module_alloc", *stack),
        )  # fmt: skip

    def set(
        self, m: Machine, task: Task, stack: tuple[str, ...], api: str, first: int = 0, end: int | None = None
    ) -> Steps:
        """set_memory_ro and its kin on pages [first, end) of the area, through its own address."""
        masks = {"ro": (0, RW), "rw": (RW, 0), "nx": (NX, 0), "x": (0, NX), "np": (0, P)}[api]
        yield from m.call(
            task, (*CALL, f"set_memory_{api}", *stack), self.pfns[first:end], *masks,
            space=Space.OTHER, address=self.address + first * 4096,
        )  # fmt: skip

    def free(self, m: Machine, task: Task, stack: tuple[str, ...]) -> Steps:
        """vfree of an area with VM_FLUSH_RESET_PERMS: every page invalid, then every page back to default."""
        yield from reset_pages(m, task, ("__vunmap", *stack), self.pfns)
        m.region(task, RegionEvent.FREE, Tier.BACKING, self.kind, self.region, address=self.address, stack=stack)
        m.free(self.pfns, scope=int(self.kind), region=self.region, task=task)


def reset_pages(m: Machine, task: Task, stack: tuple[str, ...], pfns: list[int]) -> Steps:
    for pfn in pfns:
        yield from invalid(m, task, stack, pfn)
    for pfn in pfns:
        yield from default(m, task, stack, pfn)


def invalid(m: Machine, task: Task, stack: tuple[str, ...], pfn: int) -> Steps:
    frames = ("__change_page_attr_set_clr", "set_direct_map_invalid_noflush", *stack)
    yield from m.call(task, frames, [pfn], 0, P | RW, check_alias=False)


def default(m: Machine, task: Task, stack: tuple[str, ...], pfn: int) -> Steps:
    frames = ("__change_page_attr_set_clr", "set_direct_map_default_noflush", *stack)
    yield from m.call(task, frames, [pfn], P | RW, 0, check_alias=False)


def pause(m: Machine, most: int) -> Steps:
    for _ in range(m.random.randrange(most)):
        yield


def module(m: Machine, task: Task) -> Steps:
    """Load a module, use it for a while, unload it; its memory goes at once or through a kworker."""
    name = m.random.choice(("dummy", "ext4", "veth", "nf_tables", "kvm", "xfs"))
    region = m.recorder.new_id()
    area = Area(m, task, m.random.randrange(3, 12), RegionKind.MODULE_ALLOC, region, LOAD)
    m.region(
        task, RegionEvent.ALLOC, Tier.ASKED, RegionKind.MODULE, region,
        address=area.address, n_bytes=len(area.pfns) * 4096, name=name, stack=LOAD,
    )  # fmt: skip
    text = max(1, len(area.pfns) // 2)
    yield from area.set(m, task, LOAD, "ro", 0, text)
    yield from area.set(m, task, LOAD, "ro", text, text + 1)
    yield from area.set(m, task, LOAD, "nx", text)
    yield from area.set(m, task, LOAD, "x", 0, text)
    yield from pause(m, 400)
    m.region(task, RegionEvent.FREE, Tier.ASKED, RegionKind.MODULE, region, address=area.address, stack=UNLOAD)
    if m.random.random() < 0.5:
        yield from area.free(m, task, ("vfree", "module_memfree", *UNLOAD))
    else:
        yield from area.free(m, WORKER, DELAYED)


class Packs:
    """bpf_prog_pack of 6.1: images come out of packs that are made read-only once."""

    def __init__(self) -> None:
        self.areas: list[tuple[Area, int]] = []
        self.used = 0

    def place(self, m: Machine, task: Task, n: int) -> Steps:
        if not self.areas or self.used + n > len(self.areas[-1][0].pfns):
            pack = m.recorder.new_id()
            stack = ("bpf_prog_pack_alloc", "bpf_jit_binary_pack_alloc", *BPF_LOAD)
            area = Area(m, task, 128, RegionKind.MODULE_ALLOC, pack, stack)
            m.region(
                task, RegionEvent.ALLOC, Tier.BACKING, RegionKind.BPF_PACK, pack,
                address=area.address, n_bytes=len(area.pfns) * 4096, stack=stack,
            )  # fmt: skip
            self.areas.append((area, pack))
            self.used = 0
            yield from area.set(m, task, ("alloc_new_pack", *stack), "ro")
            yield from area.set(m, task, ("alloc_new_pack", *stack), "x")


def bpf_program(packs: Packs) -> Callable[[Machine, Task], Steps]:
    """Load a program, keep it, and let a kworker free it."""

    def life(m: Machine, task: Task) -> Steps:
        image = m.recorder.new_id()
        n = m.random.randrange(1, 4)
        ask = {"n_bytes": n * 3000, "stack": BPF_LOAD, "name": "bpf_prog_" + str(image)}
        if m.style == "5.10":
            area = Area(m, task, n, RegionKind.MODULE_ALLOC, image, ("bpf_jit_binary_alloc", *BPF_LOAD))
            m.region(task, RegionEvent.ALLOC, Tier.ASKED, RegionKind.BPF_IMAGE, image, address=area.address, **ask)
            yield from area.set(m, task, BPF_LOAD, "ro")
            yield from area.set(m, task, BPF_LOAD, "x")
            yield from pause(m, 300)
            yield from area.set(m, WORKER, BPF_FREE, "rw")  # not in the kernel; makes rw on vmalloc part of the trace
            yield from area.free(m, WORKER, ("vfree", "module_memfree", "bpf_jit_binary_free", *BPF_FREE))
            address = area.address
        else:
            yield from packs.place(m, task, n)
            address = packs.areas[-1][0].address + packs.used * 4096
            packs.used += n
            m.region(task, RegionEvent.ALLOC, Tier.ASKED, RegionKind.BPF_IMAGE, image, address=address, **ask)
            yield from pause(m, 300)
        m.region(WORKER, RegionEvent.FREE, Tier.ASKED, RegionKind.BPF_IMAGE, image, address=address, stack=BPF_FREE)

    return life


def probe(stack: tuple[str, ...]) -> Callable[[Machine, Task], Steps]:
    """One page for instructions: a kprobe's slots or an ftrace trampoline."""

    def life(m: Machine, task: Task) -> Steps:
        area = Area(m, task, 1, RegionKind.MODULE_ALLOC, 0, stack)
        yield from area.set(m, task, stack, "ro")
        yield from area.set(m, task, stack, "x")
        yield from pause(m, 200)
        yield from area.free(m, WORKER, DELAYED)

    return life


def secret(m: Machine, task: Task) -> Steps:
    """Fault a few pages of a memfd_secret file in, and give them back."""
    kind = RegionKind.SECRET_PAGE
    held: list[tuple[int, int]] = []
    for _ in range(m.random.randrange(1, 10)):
        region = m.recorder.new_id()
        (pfn,) = m.allocate(1, scope=int(kind), region=region, task=task)
        yield from invalid(m, task, FAULT, pfn)
        m.region(task, RegionEvent.ALLOC, Tier.ASKED, kind, region, n_bytes=4096, pfns=[pfn], stack=FAULT)
        held.append((region, pfn))
        yield from pause(m, 20)
    for region, pfn in held if m.random.random() < 0.8 else ():
        yield from default(m, task, EVICT, pfn)
        m.region(task, RegionEvent.FREE, Tier.ASKED, kind, region, stack=EVICT)
        m.free([pfn], scope=int(kind), region=region, task=task)


def graphics(m: Machine, task: Task) -> Steps:
    """A TTM pool: a pages array made write-combining and put back (two calls to WC, one to WB)."""
    pfns = m.allocate(m.random.randrange(2, 20))
    uc, wc, cache = int(Pte.PCD), int(Pte.PWT), int(Pte.PAT | Pte.PCD | Pte.PWT)
    array = int(Cpa.PAGES_ARRAY)
    yield from m.call(task, (*CALL, *TTM), pfns, uc, 0, flags=array)
    yield from m.call(task, (*CALL, *TTM), pfns, wc, cache, flags=array)
    yield from pause(m, 100)
    free = ("set_pages_array_wb", "ttm_pool_free [ttm]", *SYSCALL)
    yield from m.call(task, (*CALL, *free), pfns, 0, cache, flags=array)
    m.free(pfns)


def ranges(m: Machine, task: Task) -> Steps:
    """Direct calls on ranges of the direct map, aligned or not: whole leaves stay, the others split."""
    first, end = m.random.choice(m.open)
    size = m.random.choice((7, 512, 1024, 3000))
    at = m.random.randrange(first, end - size)
    if m.random.random() < 0.5:
        at = (at + 511) // 512 * 512
        size = min(size, end - at)
    pfns = list(range(at, at + size))
    if any(pfn in m.used for pfn in pfns) or at < 16384:
        return
    m.used.update(pfns)
    stack = ("set_pages_ro", "kexec_mark_range", "arch_kexec_protect_crashkres", *SYSCALL)
    yield from m.call(task, (*CALL, *stack), pfns, 0, RW)
    yield from pause(m, 50)
    yield from m.call(task, (*CALL, "set_pages_rw", "arch_kexec_unprotect_crashkres", *SYSCALL), pfns, RW, 0)
    m.used.difference_update(pfns)


def starved(m: Machine, task: Task, whole: int) -> Steps:
    """A range from below a 1G entry into it, when there is no memory for the second of the two tables it needs."""
    pfns = list(range(whole - 5, whole + 7))
    m.used.update(pfns)
    stack = ("set_pages_ro", "kexec_mark_range", "arch_kexec_protect_crashkres", *SYSCALL)
    yield from m.call(task, (*CALL, *stack), pfns, 0, RW, fails_at=5)


def image(m: Machine, task: Task) -> Steps:
    """A page of the kernel's data made read-only in the high mapping, and through its alias in the direct map."""
    pfn = m.random.randrange(12288, 16384)
    address = IMAGE_BASE + (pfn - 8192) * 4096
    for api, masks in (("ro", (0, RW)), ("rw", (RW, 0))):
        stack = (*CALL, f"set_memory_{api}", "some_driver_probe", *SYSCALL)
        yield from m.call(task, stack, [pfn], *masks, space=Space.KERNEL_IMAGE, address=address)


assert PAGE_OFFSET % (1 << 30) == 0
