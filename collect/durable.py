"""Files that are whole or not there, survive a power cut, and are readable by nobody but whoever called sudo."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from collect.errors import HostError
from collect.manifest import MANIFEST

__all__ = [
    "JOURNAL",
    "claim",
    "give_to_sudo_user",
    "lock",
    "open_private",
    "sync_directory",
    "whole_file",
    "write_json",
]

JOURNAL = "journal"


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write that appears under its name when everything in it is on the disk, or never."""
    temporary = path.with_suffix(".tmp")
    try:
        with open_private(temporary) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        # Its room is needed where a disk is full; a link in its place is not ours to remove.
        if temporary.is_file() and not temporary.is_symlink():
            temporary.unlink()
        raise
    temporary.rename(path)
    sync_directory(path.parent)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON file whole or not at all, readable by its owner only."""
    with whole_file(path) as file:
        file.write((json.dumps(value, indent=1) + "\n").encode())


def open_private(path: Path) -> BinaryIO:
    """A new file for writing with mode 0600, of whoever called sudo; a link in its place is not followed."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(path, flags, 0o600)
    give_to_sudo_user(fd)
    return os.fdopen(fd, "wb")


def give_to_sudo_user(path: Path | int) -> None:
    """Under sudo, let a file or an open descriptor belong to whoever called it."""
    if os.geteuid() == 0 and "SUDO_UID" in os.environ:
        uid, gid = int(os.environ["SUDO_UID"]), int(os.environ.get("SUDO_GID", "-1"))
        os.chown(path, uid, gid, follow_symlinks=isinstance(path, int))


def sync_directory(directory: Path) -> None:
    """Make new names and renames in a directory survive a power cut."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def claim(directory: Path, *, force: bool) -> BinaryIO:
    """Make `directory` ours, with an empty journal in it; returns its lock, held until it is closed.

    Raises HostError if it holds anything, unless `force` and it is a trace of ours, or if another recorder has it.
    """
    missing = [folder for folder in (directory, *directory.parents) if not folder.exists()]
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for folder in missing:
        give_to_sudo_user(folder)
    journal = directory / JOURNAL
    held = sorted(entry.name for entry in directory.iterdir())
    ours = [name for name in held if name in (MANIFEST, JOURNAL) or name.endswith((".parquet", ".tmp"))]
    if len(ours) < len(held):
        alien = next(name for name in held if name not in ours)
        raise HostError(f"{directory}: not empty and not a trace (holds {alien!r}); choose another -o")
    if held and journal.is_dir():
        lock(journal).close()  # refuses while another recorder writes here
    if held and not force:
        raise HostError(f"{directory}: holds a trace already; choose another -o, or --force to replace it")
    for name in held:
        path = directory / name
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    try:
        journal.mkdir(mode=0o700)
    except FileExistsError:
        raise _in_use(directory) from None
    give_to_sudo_user(journal)
    sync_directory(directory)
    return lock(journal)


def lock(journal: Path) -> BinaryIO:
    """Take a journal for this process. Raises HostError if another one has it."""
    path = journal / "lock"
    try:
        file = open_private(path)
    except FileNotFoundError:  # replaced since we looked, by another recorder
        raise _in_use(journal.parent) from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(file.fileno()).st_nlink == 0:
            raise BlockingIOError
    except OSError:
        file.close()
        raise _in_use(journal.parent) from None
    return file


def _in_use(directory: Path) -> HostError:
    return HostError(f"{directory}: another recorder writes here; wait for it or choose another -o")
