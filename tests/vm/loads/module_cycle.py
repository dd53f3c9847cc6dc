"""Kernel modules that load without hardware, found at run time, loaded and unloaded by modprobe."""

from __future__ import annotations

import platform
import random
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

# Where modules live that need no device, or that merely register a driver for one.
PLACES = (
    "kernel/crypto/",
    "kernel/lib/",
    "kernel/fs/",
    "kernel/net/sched/",
    "kernel/net/netfilter/",
    "kernel/net/ipv4/",
    "kernel/net/ipv6/",
    "kernel/net/bridge/",
    "kernel/net/8021q/",
    "kernel/net/sctp/",
    "kernel/net/dccp/",
    "kernel/drivers/md/",
    "kernel/drivers/net/",
    "kernel/drivers/block/",
    "kernel/drivers/input/",
    "kernel/drivers/hid/",
    "kernel/drivers/usb/serial/",
    "kernel/drivers/media/rc/",
    "kernel/sound/core/",
)
# tcrypt fails by design; the test and error injection modules run for long or break things; the
# others cannot be unloaded, or take the guest's own console, disks or network away.
NEVER = (
    "tcrypt", "test_", "locktorture", "torture", "error-inject", "error_inject", "9p", "netfs",
    "fscache", "cachefiles", "virtio", "pstore", "efi", "ocfs2", "dlm", "gfs2", "ceph", "drbd",
    "rbd", "rnbd", "xen", "netconsole", "null_blk", "brd", "zram", "nbd", "fcoe", "rxrpc",
    "pktgen", "hsr", "hyperv", "vmxnet", "fjes", "thunderbolt",
)  # fmt: skip
_SLOWEST_S = 30


class Modules:
    """A shuffled list of modules to try; each is tried again only while it works."""

    def __init__(self, rng: random.Random, *, largest: int, most_deps: int = 4) -> None:
        home = Path("/lib/modules") / platform.release()
        loaded = {line.split()[0] for line in Path("/proc/modules").read_text("ascii").splitlines()}
        found: list[str] = []
        for line in (home / "modules.dep").read_text("ascii").splitlines():
            path, _, deps = line.partition(":")
            name = path.rsplit("/", 1)[-1].split(".ko")[0]
            plain = name.replace("-", "_")
            # Compressed modules (6.12 on) are about a quarter of what gets loaded.
            share = 1 if path.endswith(".ko") else 4
            if (
                path.startswith(PLACES)
                and len(deps.split()) <= most_deps
                and plain not in loaded
                and not any(word in name for word in NEVER)
                and (home / path).stat().st_size * share <= largest
            ):
                found.append(name)
        found.sort()
        rng.shuffle(found)
        self._names = found

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        """The module at a place of the list, from its start again at its end."""
        return self._names[index % len(self._names)]

    def act(self, index: int) -> Callable[[Counter[str]], Callable[[], None] | None]:
        """An act for an actor: load the module at a place of the list, and unload it at the end."""
        name = self.name(index)

        def load(counts: Counter[str]) -> Callable[[], None] | None:
            if _run("modprobe", name):
                counts["modules_loaded"] += 1
                return lambda: unload(name)
            counts["modules_refused"] += 1
            return None

        return load


def unload(name: str) -> None:
    """Unload a module and what only it needed. Another actor's module may still need it."""
    _run("modprobe", "-r", "-q", name)


def _run(*command: str) -> bool:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_SLOWEST_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0
