"""Kernel memory from ELF core files as fs/proc/kcore.c writes them, made by hand."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest

from collect.errors import HostError
from collect.kcore import KERNEL_IMAGE_BASE, Kcore

PAGE_OFFSET = 0xFFFF_9000_4000_0000
NOWHERE = 0xFFFF_FFFF_FFFF_FFFF
VMALLOC = 0xFFFF_B000_0000_0000
NOTE = """\
OSRELEASE=6.1.0-test
PAGESIZE=4096
SYMBOL(init_uts_ns)=ffffffff82a0f940
SYMBOL(init_top_pgt)=ffffffff82a10000
NUMBER(phys_base)=-16777216
NUMBER(pgtable_l5_enabled)=0
KERNELOFFSET=0
"""
TEXT = (KERNEL_IMAGE_BASE + 0x100_0000, 0x100_0000, b"text" * 1024)
AREAS = [
    TEXT,
    (VMALLOC, NOWHERE, b""),
    (PAGE_OFFSET + 0x1000, 0x1000, bytes(range(256)) * 32),
    (PAGE_OFFSET + 0x10_0000, 0x10_0000, b"\1" * 4096),
    (PAGE_OFFSET + 0x1_0000_0000, 0x1_0000_0000, b"\2" * 8192),
]


def elf(path: Path, areas: list[tuple[int, int, bytes]], note: str = NOTE) -> Path:
    """A core file of (virtual, physical, content) areas with a VMCOREINFO note behind another one."""

    def padded(data: bytes) -> bytes:
        return data + bytes(-len(data) % 4)

    notes = b""
    for name, kind, data in ((b"CORE\0", 1, bytes(336)), (b"VMCOREINFO\0", 0, note.encode())):
        notes += struct.pack("<III", len(name), len(data), kind) + padded(name) + padded(data)
    offset = 64 + 56 * (1 + len(areas))
    headers = struct.pack("<IIQQQQQQ", 4, 0, offset, 0, 0, len(notes), 0, 0)
    offset += len(notes)
    body = b""
    for virtual, physical, content in areas:
        size = len(content)
        headers += struct.pack("<IIQQQQQQ", 1, 7, offset + len(body), virtual, physical, size, size, 4096)
        body += content
    ident = b"\x7fELF\2\1\1".ljust(16, b"\0")
    header = ident + struct.pack("<HHIQQQIHHHHHH", 4, 62, 1, 0, 64, 0, 0, 64, 56, 1 + len(areas), 0, 0, 0)
    path.write_bytes(header + headers + notes + body)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return elf(tmp_path / "kcore", AREAS)


def test_it_says_where_the_direct_map_and_its_tables_are(path: Path) -> None:
    kcore = Kcore(path)
    assert kcore.page_offset == PAGE_OFFSET
    assert kcore.ranges == [[1, 3], [0x100, 0x101], [0x10_0000, 0x10_0002]]
    assert kcore.max_pfn == 0x10_0002
    assert kcore.top_pgt == 0xFFFF_FFFF_82A1_0000
    assert kcore.paging_levels == 4
    assert kcore.note["NUMBER(phys_base)"] == "-16777216"
    kcore.close()


def test_areas_that_are_mapped_elsewhere_too_are_no_ram(tmp_path: Path) -> None:
    """As the kernel's text, or memory at a second place."""
    kcore = Kcore(elf(tmp_path / "kcore", [*AREAS, (VMALLOC, 0x5000, b"\3" * 4096)]))
    assert kcore.page_offset == PAGE_OFFSET
    assert kcore.ranges == [[1, 3], [0x100, 0x101], [0x10_0000, 0x10_0002]]


def test_five_levels_are_told_by_the_note(tmp_path: Path) -> None:
    note = NOTE.replace("l5_enabled)=0", "l5_enabled)=1").replace("init_top_pgt", "swapper_pg_dir")
    kcore = Kcore(elf(tmp_path / "kcore", AREAS, note))
    assert kcore.paging_levels == 5
    assert kcore.top_pgt == 0xFFFF_FFFF_82A1_0000


def test_memory_is_read_at_virtual_addresses(path: Path) -> None:
    kcore = Kcore(path)
    assert kcore.read(PAGE_OFFSET + 0x1000 + 255, 3) == b"\xff\x00\x01"
    assert kcore.read(PAGE_OFFSET + 0x1_0000_0000 + 8190, 2) == b"\2\2"
    assert kcore.read_u64(PAGE_OFFSET + 0x1001) == 0x0807060504030201
    assert kcore.read_u64(TEXT[0]) == int.from_bytes(b"texttext", "little")


def test_a_table_is_512_entries(path: Path) -> None:
    table = Kcore(path).table(PAGE_OFFSET + 0x10_0000)
    assert table.dtype == np.uint64 and len(table) == 512
    assert set(table.tolist()) == {0x0101_0101_0101_0101}


@pytest.mark.parametrize(
    "address", [PAGE_OFFSET, PAGE_OFFSET + 0x3000 - 4, PAGE_OFFSET + 0x5000, VMALLOC, PAGE_OFFSET + 0x1_0000_1FFC]
)
def test_memory_that_is_not_there_is_an_error(path: Path, address: int) -> None:
    with pytest.raises(HostError, match=f"cannot read 8 bytes at {address:#x}"):
        Kcore(path).read_u64(address)


def test_memory_that_the_kernel_gives_in_part_is_an_error(path: Path) -> None:
    kcore = Kcore(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(HostError, match="try again"):
        kcore.table(PAGE_OFFSET + 0x1_0000_1000)


def test_what_does_not_fit_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "kcore"
    with pytest.raises(HostError, match=r"CONFIG_PROC_KCORE is off.*record --only-pages") as missing:
        Kcore(path)
    assert "run as root" not in str(missing.value)
    with pytest.raises(HostError, match="run as root"):
        Kcore(tmp_path)  # it opens, and cannot be read
    path.write_bytes(b"hello, world")
    with pytest.raises(HostError, match="not an ELF core file"):
        Kcore(path)
    elf(path, [TEXT])
    with pytest.raises(HostError, match="names no RAM"):
        Kcore(path)
    elf(path, AREAS, NOTE.replace("init_top_pgt", "init_pgt"))
    with pytest.raises(HostError, match="lacks init_top_pgt"):
        Kcore(path)
    assert "\n" not in str(missing.value)


def test_memory_that_came_since_is_found_by_opening_anew(path: Path) -> None:
    kcore = Kcore(path)
    there = PAGE_OFFSET + 0x2_0000_0000
    elf(path, [*AREAS, (there, 0x2_0000_0000, b"\5" * 4096)])
    assert kcore.max_pfn == 0x10_0002
    assert kcore.read_u64(there) == 0x0505_0505_0505_0505, "a page table may lie there"
    assert kcore.max_pfn == 0x20_0001
    assert kcore.ranges[-1] == [0x20_0000, 0x20_0001]


def test_without_the_privilege_to_open_it_anew_it_goes_on_as_it_was(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kcore = Kcore(path)

    def refuse(*arguments: object) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "open", refuse)
    kcore.reopen()
    assert kcore.read_u64(PAGE_OFFSET + 0x1001) == 0x0807060504030201
    with pytest.raises(HostError, match="run as root"):
        Kcore(path)


def test_memory_that_went_is_gone_after_opening_anew(path: Path) -> None:
    kcore = Kcore(path)
    elf(path, AREAS[:-1])
    kcore.reopen()
    assert kcore.max_pfn == 0x101
    with pytest.raises(HostError, match="cannot read"):
        kcore.read_u64(PAGE_OFFSET + 0x1_0000_0000)
