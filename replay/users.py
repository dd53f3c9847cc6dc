"""Which user of special memory an allocation belongs to, by the functions in its stack."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import numpy.typing as npt

from collect.trace import Trace

__all__ = ["USERS", "User", "users_of_stacks"]


class User(IntEnum):
    OTHER = 0
    MODULE = 1
    BPF = 2
    KPROBE = 3
    FTRACE = 4
    SECRETMEM = 5


USERS = tuple(user.name.lower() for user in User)
"""Names by code."""

_PREFIXES = (
    ("bpf_", User.BPF),
    ("arch_prepare_bpf_", User.BPF),
    ("arch_alloc_bpf_", User.BPF),
    ("alloc_insn_page", User.KPROBE),
    ("__get_insn_slot", User.KPROBE),
    ("__get_optinsn_slot", User.KPROBE),
    ("arch_prepare_kprobe", User.KPROBE),
    ("arch_ftrace_update_trampoline", User.FTRACE),
    ("create_trampoline", User.FTRACE),
    ("alloc_tramp", User.FTRACE),
    ("secretmem_", User.SECRETMEM),
    ("load_module", User.MODULE),
    ("layout_and_allocate", User.MODULE),
    ("move_module", User.MODULE),
    ("module_memory_alloc", User.MODULE),
)
"""Functions that tell the user; of several in one stack the innermost does (a module's init may load BPF)."""


def users_of_stacks(trace: Trace, stack_id: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint8]:
    """`User` code of each stack id, of the same shape; OTHER where no frame is known."""
    table = trace.table("stacks")
    ids = table.column("stack_id").to_numpy()
    code = np.zeros(len(ids) + 1, np.uint8)
    for row, frames in enumerate(table.column("frames").to_pylist()):  # one turn a distinct stack, not an event
        code[row] = _user(frames)
    if not len(ids):
        return np.zeros(len(stack_id), np.uint8)
    order = np.argsort(ids, kind="stable")
    at = np.minimum(np.searchsorted(ids[order], stack_id), len(ids) - 1)
    found = ids[order[at]] == stack_id
    return np.where(found, code[order[at]], User.OTHER).astype(np.uint8)


def _user(frames: list[str]) -> User:
    for frame in frames:
        for prefix, user in _PREFIXES:
            if frame.startswith(prefix):
                return user
    return User.OTHER
