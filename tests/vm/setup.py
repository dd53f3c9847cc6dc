"""Installs on this machine what the lab itself runs: QEMU, debootstrap and a few small tools."""

from __future__ import annotations

import os

from tests.vm import cache, shell
from tests.vm.errors import LabError

# package -> a program that tells whether it is there already
_NEEDED = {
    "qemu-system-x86": "qemu-system-x86_64",
    "debootstrap": "debootstrap",
    "e2fsprogs": "mke2fs",
    "busybox-static": "busybox",
    "kmod": "depmod",
    "dpkg": "dpkg",
    "xz-utils": "xz",
    "zstd": "zstd",
    "util-linux": "unshare",
}


def install() -> None:
    """Install what is missing with apt-get; does nothing, quickly, when nothing is missing."""
    missing = [package for package, program in _NEEDED.items() if shell.find(program) is None]
    if not missing:
        cache.say("all is there already")
        return
    if os.geteuid() != 0:
        raise LabError(
            f"Missing on this machine: {', '.join(missing)}. Installing them needs root.\n"
            "Run: sudo python3 -m tests.vm setup"
        )
    if shell.find("apt-get") is None:
        raise LabError(
            "This machine has no apt-get. Install with its own package manager what holds: "
            + ", ".join(_NEEDED[package] for package in missing)
        )
    cache.say(f"installing {', '.join(missing)}")
    shell.run(["apt-get", "update"], what="fetching the machine's package lists", attempts=3)
    shell.run(
        ["apt-get", "install", "-qy", "--no-install-recommends", *missing],
        what="installing what the lab needs",
        attempts=3,
    )
    cache.say("done")
