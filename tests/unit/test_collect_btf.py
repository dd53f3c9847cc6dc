"""Types of the kernel, from a blob of BTF written by hand (Documentation/bpf/btf.rst) and from the running kernel's."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from collect.btf import Btf
from collect.errors import HostError

INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF = 1, 2, 3, 4, 5, 6, 7, 8
VOLATILE, CONST, RESTRICT, FUNC, FUNC_PROTO, VAR, DATASEC, FLOAT, DECL_TAG, TYPE_TAG, ENUM64 = range(9, 20)
REAL = Path("/sys/kernel/btf/vmlinux")


class Blob:
    """BTF under construction. `add` returns the id of the new type; 0 is void."""

    def __init__(self) -> None:
        self.strings = b"\0"
        self.types = b""
        self.n_types = 0

    def name(self, text: str) -> int:
        if not text:
            return 0
        self.strings += text.encode() + b"\0"
        return len(self.strings) - len(text) - 1

    def add(
        self,
        kind: int,
        name: str = "",
        *,
        size_or_type: int = 0,
        vlen: int = 0,
        flag: bool = False,
        words: tuple[int, ...] = (),
    ) -> int:
        self.types += struct.pack("<III", self.name(name), flag << 31 | kind << 24 | vlen, size_or_type)
        self.types += struct.pack(f"<{len(words)}I", *words)
        self.n_types += 1
        return self.n_types

    def members(self, kind: int, name: str, size: int, *members: tuple[str, int, int], flag: bool = False) -> int:
        """A struct or union of (name, type, bit offset) members."""
        words = tuple(word for text, kind_id, bits in members for word in (self.name(text), kind_id, bits))
        return self.add(kind, name, size_or_type=size, vlen=len(members), flag=flag, words=words)

    def function(self, name: str, n_params: int) -> None:
        """A function that takes and returns numbers of type 1, `int`."""
        self.prototype(name, *[1] * n_params, returns=1)

    def prototype(self, name: str, *params: int, returns: int, names: tuple[str, ...] = ()) -> None:
        texts = [self.name(text) for text in names] or [0] * len(params)
        words = tuple(word for pair in zip(texts, params, strict=True) for word in pair)
        proto = self.add(FUNC_PROTO, size_or_type=returns, vlen=len(params), words=words)
        self.add(FUNC, name, size_or_type=proto, vlen=1)

    def write(self, path: Path, *, magic: int = 0xEB9F, header_bytes: int = 24) -> Path:
        header = struct.pack(
            "<HBBIIIII", magic, 1, 0, header_bytes, 0, len(self.types), len(self.types), len(self.strings)
        )
        path.write_bytes(header.ljust(header_bytes, b"\0") + self.types + self.strings)
        return path


@pytest.fixture
def blob() -> Blob:
    """Type 1 is `int`."""
    made = Blob()
    assert made.add(INT, "int", size_or_type=4, words=(32,)) == 1
    return made


def n_params(btf: Btf, function: str) -> int:
    signature = btf.signature(function)
    assert signature is not None
    return len(signature) - 1


def test_functions_tell_their_parameters(blob: Blob, tmp_path: Path) -> None:
    blob.function("none", 0)
    blob.function("three", 3)
    blob.function("one", 1)
    btf = Btf(blob.write(tmp_path / "btf"))
    assert [n_params(btf, name) for name in ("none", "three", "one")] == [0, 3, 1]
    assert btf.signature("missing") is None


def test_a_function_has_the_number_of_its_type(blob: Blob, tmp_path: Path) -> None:
    blob.function("first", 2)
    blob.function("second", 0)
    number = blob.add(FUNC, "third", size_or_type=1, vlen=1)
    blob.function("fourth", 1)
    btf = Btf(blob.write(tmp_path / "btf"))
    assert btf.function_id("third") == number
    assert btf.function_id("missing") is None


def test_parameters_have_their_names(blob: Blob, tmp_path: Path) -> None:
    blob.prototype("arch_remove_memory", 1, 1, 1, returns=0, names=("nid", "start", "size"))
    blob.function("nameless", 2)
    btf = Btf(blob.write(tmp_path / "btf"))
    assert btf.parameters("arch_remove_memory") == ("nid", "start", "size")
    assert btf.parameters("nameless") == ("", "")
    assert btf.parameters("missing") is None


def test_a_signature_is_the_width_of_each_parameter_and_of_what_is_returned(blob: Blob, tmp_path: Path) -> None:
    byte = blob.add(INT, "unsigned char", size_or_type=1, words=(8,))
    long = blob.add(INT, "unsigned long", size_or_type=8, words=(64,))
    constant = blob.add(CONST, size_or_type=byte)
    size_t = blob.add(TYPEDEF, "size_t", size_or_type=blob.add(TYPEDEF, "__kernel_size_t", size_or_type=long))
    flag = blob.add(TYPEDEF, "flag", size_or_type=blob.add(VOLATILE, size_or_type=constant))
    pointer = blob.add(PTR, size_or_type=constant)
    kind = blob.add(ENUM, "kind", size_or_type=4, vlen=1, words=(0, 1))
    blob.prototype("mixed", 1, size_t, flag, pointer, kind, returns=0)
    blob.prototype("int_of_pointer", pointer, returns=1)
    blob.prototype("pointer_of_nothing", returns=blob.add(PTR))
    btf = Btf(blob.write(tmp_path / "btf"))
    assert btf.signature("mixed") == (4, 8, 1, 8, 4, 0)
    assert btf.signature("int_of_pointer") == (8, 4)
    assert btf.signature("pointer_of_nothing") == (8,)


def test_members_lie_at_byte_offsets(blob: Blob, tmp_path: Path) -> None:
    blob.members(STRUCT, "point", 12, ("x", 1, 0), ("y", 1, 32), ("z", 1, 64))
    btf = Btf(blob.write(tmp_path / "btf"))
    assert btf.size("point") == 12
    assert [btf.offset("point", name) for name in ("x", "y", "z", "w")] == [0, 4, 8, None]
    assert btf.size("poin") is None
    assert btf.offset("oint", "x") is None


def test_a_struct_is_told_from_other_things_of_its_name(blob: Blob, tmp_path: Path) -> None:
    blob.add(TYPEDEF, "page", size_or_type=1)
    blob.members(UNION, "page", 8, ("other", 1, 0))
    blob.add(FWD, "page")
    blob.members(STRUCT, "page", 64, ("flags", 1, 0))
    btf = Btf(blob.write(tmp_path / "btf"))
    assert btf.size("page") == 64
    assert btf.offset("page", "other") is None


def test_members_of_anonymous_structs_and_unions_count_from_the_outside(blob: Blob, tmp_path: Path) -> None:
    inner = blob.members(STRUCT, "", 8, ("a", 1, 0), ("b", 1, 32))
    both = blob.members(UNION, "", 8, ("whole", 1, 0), ("", inner, 0))
    named = blob.members(STRUCT, "named", 4, ("hidden", 1, 0))
    blob.members(STRUCT, "outer", 24, ("first", 1, 0), ("", both, 64), ("part", named, 128))
    btf = Btf(blob.write(tmp_path / "btf"))
    assert [btf.offset("outer", name) for name in ("first", "whole", "a", "b", "part")] == [0, 8, 8, 12, 16]
    assert btf.offset("outer", "hidden") is None, "it is outer.part.hidden"


def test_a_struct_with_bitfields_packs_offsets_and_widths(blob: Blob, tmp_path: Path) -> None:
    def bits(offset: int, width: int) -> int:
        return width << 24 | offset

    blob.members(
        STRUCT, "cpa", 24, ("vaddr", 1, bits(0, 0)), ("force_split", 1, bits(128, 1)), ("force_static", 1, bits(129, 1)),
        ("pages", 1, bits(160, 0)), flag=True,
    )  # fmt: skip
    btf = Btf(blob.write(tmp_path / "btf"))
    assert [btf.offset("cpa", name) for name in ("vaddr", "force_split", "force_static", "pages")] == [0, 16, 16, 20]


def test_every_kind_is_passed_over_by_its_own_length(blob: Blob, tmp_path: Path) -> None:
    fillers = {
        PTR: (0, ()),
        ARRAY: (0, (1, 1, 9)),
        ENUM: (2, (0, 1, 0, 2)),
        FWD: (0, ()),
        TYPEDEF: (0, ()),
        VOLATILE: (0, ()),
        CONST: (0, ()),
        RESTRICT: (0, ()),
        VAR: (0, (1,)),
        DATASEC: (2, (1, 0, 4, 1, 4, 4)),
        FLOAT: (0, ()),
        DECL_TAG: (0, (0xFFFFFFFF,)),
        TYPE_TAG: (0, ()),
        ENUM64: (1, (0, 1, 0)),
    }
    for kind, (vlen, words) in fillers.items():
        blob.add(kind, f"kind{kind}", vlen=vlen, words=words, size_or_type=1)
        blob.function(f"after{kind}", kind)
    btf = Btf(blob.write(tmp_path / "btf"))
    assert [n_params(btf, f"after{kind}") for kind in fillers] == list(fillers)


def test_a_longer_header_is_passed_over(blob: Blob, tmp_path: Path) -> None:
    blob.function("two", 2)
    assert Btf(blob.write(tmp_path / "btf", header_bytes=32)).signature("two") == (4, 4, 4)


def test_an_unknown_kind_is_an_error_and_no_guess(blob: Blob, tmp_path: Path) -> None:
    blob.add(21, "new", words=(1, 2))
    blob.function("behind", 2)
    with pytest.raises(HostError, match="BTF kind 21 is unknown"):
        Btf(blob.write(tmp_path / "btf"))


def test_what_is_not_btf_is_refused(blob: Blob, tmp_path: Path) -> None:
    with pytest.raises(HostError, match="not BTF"):
        Btf(blob.write(tmp_path / "btf", magic=0x1234))
    with pytest.raises(HostError, match="CONFIG_DEBUG_INFO_BTF"):
        Btf(tmp_path / "missing")


@pytest.mark.parametrize("n_bytes", [0, 10, 23])
def test_a_cut_header_is_refused(n_bytes: int, blob: Blob, tmp_path: Path) -> None:
    path = blob.write(tmp_path / "btf")
    path.write_bytes(path.read_bytes()[:n_bytes])
    with pytest.raises(HostError, match="not BTF"):
        Btf(path)


@pytest.mark.skipif(not REAL.exists(), reason=f"{REAL}: not there on this kernel")
def test_the_running_kernels_types_are_read() -> None:
    btf = Btf()
    assert btf.signature("kfree") == (8, 0), "void kfree(const void *)"
    assert btf.signature("vfs_read") == (8, 8, 8, 8, 8), "file, buffer, count, position; bytes read"
    assert btf.signature("no_such_function") is None
    assert btf.offset("list_head", "prev") == btf.size("list_head") // 2 == 8  # type: ignore[operator]
    assert btf.offset("page", "flags") == 0
    assert btf.size("page") in (56, 64)
    assert btf.offset("page", "_refcount") is not None
