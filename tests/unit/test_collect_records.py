"""The records as Python reads them are the structs that the BPF programs write."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from collect import records

HEADER = (Path(records.__file__).parent / "bpf" / "records.h").read_text()
DTYPES = {
    "change_record": records.CHANGE,
    "split_record": records.SPLIT,
    "stack_record": records.STACK,
    "array_record": records.ARRAY,
    "region_record": records.REGION,
    "frames_record": records.FRAMES,
    "page_record": records.PAGE,
}
TYPES = """
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
typedef uint8_t u8; typedef uint16_t u16; typedef uint32_t u32; typedef uint64_t u64;
typedef int32_t s32; typedef int64_t s64;
"""
NO_COMPILER = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler (cc) here")
Layout = dict[str, tuple[int, int]]


def structs() -> dict[str, str]:
    """The text of each struct that goes through a ring."""
    return {
        name: text for text, name in re.findall(r"^(struct (\w+_record) \{.*?^\};)", HEADER, re.DOTALL | re.MULTILINE)
    }


def members(struct: str) -> list[str]:
    body = re.sub(r"//.*", "", struct[struct.index("{") + 1 : struct.rindex("}")])
    lists = [declaration.split(None, 1)[1] for declaration in body.split(";") if declaration.strip()]
    return [re.sub(r"\[.*", "", name).strip() for names in lists for name in names.split(",")]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Layout]:
    """Offset and size of every member of every struct, and the struct's own size under the name "", by the compiler."""
    found = structs()
    prints = []
    for name, text in found.items():
        prints.append(f'printf("{name} . 0 %zu\\n", sizeof(struct {name}));')
        prints += [
            f'printf("{name} {member} %zu %zu\\n", offsetof(struct {name}, {member}), '
            f"sizeof(((struct {name} *)0)->{member}));"
            for member in members(text)
        ]
    defines = "\n".join(re.findall(r"^#define (?:STACK_FRAMES|CHUNK) .*$", HEADER, re.MULTILINE))
    folder = tmp_path_factory.mktemp("records")
    (folder / "layout.c").write_text(
        TYPES + defines + "\n" + "\n".join(found.values()) + "\nint main(void) {" + "\n".join(prints) + "}\n"
    )
    subprocess.run(["cc", "-o", folder / "layout", folder / "layout.c"], check=True)
    layouts: dict[str, Layout] = {name: {} for name in found}
    for line in subprocess.run([folder / "layout"], check=True, capture_output=True, text=True).stdout.splitlines():
        struct, member, offset, size = line.split()
        layouts[struct][member.replace(".", "")] = (int(offset), int(size))
    return layouts


def test_every_struct_of_a_ring_has_its_dtype() -> None:
    assert set(structs()) == set(DTYPES)


@pytest.mark.parametrize("name", DTYPES)
def test_the_dtype_names_the_members_in_their_order(name: str) -> None:
    assert list(DTYPES[name].names or ()) == members(structs()[name])


@NO_COMPILER
@pytest.mark.parametrize("name", DTYPES)
def test_every_member_lies_where_the_compiler_puts_it(name: str, compiled: dict[str, Layout]) -> None:
    dtype = DTYPES[name]
    ours = {member: (offset, kind.itemsize) for member, (kind, offset) in (dtype.fields or {}).items()}  # type: ignore[misc]
    assert {"": (0, dtype.itemsize), **ours} == compiled[name]


def test_records_are_whole_words_as_a_strided_array_needs() -> None:
    assert all(dtype.itemsize % 8 == 0 for dtype in DTYPES.values())


def test_signs_are_those_of_the_structs() -> None:
    signed = {name: set(re.findall(r"\bs(?:32|64) (\w+);", text)) for name, text in structs().items() if "\ts" in text}
    for name, dtype in DTYPES.items():
        kinds = {member: dtype[member].base.kind for member in dtype.names or ()}
        assert {member for member, kind in kinds.items() if kind == "i"} == signed.get(name, set())


def test_array_lengths_are_those_of_the_header() -> None:
    defines = dict(re.findall(r"^#define (STACK_FRAMES|CHUNK) (\d+)", HEADER, re.MULTILINE))
    assert {name: int(value) for name, value in defines.items()} == {
        "STACK_FRAMES": records.STACK_FRAMES,
        "CHUNK": records.CHUNK,
    }
    assert records.STACK["ip"].shape == (records.STACK_FRAMES,)
    assert records.ARRAY["page"].shape == records.FRAMES["pte"].shape == (records.CHUNK,)


def test_each_class_of_loss_has_a_name() -> None:
    body = re.sub(r"//.*", "", HEADER[HEADER.index("enum loss {") :].split("};")[0].split("{")[1])
    classes = [name.strip() for name in body.split(",") if name.strip()]
    assert classes.pop() == "N_LOSSES"
    assert len(classes) == len(records.LOSSES) == len(set(records.LOSSES))
    # A word of each class stands in the name at its place, so that none was put in between.
    words = {"LOST_ENTRY": "exit_without_entry", "LOST_SCOPE": "regions_map", "LOST_ARRAY": "pages_array"}
    words |= {name: name.removeprefix("LOST_").lower() for name in classes if name not in words}
    for name, told in zip(classes, records.LOSSES, strict=True):
        assert words[name] in told, (name, told)


def test_text_of_the_programs_is_cut_at_its_first_zero() -> None:
    record = np.zeros(1, records.CHANGE)
    record["comm"] = b"modprobe"
    assert record["comm"].tolist() == [b"modprobe"]
