"""Where everything that takes long to build is kept, and how it gets there whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path


def root() -> Path:
    """The cache directory, from the environment or by the XDG convention; created when missing."""
    if own := os.environ.get("DIRECTMAP_LAB_CACHE"):
        path = Path(own)
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        path = Path(base) / "directmap-lab"
    path.mkdir(parents=True, exist_ok=True)
    return path.resolve()


def say(text: str) -> None:
    """A line of progress: always on stderr, because stdout belongs to the guest's command."""
    print(f"lab: {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def lock(name: str) -> Iterator[None]:
    """Hold the named lock of the cache, so that two commands never build the same thing at once."""
    locks = root() / "locks"
    locks.mkdir(exist_ok=True)
    with (locks / name).open("w", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another command is building {name}; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def building(target: Path) -> Iterator[Path]:
    """A fresh directory beside `target`, renamed to `target` when the block ends without an error.

    An interrupted build leaves at most a directory named ``.building-*``, never a half `target`;
    the next build of the same target removes what an earlier one was killed over.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".building-{target.name}-"
    for stale in target.parent.glob(f"{prefix}*"):
        shutil.rmtree(stale, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    try:
        yield work
        if target.exists():
            shutil.rmtree(target)
        work.chmod(0o755)
        work.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
