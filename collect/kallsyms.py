"""The kernel's symbols: addresses for the probes, names for the stacks. From /proc/kallsyms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from collect.errors import HostError

__all__ = ["Kallsyms"]

PAGE_BYTES = 4096


DIGITS = 16
_VALUE = np.zeros(256, np.uint64)
for _digit in range(16):
    _VALUE[ord(f"{_digit:x}")] = _digit


class Kallsyms:
    """A reading of /proc/kallsyms, sorted by address. `reread` follows modules and BPF programs that come and go.

    It is kept as text, of which a hundred thousand Python objects would be twenty times as large. Lines are ADDRESS TYPE
    NAME, and for symbols of modules a tab and [MODULE] (kernel/kallsyms.c, s_show).

    Raises HostError where the kernel hides the addresses (kptr_restrict, or no CAP_SYSLOG).
    """

    def __init__(self, path: Path = Path("/proc/kallsyms")) -> None:
        self._path = path
        self.reread()

    def reread(self) -> None:
        """Read the table again."""
        try:
            text = self._path.read_bytes()
        except OSError as error:
            raise HostError(f"{self._path}: {error.strerror}; run as root on a kernel with CONFIG_KALLSYMS") from None
        raw = np.frombuffer(text, np.uint8)
        ends = np.flatnonzero(raw == ord("\n"))
        starts = np.concatenate([[0], ends + 1])[: len(ends)]
        addresses = np.zeros(len(ends), np.uint64)
        for i in range(DIGITS):
            addresses = addresses << np.uint64(4) | _VALUE[raw[starts + i]]
        if not addresses.any():
            raise HostError(
                f"{self._path}: all addresses are hidden; run as root, or `sysctl kernel.kptr_restrict=1` with CAP_SYSLOG"
            )
        order = np.argsort(addresses, kind="stable")
        self._text_bytes, self._addresses = text, addresses[order]
        self._starts, self._ends = starts[order].astype(np.uint32), ends[order].astype(np.uint32)
        self._text = (self.address("_stext") or 0, self.address("_etext") or 0)

    def address(self, name: str) -> int | None:
        """Address of a symbol of the kernel proper (not of a module), or None."""
        at = self._text_bytes.find(f" {name}\n".encode())
        if at < 0:
            return None
        start = self._text_bytes.rfind(b"\n", 0, at) + 1
        return int(self._text_bytes[start : start + DIGITS], 16)

    def extent(self, name: str) -> tuple[int, int] | None:
        """Where a symbol of the kernel proper begins and the next one does, or None."""
        begin = self.address(name)
        if begin is None:
            return None
        after = int(np.searchsorted(self._addresses, np.uint64(begin), side="right"))
        return begin, int(self._addresses[after]) if after < len(self._addresses) else begin + PAGE_BYTES

    def __contains__(self, name: str) -> bool:
        return self.address(name) is not None

    def is_core_text(self, addresses: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
        """Which addresses lie in the kernel's own text, which never changes."""
        return (addresses >= np.uint64(self._text[0])) & (addresses < np.uint64(self._text[1]))

    def names(self, addresses: npt.NDArray[np.uint64]) -> list[str]:
        """`symbol+0xoffset`, with ` [module]` behind it outside the kernel proper; `?` where nothing is near."""
        at = np.searchsorted(self._addresses, addresses, side="right").astype(np.int64) - 1
        return [self._name(int(i), int(address)) for i, address in zip(at.tolist(), addresses.tolist(), strict=True)]

    def _name(self, i: int, address: int) -> str:
        if i < 0:
            return "?"
        offset = address - int(self._addresses[i])
        if offset > 1 << 16:  # hardly a function is that long: the symbol's module or program is gone
            return "?"
        line = self._text_bytes[int(self._starts[i]) : int(self._ends[i])]
        name, _, module = line[DIGITS + 3 :].decode(errors="replace").partition("\t")
        return f"{name}+{offset:#x}{f' {module.strip()}' if module else ''}"
