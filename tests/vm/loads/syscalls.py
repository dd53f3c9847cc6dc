"""The system calls that the loads need and Python has no name for: bpf, memfd_secret, perf events."""

from __future__ import annotations

import ctypes
import os
import signal
import struct

_libc = ctypes.CDLL(None, use_errno=True)

_SYS_PERF_EVENT_OPEN = 298
_SYS_BPF = 321
_SYS_MEMFD_SECRET = 447

_BPF_PROG_LOAD = 5
_BPF_PROG_TYPE_SOCKET_FILTER = 1
_PR_SET_PDEATHSIG = 1


def _call(number: int, *arguments: object) -> int:
    result = int(_libc.syscall(ctypes.c_long(number), *arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends, however the parent ends."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def load_filter(additions: int) -> int:
    """Load a socket filter of that many additions and return its file descriptor.

    An addition of a 32-bit constant is seven bytes of machine code (six on some kernels), so the
    number decides how many pages the kernel needs for the program.
    """
    move = struct.pack("<BBhi", 0xB7, 0, 0, 0)  # r0 = 0
    add = struct.pack("<BBhi", 0x07, 0, 0, 0x01020304)  # r0 += constant
    leave = struct.pack("<BBhi", 0x95, 0, 0, 0)
    code = move + add * additions + leave
    program = ctypes.create_string_buffer(code, len(code))
    licence = ctypes.create_string_buffer(b"GPL")
    # union bpf_attr for BPF_PROG_LOAD up to log_buf, and zeroes for what came after 5.10.
    attr = struct.pack(
        "<IIQQIIQ",
        _BPF_PROG_TYPE_SOCKET_FILTER,
        len(code) // 8,
        ctypes.addressof(program),
        ctypes.addressof(licence),
        0,
        0,
        0,
    ).ljust(64, b"\0")
    buffer = ctypes.create_string_buffer(attr, len(attr))
    return _call(_SYS_BPF, ctypes.c_long(_BPF_PROG_LOAD), buffer, ctypes.c_long(len(attr)))


def memfd_secret() -> int:
    """A file descriptor of secret memory; OSError with ENOSYS where there is none."""
    return _call(_SYS_MEMFD_SECRET, ctypes.c_long(0))


def kprobe(pmu: int, function: str, offset: int) -> int:
    """Attach a kprobe through its perf PMU; it goes when the file descriptor is closed."""
    name = ctypes.create_string_buffer(function.encode())
    # struct perf_event_attr, version 1 and later: type, size, config, period, sample_type,
    # read_format, flags, wakeup, bp_type, config1 (the name), config2 (the offset).
    size = 112
    attr = struct.pack("<IIQQQQQIIQQ", pmu, size, 0, 0, 0, 0, 0, 0, 0, ctypes.addressof(name), offset).ljust(
        size, b"\0"
    )
    buffer = ctypes.create_string_buffer(attr, len(attr))
    everyone, first_cpu, no_group, close_on_exec = -1, 0, -1, 8
    return _call(
        _SYS_PERF_EVENT_OPEN,
        buffer,
        ctypes.c_long(everyone),
        ctypes.c_long(first_cpu),
        ctypes.c_long(no_group),
        ctypes.c_long(close_on_exec),
    )
