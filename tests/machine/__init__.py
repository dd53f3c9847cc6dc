"""A synthetic machine with a direct map, for tests: it runs random API calls and writes a complete trace of them.

`write_trace` is what tests use. The rules it follows are those of `tests.machine.pages`, written page by page and
independently of analyze's compiled ones. Synthetic traces never go into sample_traces/.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from collect.schema import Moment
from tests.machine import users
from tests.machine.kernel import GIGA, MAX_PFN, PAGE_OFFSET, RANGES, RODATA, Machine, Steps, Task
from tests.machine.pages import PageModel

__all__ = ["COLLECTOR", "Machine", "PageModel", "write_trace"]

COLLECTOR = Task(4001, 4000, "directmap-colle", 1)
TASKS = (
    Task(1001, 1000, "modprobe", 0),
    Task(1101, 1100, "bpf-loader", 1),
    Task(1201, 1200, "secrets", 0),
    Task(1301, 1300, "perf", 1),
    Task(1401, 1400, "Xorg", 0),
    Task(1501, 1500, "bpf-loader", 1),
)


def write_trace(directory: Path, seed: int, *, scale: float = 1.0, kernel_style: str = "6.1", between: int = 0) -> Path:
    """Write a whole trace of a synthetic machine to `directory` (made, must be empty); returns it.

    Args:
        seed: the same seed gives the same trace.
        scale: 1 makes some 3,000 changes in a second; small values (0.02) make traces of a few dozen.
        between: snapshots taken while it runs, by turns REQUEST and PERIODIC.
        kernel_style: "5.10" (no packs, no secretmem, no counters of splits in vmstat), "6.1", or "6.12" (the alias rules since 6.2).
    """
    m = Machine(seed, kernel_style)
    packs = users.Packs()
    bpf = users.bpf_program(packs)
    lives: list[Callable[[Machine, Task], Steps]] = [
        users.module, bpf, users.secret, users.probe(users.KPROBE), users.graphics, users.probe(users.FTRACE),
    ]  # fmt: skip
    if kernel_style == "5.10":
        lives[2] = users.module
    repeats = [round(n * scale) + 1 for n in (50, 120, 40, 25, 10, 15)]

    def task_steps(task: Task, life: Callable[[Machine, Task], Steps], n: int) -> Steps:
        for _ in range(n):
            yield from life(m, task)
            if m.random.random() < 0.1:
                yield from users.ranges(m, task)

    _run(m, [task_steps(TASKS[0], users.module, round(3 * scale))])  # before we came
    m.counters()
    _run(m, [m.snapshot(Moment.BEFORE_ATTACH, 0)])
    m.recording = True
    _run(m, [bpf(m, COLLECTOR)])
    running = [task_steps(*what) for what in zip(TASKS, lives, repeats, strict=True)]
    running.append(users.image(m, TASKS[4]))
    m.open.append((2 * GIGA, 3 * GIGA))
    m.counters()
    started = m.tick()
    _run(m, running, until=m.snapshot(Moment.START, 1))
    _run(m, [users.starved(m, TASKS[4], 3 * GIGA)])
    m.open.append((3 * GIGA, 4 * GIGA))
    for i in range(between):
        _run(m, running, most=max(1, int(1500 * scale / between)))
        _run(m, running, until=m.snapshot(Moment.PERIODIC if i % 2 else Moment.REQUEST, 2 + i))
    _run(m, running, most=int(3000 * scale))
    _run(m, [*running, bpf(m, COLLECTOR)], leave=1)
    ended = m.tick()
    _run(m, running, until=m.snapshot(Moment.END, 2 + between))
    m.counters()
    _run(m, [*running, bpf(m, COLLECTOR)])
    _run(m, [m.snapshot(Moment.AFTER_DETACH, 3 + between)])
    manifest = {
        "ts_start_ns": started,
        "ts_end_ns": ended,
        "kernel": {
            "release": f"{kernel_style}.0-synthetic",
            "version": "#1 SMP synthetic",
            "boot_id": "00000000-0000-0000-0000-000000000000",
            "cmdline": "",
            "config": {},
        },
        "memory": {
            "max_pfn": MAX_PFN,
            "ranges": [list(pair) for pair in RANGES],
            "page_offset": PAGE_OFFSET,
            "paging_levels": 4,
            "rodata": list(RODATA),
            "kfence_pool": None,
        },
        "recorder": {"pid": COLLECTOR.pid, "tgid": COLLECTOR.tgid},
    }
    return m.recorder.write(directory, manifest)


def _run(m: Machine, tasks: list[Steps], *, until: Steps | None = None, most: int = 1 << 40, leave: int = 0) -> None:
    """Step tasks in random order: all to their end, or until `until` has ended, or `leave` are left, or `most` steps."""
    last_second = m.now_ns // 1_000_000_000
    for _ in range(most):
        if m.now_ns // 1_000_000_000 != last_second and m.recording:
            last_second = m.now_ns // 1_000_000_000
            m.counters()
        if until is not None and (not tasks or m.random.random() < 0.3):
            if next(until, "ended") == "ended":
                return
            continue
        if len(tasks) <= leave:
            return
        task = m.random.choice(tasks)
        if next(task, "ended") == "ended":
            tasks.remove(task)
