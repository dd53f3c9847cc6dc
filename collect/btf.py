"""What the kernel's BTF says of functions and structs: which have a prototype, and where members lie.

The format: Documentation/bpf/btf.rst and include/uapi/linux/btf.h.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_left
from pathlib import Path

from collect.errors import HostError

__all__ = ["Btf"]

MAGIC = 0xEB9F
PTR, STRUCT, UNION, FUNC, FUNC_PROTO = 2, 4, 5, 12, 13
MODIFIERS = (8, 9, 10, 11, 18)  # TYPEDEF, VOLATILE, CONST, RESTRICT, TYPE_TAG
# Words behind the three of `struct btf_type`, by kind: fixed, and per member (vlen).
TRAILING = {
    1: (1, 0),  # INT
    PTR: (0, 0),
    3: (3, 0),  # ARRAY
    STRUCT: (0, 3),
    UNION: (0, 3),
    6: (0, 2),  # ENUM
    7: (0, 0),  # FWD
    8: (0, 0),  # TYPEDEF
    9: (0, 0),  # VOLATILE
    10: (0, 0),  # CONST
    11: (0, 0),  # RESTRICT
    FUNC: (0, 0),
    FUNC_PROTO: (0, 2),
    14: (1, 0),  # VAR
    15: (0, 3),  # DATASEC
    16: (0, 0),  # FLOAT
    17: (1, 0),  # DECL_TAG (5.16)
    18: (0, 0),  # TYPE_TAG (5.17)
    19: (0, 3),  # ENUM64 (6.0)
}


class Btf:
    """The kernel's own BTF (`/sys/kernel/btf/vmlinux`). Raises HostError if missing or of an unknown form."""

    def __init__(self, path: Path = Path("/sys/kernel/btf/vmlinux")) -> None:
        try:
            raw = path.read_bytes()
        except OSError:
            raise HostError(
                f"{path}: missing; directmap needs a kernel with CONFIG_DEBUG_INFO_BTF (5.10 or later)"
            ) from None
        header = struct.Struct("<HBBIIIII")
        if len(raw) < header.size or int.from_bytes(raw[:2], "little") != MAGIC:
            raise HostError(f"{path}: not BTF (it begins with {raw[:2].hex() or 'nothing'})")
        _, _, _, header_bytes, type_off, type_len, str_off, str_len = header.unpack_from(raw)
        self._strings = raw[header_bytes + str_off : header_bytes + str_off + str_len]
        self._words = array("I", raw[header_bytes + type_off : header_bytes + type_off + type_len])
        self._starts = array("I", [0])  # word index of each type id; id 0 is void
        self._functions: dict[int, int] = {}  # string offset of the name -> word index
        self._structs: dict[int, int] = {}
        self._index(path)

    def _index(self, path: Path) -> None:
        words, starts, at, end = self._words, self._starts, 0, len(self._words)
        while at < end:
            info = words[at + 1]
            kind, vlen = info >> 24 & 31, info & 0xFFFF
            trailing = TRAILING.get(kind)
            if trailing is None:
                raise HostError(f"{path}: BTF kind {kind} is unknown to this directmap; install a newer one")
            starts.append(at)
            if kind == FUNC:
                self._functions.setdefault(words[at], at)
            elif kind == STRUCT:
                self._structs.setdefault(words[at], at)
            at += 3 + trailing[0] + trailing[1] * vlen
        self._by_name = {self._string(offset): at for offset, at in self._functions.items()}

    def _string(self, offset: int) -> str:
        return self._strings[offset : self._strings.index(b"\0", offset)].decode(errors="replace")

    def signature(self, function: str) -> tuple[int, ...] | None:
        """Bytes of each parameter of a function of the kernel proper, then of what it returns; None if unknown.

        A register holds eight bytes whatever the parameter's type: the rest of them mean nothing.
        """
        at = self._by_name.get(function)
        if at is None:
            return None
        proto = self._starts[self._words[at + 2]]
        n = self._words[proto + 1] & 0xFFFF
        types = [self._words[proto + 4 + 2 * i] for i in range(n)] + [self._words[proto + 2]]
        return tuple(self._bytes(kind) for kind in types)

    def function_id(self, function: str) -> int | None:
        """The type id of a function of the kernel proper; None if unknown."""
        at = self._by_name.get(function)
        return None if at is None else bisect_left(self._starts, at, lo=1)

    def parameters(self, function: str) -> tuple[str, ...] | None:
        """Names of a function's parameters, in order; None if the function is unknown."""
        at = self._by_name.get(function)
        if at is None:
            return None
        proto = self._starts[self._words[at + 2]]
        n = self._words[proto + 1] & 0xFFFF
        return tuple(self._string(self._words[proto + 3 + 2 * i]) for i in range(n))

    def _bytes(self, type_id: int) -> int:
        """Size of a type; 0 for void, 8 for pointers."""
        while type_id:
            at = self._starts[type_id]
            kind = self._words[at + 1] >> 24 & 31
            if kind in MODIFIERS:
                type_id = self._words[at + 2]
            else:
                return 8 if kind == PTR else self._words[at + 2]
        return 0

    def size(self, name: str) -> int | None:
        """Bytes of a struct, or None."""
        at = self._struct(name)
        return None if at is None else self._words[at + 2]

    def offset(self, name: str, member: str) -> int | None:
        """Byte offset of a member of a struct (also of one inside its anonymous structs and unions), or None."""
        at = self._struct(name)
        bits = None if at is None else self._member(at, member)
        return None if bits is None else bits // 8

    def _struct(self, name: str) -> int | None:
        wanted = b"\0" + name.encode() + b"\0"
        found = self._strings.find(wanted)
        while found >= 0:
            if found + 1 in self._structs:
                return self._structs[found + 1]
            found = self._strings.find(wanted, found + 1)
        return None

    def _member(self, at: int, wanted: str) -> int | None:
        words = self._words
        info = words[at + 1]
        for i in range(info & 0xFFFF):
            name, kind, offset = words[at + 3 + 3 * i : at + 6 + 3 * i]
            bits = offset & 0xFFFFFF if info >> 31 else offset
            if self._string(name) == wanted:
                return bits
            inner = self._starts[kind]
            if name == 0 and words[inner + 1] >> 24 & 31 in (STRUCT, UNION):
                found = self._member(inner, wanted)
                if found is not None:
                    return bits + found
        return None
