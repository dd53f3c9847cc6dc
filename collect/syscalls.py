"""The bpf() system call for what bcc has no name for. Numbers and layouts: include/uapi/linux/bpf.h."""

from __future__ import annotations

import ctypes
import os
import struct

__all__ = ["has_atomic_fetch", "recursion_misses"]

_SYS_BPF = 321
_PROG_LOAD, _OBJ_GET_INFO_BY_FD = 5, 15
_SOCKET_FILTER = 1

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


def recursion_misses(fd: int) -> int | None:
    """Times a program was not run because it was running already on that CPU; None before 5.12, which did not count.

    `struct bpf_prog_info.recursion_misses` (include/uapi/linux/bpf.h, since 9ed9e9ba2337, "bpf: Count the number of
    times recursion was prevented").
    """
    offset, length = 208, 256
    info = ctypes.create_string_buffer(length)
    attr = struct.pack("<IIQ", fd, length, ctypes.addressof(info)).ljust(128, b"\0")
    result, attr = _bpf(_OBJ_GET_INFO_BY_FD, attr)
    if result != 0:
        return None
    return (
        int.from_bytes(info.raw[offset : offset + 8], "little")
        if struct.unpack_from("<I", attr, 4)[0] >= offset + 8
        else None
    )
