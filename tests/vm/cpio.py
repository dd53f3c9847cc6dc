"""Writes the archives a kernel unpacks as its first root: cpio, "newc" format."""

from __future__ import annotations

import stat


class Archive:
    """An initramfs in the making. Archives may simply be put one behind the other."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._inode = 0
        self._folders: set[str] = set()

    def _entry(self, name: str, mode: int, data: bytes) -> None:
        self._inode += 1
        path = name.encode() + b"\0"
        fields = (self._inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(path), 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields)
        for part in (header + path, data):
            self._parts.append(part + b"\0" * (-len(part) % 4))

    def folder(self, name: str) -> None:
        """Add a directory and those above it, once."""
        above = name.rpartition("/")[0]
        if above:
            self.folder(above)
        if name not in self._folders:
            self._folders.add(name)
            self._entry(name, stat.S_IFDIR | 0o755, b"")

    def file(self, name: str, data: bytes, mode: int = 0o644) -> None:
        """Add a regular file, and its directory first: the kernel does not make that by itself."""
        if "/" in name:
            self.folder(name.rpartition("/")[0])
        self._entry(name, stat.S_IFREG | mode, data)

    def bytes(self) -> bytes:
        """The finished archive."""
        self._entry("TRAILER!!!", 0, b"")
        whole = b"".join(self._parts)
        return whole + b"\0" * (-len(whole) % 512)
