"""Calls of the kernel's own functions (kfuncs) in programs whose compiler does not know them.

bcc loads instructions as it compiled them and resolves no symbols of the kernel. A kfunc is called like a helper, but for the
register field, which says so, and the immediate, which is the function's id in the kernel's BTF (include/uapi/linux/bpf.h,
BPF_PSEUDO_KFUNC_CALL). So our programs call helpers whose numbers no kernel has, and here they become such calls before the program is
loaded, or nothing where the kernel lacks the function.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from collect.atomic_fetch import MOVE, instructions, second_halves
from collect.btf import Btf

__all__ = ["PLACEHOLDERS", "kernel_calls", "put_kernel_calls"]

CALL, PSEUDO_KFUNC_CALL = 0x85, 2
PLACEHOLDERS = {
    # as collect/bpf/records.h numbers them
    0x64_6D_00_01: "bpf_preempt_disable",  # since 6.10, "bpf: Introduce bpf_preempt_[disable,enable] kfuncs"
    0x64_6D_00_02: "bpf_preempt_enable",
}


def kernel_calls(btf: Btf) -> dict[int, int]:
    """The BTF ids of the functions by their placeholders; empty where the kernel lacks one of them."""
    found = {number: btf.function_id(name) for number, name in PLACEHOLDERS.items()}
    return {number: at for number, at in found.items() if at is not None} if None not in found.values() else {}


def put_kernel_calls(bcc_lib: Any, module: Any, name: bytes, ids: Mapping[int, int]) -> int:
    """Make the calls of a compiled program what they stand for; how many there were. Before it is loaded.

    Kprobes and tracepoints are not preempted as it is: only programs of fentry and fexit, which are, get the calls.
    """
    of_trampoline = name.startswith((b"kfunc__", b"kretfunc__"))
    return placed(instructions(bcc_lib, module, name), ids if of_trampoline else {})


def placed(code: np.ndarray[Any, np.dtype[np.void]], ids: Mapping[int, int]) -> int:
    """The same among instructions; without `ids` a call becomes r0 = 0, as which its result is never read."""
    wide = second_halves(code)
    found = 0
    for number in PLACEHOLDERS:
        mine = (code["code"] == CALL) & (code["registers"] == 0) & (code["immediate"] == number) & ~wide
        found += int(np.count_nonzero(mine))
        if ids:
            code["registers"][mine], code["immediate"][mine] = PSEUDO_KFUNC_CALL << 4, ids[number]
        else:
            code["code"][mine], code["immediate"][mine] = MOVE[0], 0
    return found
