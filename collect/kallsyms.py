"""The kernel's symbols: addresses for the probes, names for the stacks. From /proc/kallsyms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from collect.errors import HostError

__all__ = ["Kallsyms"]

PAGE_BYTES = 4096


class Kallsyms:
    """A reading of /proc/kallsyms, sorted by address. `reread` follows modules and BPF programs that come and go.

    Raises HostError where the kernel hides the addresses (kptr_restrict, or no CAP_SYSLOG).
    """

    def __init__(self, path: Path = Path("/proc/kallsyms")) -> None:
        self._path = path
        self._core: dict[str, int] = {}
        self.reread()

    def reread(self) -> None:
        """Read the table again."""
        try:
            lines = self._path.read_bytes().splitlines()
        except OSError as error:
            raise HostError(f"{self._path}: {error.strerror}; run as root on a kernel with CONFIG_KALLSYMS") from None
        rows = [line.split(None, 3) for line in lines]
        addresses = np.array([int(row[0], 16) for row in rows], dtype=np.uint64)
        if not addresses.any():
            raise HostError(
                f"{self._path}: all addresses are hidden; run as root, or `sysctl kernel.kptr_restrict=1` with CAP_SYSLOG"
            )
        order = np.argsort(addresses, kind="stable")
        self._addresses = addresses[order]
        self._rows = [rows[i] for i in order.tolist()]
        self._core = {row[2].decode(errors="replace"): int(row[0], 16) for row in reversed(rows) if len(row) == 3}
        self._text = (self._core.get("_stext", 0), self._core.get("_etext", 0))

    def address(self, name: str) -> int | None:
        """Address of a symbol of the kernel proper (not of a module), or None."""
        return self._core.get(name)

    def extent(self, name: str) -> tuple[int, int] | None:
        """Where a symbol of the kernel proper begins and the next one does, or None."""
        begin = self._core.get(name)
        if begin is None:
            return None
        after = int(np.searchsorted(self._addresses, np.uint64(begin), side="right"))
        return begin, int(self._addresses[after]) if after < len(self._addresses) else begin + PAGE_BYTES

    def __contains__(self, name: str) -> bool:
        return name in self._core

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
        row, offset = self._rows[i], address - int(self._addresses[i])
        if offset > 1 << 16:  # hardly a function is that long: the symbol's module or program is gone
            return "?"
        module = f" {row[3].decode(errors='replace')}" if len(row) == 4 else ""
        return f"{row[2].decode(errors='replace')}+{offset:#x}{module}"
