"""The C headers that bcc's compiler reads before any program: ours, written to a scratch directory, not the kernel's.

bcc compiles every program inside a kernel source tree and puts its own helpers.h before it, which includes a handful of
kernel headers for types and macros. Our programs take nothing else from them: struct layouts come from BTF, codes from
collect/schema.py. So a tree of nine small files serves on any kernel, whether its headers are installed or not, and
newer ones than bcc knows cannot get in the way (those of 7.x break bcc 0.31). Where a future bcc should ask for more,
the kernel's own headers are the second try.
"""

from __future__ import annotations

import contextlib
import os
import platform
import tempfile
from collections.abc import Iterator
from pathlib import Path

__all__ = ["compiled_with", "kernel_headers", "our_headers"]

SOURCE_VARIABLE = "BCC_KERNEL_SOURCE"
"""bcc looks here before /lib/modules (src/cc/frontends/clang/loader.cc)."""

_TYPES = """\
#pragma once
typedef unsigned char __u8, u8, uint8_t;
typedef signed char __s8, s8, int8_t;
typedef unsigned short __u16, u16, uint16_t, __be16, __le16, __sum16;
typedef short __s16, s16, int16_t;
typedef unsigned int __u32, u32, uint32_t, __be32, __le32, __wsum;
typedef int __s32, s32, int32_t;
typedef unsigned long long __u64, u64, uint64_t, __be64, __le64;
typedef long long __s64, s64, int64_t;
typedef unsigned long size_t, uintptr_t;
typedef long ssize_t, intptr_t;
typedef _Bool bool;
#define true 1
#define false 0
typedef __u64 __attribute__((aligned(8))) __aligned_u64;
#define __always_inline inline __attribute__((always_inline))
"""

_FILES = {
    # Stands before everything (-include): what a kernel's configuration would say.
    "include/linux/kconfig.h": "#define CONFIG_BPF_SYSCALL 1\n",
    "include/linux/types.h": _TYPES,
    # Only compared with versions that are older still: the features themselves are asked for elsewhere.
    "include/linux/version.h": "#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + (c))\n"
    "#define LINUX_VERSION_CODE KERNEL_VERSION(5, 10, 0)\n",
    "include/asm/page.h": "#define PAGE_SIZE 4096\n",
    # The user-space interface of BPF, as the copy that every bcc carries has it.
    "include/uapi/linux/bpf.h": "#include <linux/types.h>\n#include <bcc/bpf.h>\n",
    "include/uapi/linux/if_packet.h": "",
    "include/uapi/linux/ptrace.h": "",
    "include/linux/bpf_common.h": "",
    "include/linux/log2.h": "",
}


@contextlib.contextmanager
def our_headers() -> Iterator[str]:
    """Let bcc compile inside a tree of our own; gives what the manifest says of it."""
    with tempfile.TemporaryDirectory(prefix="directmap-headers-") as name:
        for path, text in _FILES.items():
            file = Path(name, path)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="ascii")
        before = os.environ.get(SOURCE_VARIABLE)
        os.environ[SOURCE_VARIABLE] = name
        try:
            yield "our own"
        finally:
            if before is None:
                del os.environ[SOURCE_VARIABLE]
            else:
                os.environ[SOURCE_VARIABLE] = before


@contextlib.contextmanager
def compiled_with(headers: Path) -> Iterator[str]:
    """Let bcc compile as it does by itself, inside the kernel's own headers at `headers`."""
    yield str(headers)


def kernel_headers() -> Path | None:
    """The tree that bcc would find by itself: the variable's, the running kernel's, or the kernel's own archive."""
    release = platform.release()
    named = os.environ.get(SOURCE_VARIABLE)
    for path in (Path(named) if named else None, Path("/lib/modules", release, "build")):
        if path is not None and (path / "include").is_dir():
            return path
    archive = Path("/sys/kernel/kheaders.tar.xz")  # CONFIG_IKHEADERS, which bcc unpacks
    return archive if archive.exists() else None
