"""The bpf() system call for what bcc has no name for. Numbers and layouts: include/uapi/linux/bpf.h."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Runs", "enable_stats", "has_atomic_fetch", "program_runs", "recursion_misses"]

_SYS_BPF = 321
_PROG_LOAD, _OBJ_GET_INFO_BY_FD, _ENABLE_STATS = 5, 15, 32
_SOCKET_FILTER = 1
_STATS_RUN_TIME = 0

_INFO_BYTES = 256
_RUN_TIME, _RUN_COUNT, _RECURSION_MISSES = 192, 200, 208
"""Offsets in `struct bpf_prog_info`: run_time_ns and run_cnt since 5.1, recursion_misses since 5.12."""

_libc = ctypes.CDLL(None, use_errno=True)


def _bpf(command: int, attr: bytes) -> tuple[int, bytes]:
    """Result (-1 on failure) and the attributes as the kernel left them."""
    buffer = ctypes.create_string_buffer(attr, len(attr))
    result = int(_libc.syscall(ctypes.c_long(_SYS_BPF), ctypes.c_long(command), buffer, ctypes.c_long(len(attr))))
    return result, buffer.raw


def has_atomic_fetch() -> bool:
    """Whether this kernel's programs have an atomic addition that gives the old value.

    Since 5.12 (5ffa25502b5a, "bpf: Add instructions for atomic_[cmp]xchg" and its siblings). A program with one such
    instruction is loaded and let go.
    """
    store = struct.pack("<BBhi", 0x7A, 10, -8, 0)  # *(u64 *)(r10 - 8) = 0
    one = struct.pack("<BBhi", 0xB7, 0, 0, 1)  # r0 = 1
    fetch = struct.pack("<BBhi", 0xDB, 0 << 4 | 10, -8, 0x01)  # r0 = atomic_fetch_add((u64 *)(r10 - 8), r0)
    leave = struct.pack("<BBhi", 0x95, 0, 0, 0)
    code = ctypes.create_string_buffer(store + one + fetch + leave, 32)
    licence = ctypes.create_string_buffer(b"GPL")
    attr = struct.pack("<IIQQ", _SOCKET_FILTER, 4, ctypes.addressof(code), ctypes.addressof(licence)).ljust(72, b"\0")
    fd, _ = _bpf(_PROG_LOAD, attr)
    if fd >= 0:
        os.close(fd)
    return fd >= 0


class Runs(NamedTuple):
    """Of some programs: how often they ran, and how long in all."""

    n: int
    ns: int


def enable_stats() -> int:
    """Have the kernel time every BPF program until the descriptor that is returned is closed (BPF_ENABLE_STATS, since 5.8).

    Raises OSError, as for want of CAP_SYS_ADMIN.
    """
    fd, _ = _bpf(_ENABLE_STATS, struct.pack("<I", _STATS_RUN_TIME).ljust(128, b"\0"))
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return fd


def program_runs(fds: Sequence[int]) -> Runs:
    """The runs of programs so far, while they are timed."""
    n = ns = 0
    for info in map(_program_info, fds):
        ns += _u64(info, _RUN_TIME) or 0
        n += _u64(info, _RUN_COUNT) or 0
    return Runs(n, ns)


def recursion_misses(fd: int) -> int | None:
    """Times a program was not run because it was running already on that CPU; None before 5.12, which did not count.

    `struct bpf_prog_info.recursion_misses` (include/uapi/linux/bpf.h, since 9ed9e9ba2337, "bpf: Count the number of
    times recursion was prevented").
    """
    return _u64(_program_info(fd), _RECURSION_MISSES)


def _program_info(fd: int) -> bytes:
    """`struct bpf_prog_info` as far as this kernel has it; empty where the descriptor is not a program's."""
    info = ctypes.create_string_buffer(_INFO_BYTES)
    attr = struct.pack("<IIQ", fd, _INFO_BYTES, ctypes.addressof(info)).ljust(128, b"\0")
    result, attr = _bpf(_OBJ_GET_INFO_BY_FD, attr)
    return info.raw[: struct.unpack_from("<I", attr, 4)[0]] if result == 0 else b""


def _u64(info: bytes, offset: int) -> int | None:
    return int.from_bytes(info[offset : offset + 8], "little") if len(info) >= offset + 8 else None
