"""When a snapshot is due while a recording runs: every so many seconds, and when one is asked for by SIGUSR1."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import time
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from collect.durable import JOURNAL
from collect.errors import HostError
from collect.manifest import MANIFEST
from collect.schema import Moment

__all__ = ["LAST_BEGAN", "Moments", "ask_for_snapshot"]

ASKED = signal.SIGUSR1

LAST_BEGAN = "last_snapshot_ns"
"""In the manifest's `recorder`: when the last snapshot that was taken while recording began; in the journal as soon as it
is taken."""

LOOK_SECONDS = 0.05


class Moments:
    """Catches requests while it is entered, and says when a snapshot is due.

    A request is met by the next snapshot that begins after it: several that come while one is read are met by one.

    Args:
        every: seconds from the beginning of one periodic snapshot to that of the next; None: only when asked.
            One that takes longer than that is followed by the next at once; those missed are not made up for.
    """

    def __init__(self, every: float | None = None) -> None:
        self._every = every
        self._asked = False
        self._next: float | None = None

    def __enter__(self) -> Moments:
        self._before = signal.signal(ASKED, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.signal(ASKED, self._before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    def begin(self, now: float) -> None:
        """The recording begins: the first periodic snapshot is due a period from now."""
        self._next = now + self._every if self._every is not None else None

    def due(self, now: float) -> Moment | None:
        """The kind of snapshot to take now; it counts as taken."""
        if self._asked:
            self._asked = False
            return Moment.REQUEST
        if self._next is not None and self._every is not None and now >= self._next:
            self._next += self._every
            if self._next <= now:
                self._next = now + self._every
            return Moment.PERIODIC
        return None


def ask_for_snapshot(directory: Path, *, seconds: float = 0.0) -> int:
    """Have the recorder that writes to `directory` take a snapshot; returns its pid.

    Args:
        seconds: wait so long until it has begun and ended after this call; 0: only ask.
    Raises:
        HostError: nobody records there, or nothing that could take one, or the time is over.
    """
    journal = directory / JOURNAL
    asked_ns = time.monotonic_ns()  # the recorder's clock: it is on this machine
    try:
        with (journal / "lock").open("rb") as file:
            if _free(file.fileno()):
                raise HostError(
                    f"{directory}: no recorder writes here any more; `directmap-collect recover {directory}`"
                )
        manifest = _known(journal)
        pid = manifest["recorder"]["pid"]
        if manifest["sampling"]["only_pages"]:
            raise HostError(f"{directory}: recorded with --only-pages, which reads no page tables")
        if not isinstance(pid, int) or pid <= 1 or not _catches(pid):
            raise HostError(
                f"{journal}: process {str(pid)[:20]} is no recorder that takes requests; is it this machine's?"
            )
        os.kill(pid, ASKED)
    except (FileNotFoundError, NotADirectoryError):
        raise HostError(f"{directory}: nobody records into it; give the -o of a recording that runs") from None
    except (KeyError, TypeError, ValueError):
        raise HostError(f"{journal / MANIFEST}: names no recorder; give the -o of a recording that runs") from None
    except ProcessLookupError:
        raise HostError(f"{directory}: its recorder has ended") from None
    except PermissionError:
        raise HostError(f"{directory}: its recorder is another user's; ask as that user, or with sudo") from None
    give_up = time.monotonic() + seconds
    while seconds:
        try:
            if _known(journal)["recorder"].get(LAST_BEGAN, 0) > asked_ns:
                break
        except FileNotFoundError:
            raise HostError(
                f"{directory}: the recording has ended meanwhile; its end snapshot is the one that came"
            ) from None
        if time.monotonic() > give_up:
            raise HostError(f"{directory}: no snapshot came within {seconds:.0f} s; it is still asked for")
        time.sleep(LOOK_SECONDS)
    return pid


def _known(journal: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((journal / MANIFEST).read_text(encoding="utf-8"))
    return manifest


def _free(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _catches(pid: int) -> bool:
    """Whether a process has a handler for the signal, which ends whoever has none."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
    caught = next((line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")), "0")
    return bool(int(caught, 16) >> (ASKED - 1) & 1)
