"""Atomic additions that give the old value, in programs whose compiler does not know them.

The kernel has them since 5.12 (5ffa25502b5a, "bpf: Add instructions for atomic_[cmp]xchg", and its siblings); bcc compiles
for the first instruction set, whatever the kernel (LLVM 19: "Invalid usage of the XADD return value"). An addition
without fetch is the same instruction but for its immediate (include/uapi/linux/bpf.h, BPF_FETCH). So our programs hold
one that the compiler takes for an addition that changes its operand, behind a mark that no compiler writes, and here
the flag is put in before the program is loaded.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from collect.errors import HostError

__all__ = ["FETCH", "MOVE", "instructions", "put_fetch", "second_halves"]

FETCH = 1
INSTRUCTION = np.dtype([("code", "u1"), ("registers", "u1"), ("offset", "i2"), ("immediate", "i4")])
MOVE, ATOMIC, WIDE = (0xB7, 0xB4), 0xDB, 0x18


def put_fetch(bcc_lib: Any, module: Any, name: bytes) -> int:
    """Give the marked additions of a compiled program the flag; how many there were. Before it is loaded.

    The mark is the operand's register set to 1 twice in a row, just before (fetch_add in collect/bpf/page_rings.c).
    """
    code = instructions(bcc_lib, module, name)
    found = marked(code)
    code["immediate"][found] = FETCH
    return len(found)


def instructions(bcc_lib: Any, module: Any, name: bytes) -> np.ndarray[Any, np.dtype[np.void]]:
    """The instructions of a compiled program, where bcc keeps them: what is written there is what is loaded."""
    start, size = bcc_lib.bpf_function_start(module, name), bcc_lib.bpf_function_size(module, name)
    if not start or not size:
        raise HostError(f"{name.decode()}: bcc does not show this program's instructions; this is a bug in directmap")
    return np.frombuffer((ctypes.c_uint8 * size).from_address(start), INSTRUCTION)


def second_halves(code: np.ndarray[Any, np.dtype[np.void]]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which of the instructions are the second half of one of 16 bytes, which holds what looks like anything."""
    found = np.zeros(len(code), np.bool_)
    found[np.minimum(np.flatnonzero(code["code"] == WIDE) + 1, len(code) - 1)] = True
    return found


def marked(code: np.ndarray[Any, np.dtype[np.void]]) -> list[int]:
    """Places of the marked additions among instructions."""
    wide = second_halves(code)
    sets = np.isin(code["code"], MOVE) & (code["immediate"] == 1) & ~wide
    found = []
    for i in np.flatnonzero((code["code"] == ATOMIC) & (code["immediate"] == 0) & ~wide).tolist():
        operand = code["registers"][i] >> 4
        if i >= 2 and all(sets[j] and code["registers"][j] & 15 == operand for j in (i - 2, i - 1)):
            found.append(i)
    return found
