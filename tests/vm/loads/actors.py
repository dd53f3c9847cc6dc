"""Real processes that do something to the kernel, hold it, allocate ordinary memory, and let go."""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import random
import resource
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

# Imported by scripts that put the checkout on the path first.
from tests.vm.loads import syscalls

_F_SETPIPE_SZ = 1031
_PIPE = 2**19
PAGE = 4096

# Does the work, counts it, and returns what undoes it (None: the end of the process undoes it).
Act = Callable[["Counter[str]"], Callable[[], None] | None]


@dataclass
class Memory:
    """The ordinary memory that an actor takes besides: sizes in bytes."""

    touched: int = 0  # anonymous, as a heap
    piped: int = 0  # in pipes: kernel memory, which cannot be moved
    written: int = 0  # to a file: page cache
    path: str = ""
    populated: int = 0  # anonymous in one go, in huge pages where the kernel likes
    _held: list[object] = field(default_factory=list)

    def take(self) -> None:
        """Allocate it, page by page, and keep it."""
        if self.touched:
            heap = mmap.mmap(-1, self.touched)
            for offset in range(0, self.touched, PAGE):
                heap[offset] = 1
            self._held.append(heap)
        if self.populated:
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
            self._held.append(mmap.mmap(-1, self.populated, flags=flags))
        for _ in range(0, self.piped, _PIPE):
            readable, writable = os.pipe()
            fcntl.fcntl(writable, _F_SETPIPE_SZ, _PIPE)
            for _ in range(0, _PIPE, 65536):
                os.write(writable, bytes(65536))
            self._held.append((readable, writable))
        if self.written:
            with Path(self.path).open("wb") as file:
                for _ in range(0, self.written, 65536):
                    file.write(bytes(65536))

    @classmethod
    def some(cls, rng: random.Random, path: str = "") -> Memory:
        """A process's worth: 0.25 to 2 MB touched, some full pipes, perhaps a file."""
        return cls(
            touched=rng.randrange(64, 513) * PAGE,
            piped=rng.choice((1, 2, 4, 6)) * _PIPE,
            written=rng.choice((0, 0, 1, 2)) * 2**18 if path else 0,
            path=path,
        )


def sieve(megabytes: int) -> list[object]:
    """Take kernel memory and give every eighth page of it back; the rest goes with what is returned.

    Without such holes a freshly booted kernel serves the next big request from one clean block.
    """
    gone = os.pipe()
    kept: list[object] = []
    fcntl.fcntl(gone[1], _F_SETPIPE_SZ, 2**20)
    page = bytes(PAGE)
    for _ in range(2 * megabytes):
        pipe = os.pipe()
        fcntl.fcntl(pipe[1], _F_SETPIPE_SZ, _PIPE)
        for number in range(_PIPE // PAGE):
            os.write(gone[1] if number % 8 == 0 else pipe[1], page)
        kept.append(pipe)
    for end in gone:
        os.close(end)
    return kept


class Actor:
    """A forked process; `wait` until it has done its work."""

    def __init__(self, act: Act, memory: Memory, *, stays: bool = False) -> None:
        self.stays = stays
        self.counts: Counter[str] = Counter()
        results, results_write = os.pipe()
        release_read, self._release = os.pipe()
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(results)
            os.close(self._release)
            self._live(act, memory, release_read, results_write)
        os.close(results_write)
        os.close(release_read)
        self._results = os.fdopen(results, "rb")
        self._acted = False

    def wait(self) -> None:
        """Wait until it has done its work."""
        if not self._acted:
            self._acted = True
            self._hear()

    @staticmethod
    def _live(act: Act, memory: Memory, release: int, results: int) -> None:
        """The child: act, take memory, wait to be let go. Never returns."""
        status = 1
        try:
            syscalls.die_with_parent()
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends a load, in order
            counts: Counter[str] = Counter()
            undo = act(counts)
            memory.take()
            os.write(results, json.dumps(counts).encode() + b"\n")
            os.read(release, 1)
            counts = Counter()
            if undo is not None:
                undo()
                counts["undone"] += 1
            os.write(results, json.dumps(counts).encode() + b"\n")
            status = 0
        except BaseException:  # whatever it is, the child must not return
            traceback.print_exc()
        finally:
            os._exit(status)

    def _hear(self) -> None:
        line = self._results.readline()
        if line:
            self.counts.update(json.loads(line))
        else:
            self.counts["actors_failed"] += 1

    def let_go(self) -> Counter[str]:
        """Tell the actor to end; returns what was counted over its life. It still has to be reaped."""
        self.wait()
        try:
            os.write(self._release, b".")
            self._hear()
        except BrokenPipeError:
            pass
        os.close(self._release)
        self._results.close()
        return self.counts


class Cast:
    """The actors alive at a time, and the counts of those that have gone."""

    # That many may be at work at once: the kernel waits a lot (for RCU above all) in what they do.
    _AT_WORK = 4
    # That many may still be on their way out: closing probes takes seconds.
    _LEAVING = 8

    def __init__(self, counts: Counter[str]) -> None:
        # 5.10 charges BPF programs to this limit, and secret memory is locked memory everywhere.
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        resource.setrlimit(resource.RLIMIT_NOFILE, (65536, 65536))
        self._counts = counts
        self._alive: list[Actor] = []
        self._leaving: list[int] = []

    def __len__(self) -> int:
        return len(self._alive)

    def enter(self, act: Act, memory: Memory, *, stays: bool = False) -> Actor:
        """Start an actor; waits for an earlier one if too many are at work."""
        entered = Actor(act, memory, stays=stays)
        self._alive.append(entered)
        self._counts["processes"] += 1
        if len(self._alive) > self._AT_WORK:
            self._alive[-1 - self._AT_WORK].wait()
        return entered

    def wait_all(self) -> None:
        """Wait until everyone has done their work."""
        for actor in self._alive:
            actor.wait()

    def leave(self, index: int) -> None:
        """Let the actor at a position go."""
        actor = self._alive.pop(index)
        self._counts.update(actor.let_go())
        self._leaving.append(actor.pid)
        self._reap(self._LEAVING)

    def leave_one(self, rng: random.Random) -> None:
        """Let someone go who was not told to stay to the end."""
        free = [index for index, actor in enumerate(self._alive) if not actor.stays]
        if free:
            self.leave(rng.choice(free))

    def leave_all(self) -> None:
        """Let everyone go, the eldest first, and wait until they are gone."""
        while self._alive:
            self.leave(0)
        self._reap(0)

    def _reap(self, most: int) -> None:
        while len(self._leaving) > most:
            os.waitpid(self._leaving.pop(0), 0)
