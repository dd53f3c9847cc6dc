"""Names of addresses and addresses of names, from tables written by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from collect.errors import HostError
from collect.kallsyms import Kallsyms

TABLE = """\
0000000000000000 A fixed_percpu_data
ffffffff81000000 T _stext
ffffffff81000500 t helper
ffffffff81000800 t helper
ffffffff81000900 T _etext
ffffffff82000000 D physical_mask
ffffffffc0002000 t late\t[zram]
ffffffffc0001000 t _stext\t[zram]
ffffffffc0003000 t bpf_prog_6deef7357e7b4530\t[bpf]
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "kallsyms"
    path.write_text(TABLE)
    return path


def addresses(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.uint64)


def test_symbols_of_the_kernel_proper_have_addresses(path: Path) -> None:
    symbols = Kallsyms(path)
    assert symbols.address("physical_mask") == 0xFFFF_FFFF_8200_0000
    assert symbols.address("_stext") == 0xFFFF_FFFF_8100_0000, "not a module's"
    assert symbols.address("helper") == 0xFFFF_FFFF_8100_0500, "the first of several"
    assert symbols.address("late") is None
    assert "physical_mask" in symbols and "late" not in symbols


def test_an_address_is_named_by_the_symbol_below_it(path: Path) -> None:
    assert Kallsyms(path).names(
        addresses(0xFFFF_FFFF_C000_2010, 0xFFFF_FFFF_8100_0500, 0xFFFF_FFFF_8100_07FF, 0xFFFF_FFFF_C000_3004)
    ) == ["late+0x10 [zram]", "helper+0x0", "helper+0x2ff", "bpf_prog_6deef7357e7b4530+0x4 [bpf]"]


def test_far_from_every_symbol_there_is_no_name(path: Path) -> None:
    assert Kallsyms(path).names(addresses(0xFFFF_FFFF_C010_0000, 0xFFFF_B000_0000_0000)) == ["?", "?"]
    assert Kallsyms(path).names(addresses()) == []


def test_nothing_lies_below_the_first_symbol(tmp_path: Path) -> None:
    (tmp_path / "kallsyms").write_text("ffffffff81000000 T _stext\n")
    assert Kallsyms(tmp_path / "kallsyms").names(addresses(5)) == ["?"]


def test_text_of_the_kernel_proper_is_known(path: Path) -> None:
    found = Kallsyms(path).is_core_text(
        addresses(0xFFFF_FFFF_80FF_FFFF, 0xFFFF_FFFF_8100_0000, 0xFFFF_FFFF_8100_08FF, 0xFFFF_FFFF_8100_0900)
    )
    assert found.tolist() == [False, True, True, False]


def test_a_second_reading_knows_what_came_and_forgets_what_went(path: Path) -> None:
    symbols = Kallsyms(path)
    path.write_text(TABLE.replace("late\t[zram]", "early\t[nbd]"))
    assert symbols.names(addresses(0xFFFF_FFFF_C000_2010)) == ["late+0x10 [zram]"]
    symbols.reread()
    assert symbols.names(addresses(0xFFFF_FFFF_C000_2010)) == ["early+0x10 [nbd]"]


@pytest.mark.parametrize("text", ["", "0000000000000000 T _stext\n0000000000000000 T _etext\n"])
def test_hidden_addresses_are_an_error_that_names_the_switch(text: str, tmp_path: Path) -> None:
    (tmp_path / "kallsyms").write_text(text)
    with pytest.raises(HostError, match="kptr_restrict"):
        Kallsyms(tmp_path / "kallsyms")


def test_a_kernel_without_the_table_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="CONFIG_KALLSYMS"):
        Kallsyms(tmp_path / "missing")


def test_a_function_ends_where_the_next_symbol_begins(path: Path) -> None:
    symbols = Kallsyms(path)
    assert symbols.extent("_stext") == (0xFFFF_FFFF_8100_0000, 0xFFFF_FFFF_8100_0500)
    assert symbols.extent("missing") is None
