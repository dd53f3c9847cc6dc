"""Calls of the kernel's own functions, put into instructions that a compiler wrote as calls of helpers that do not exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from collect.atomic_fetch import INSTRUCTION
from collect.btf import Btf
from collect.kernel_calls import PLACEHOLDERS, kernel_calls, placed

DISABLE, ENABLE = PLACEHOLDERS
IDS = {DISABLE: 71_003, ENABLE: 71_009}
CALL, WIDE = 0x85, 0x18
RECORDS = Path(__file__).parents[2] / "collect" / "bpf" / "records.h"


def code(*rows: tuple[int, int, int]) -> np.ndarray[Any, np.dtype[np.void]]:
    """Instructions by code, registers and immediate."""
    return np.array([(code, registers, 7, immediate) for code, registers, immediate in rows], INSTRUCTION)


def test_they_become_calls_by_the_kernels_number_and_nothing_else_changes() -> None:
    some = code((CALL, 0, DISABLE), (CALL, 0, 67), (CALL, 0, ENABLE), (0xB7, 0, DISABLE), (CALL, 0x10, DISABLE))
    assert placed(some, IDS) == 2
    assert some.tolist() == [
        (CALL, 0x20, 7, 71_003),
        (CALL, 0, 7, 67),
        (CALL, 0x20, 7, 71_009),
        (0xB7, 0, 7, DISABLE),
        (CALL, 0x10, 7, DISABLE),
    ]


def test_where_the_kernel_lacks_them_they_do_nothing() -> None:
    some = code((CALL, 0, DISABLE), (CALL, 0, 67), (CALL, 0, ENABLE))
    assert placed(some, {}) == 2
    assert some.tolist() == [(0xB7, 0, 7, 0), (CALL, 0, 7, 67), (0xB7, 0, 7, 0)]


def test_the_second_half_of_a_wide_instruction_is_a_number_and_no_call() -> None:
    some = code((WIDE, 0x11, 5), (CALL, 0, DISABLE), (CALL, 0, ENABLE), (WIDE, 0, 0))
    assert placed(some, IDS) == 1
    assert some["immediate"].tolist() == [5, DISABLE, 71_009, 0]


def test_the_programs_number_them_alike() -> None:
    told = re.findall(r"static void \(\*(preempt_\w+)\)\(void\) = \(void \*\)(0x[0-9a-f]+);", RECORDS.read_text())
    assert {int(number, 16): f"bpf_{name}" for name, number in told} == PLACEHOLDERS


@pytest.mark.parametrize(("there", "found"), [((True, True), True), ((True, False), False), ((False, False), False)])
def test_both_or_none(there: tuple[bool, bool], found: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {name: 5 + i for i, (name, has) in enumerate(zip(PLACEHOLDERS.values(), there, strict=True)) if has}
    btf = object.__new__(Btf)
    monkeypatch.setattr(Btf, "function_id", lambda _, name: known.get(name))
    assert bool(kernel_calls(btf)) is found
