"""Attribute words in words: the bits of a 4K entry, and what kind of caching they ask for."""

from __future__ import annotations

from collections.abc import Iterable

from collect.schema import Pte

__all__ = ["attribute_word", "attribute_words"]

_CACHE = int(Pte.PWT | Pte.PCD | Pte.PAT)

_CACHE_NAMES = {
    0: "WB",
    int(Pte.PWT): "WC",
    int(Pte.PCD): "UC-",
    int(Pte.PWT | Pte.PCD): "UC",
    int(Pte.PWT | Pte.PAT): "WP",
    int(Pte.PWT | Pte.PCD | Pte.PAT): "WT",
}
"""As the kernel sets the PAT up (arch/x86/mm/pat/memtype.c, pat_bp_init) wherever the CPU has one."""

_NAMED = {Pte.P: "P", Pte.RW: "RW", Pte.USER: "USER", Pte.A: "A", Pte.D: "D", Pte.G: "G", Pte.NX: "NX"}
_KNOWN = _CACHE | sum(int(bit) for bit in _NAMED)


def attribute_word(attrs: int) -> str:
    """`P RW G NX` and the like; caching only where it is not write-back, bits that have no name here in hex."""
    words = [name for bit, name in _NAMED.items() if attrs & int(bit)]
    if attrs & _CACHE:
        words.append(_CACHE_NAMES.get(attrs & _CACHE, f"cache {attrs & _CACHE:#x}"))
    if attrs & ~_KNOWN:
        words.append(f"+{attrs & ~_KNOWN:#x}")
    return " ".join(words) or "-"


def attribute_words(attrs: Iterable[int]) -> list[str]:
    """The same for many, each different word read once."""
    known: dict[int, str] = {}
    return [known[word] if word in known else known.setdefault(word, attribute_word(word)) for word in attrs]
