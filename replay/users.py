"""Which user of special memory an allocation belongs to, by the functions in its stack."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from analyze.users import USER_NAMES, User
from collect.trace import Trace

__all__ = ["TRAMPOLINE", "USERS", "User", "in_stacks", "users_of_stacks"]


USERS = USER_NAMES[: User.COLLECTOR]
"""Names by code, without the recorder: what it takes for itself is no request."""

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


TRAMPOLINE = ("bpf_jit_alloc_exec_page", "bpf_trampoline_", "bpf_dispatcher_", "arch_alloc_bpf_trampoline")
"""Functions that allocate BPF code which is no program: a page of its own each, to Linux 6.7 or so."""


def users_of_stacks(trace: Trace, stack_id: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint8]:
    """`User` code of each stack id, of the same shape; OTHER where no frame is known."""
    return _by_stack(trace, stack_id, lambda frames: int(_user(frames))).astype(np.uint8)


def in_stacks(trace: Trace, stack_id: npt.NDArray[np.uint32], prefixes: tuple[str, ...]) -> npt.NDArray[np.bool_]:
    """Whether each stack has a function that begins with one of `prefixes`."""
    return _by_stack(trace, stack_id, lambda frames: any(f.startswith(prefixes) for f in frames)).astype(np.bool_)


def _by_stack(
    trace: Trace, stack_id: npt.NDArray[np.uint32], code: Callable[[list[str]], int]
) -> npt.NDArray[np.int64]:
    """`code` of each stack, worked out once a distinct stack; 0 for an id that is not there."""
    table = trace.table("stacks")
    ids = table.column("stack_id").to_numpy()
    codes = np.array([code(frames) for frames in table.column("frames").to_pylist()], np.int64)
    if not len(ids):
        return np.zeros(len(stack_id), np.int64)
    order = np.argsort(ids, kind="stable")
    at = np.minimum(np.searchsorted(ids[order], stack_id), len(ids) - 1)
    return np.where(ids[order[at]] == stack_id, codes[order[at]], 0)


def _user(frames: list[str]) -> User:
    for frame in frames:
        for prefix, user in _PREFIXES:
            if frame.startswith(prefix):
                return user
    return User.OTHER
