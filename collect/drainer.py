"""Empties the rings in a thread of its own, so that nothing overflows while rows are made and disks are waited for."""

from __future__ import annotations

import threading

import numpy as np
import numpy.typing as npt

from collect.meanwhile import Meanwhile
from collect.program import PAGE_RINGS, Program
from collect.rows import Batch

__all__ = ["Drainer"]

IDLE_SECONDS, BUSY_SECONDS = 0.1, 0.002
"""A draining of empty rings costs a tenth of a millisecond, a full ring holds seconds' worth of all but a storm."""

BUSY_SHARE = 1 / 16
"""Of a ring: where it is fuller after a while, the next draining comes soon."""

QUEUE_BYTES = 64 << 20
"""Page events that may wait for their rows to be made; beyond, they wait in their rings, which count what they lose."""

Records = npt.NDArray[np.void]


class Drainer:
    """Drained records on their way from the rings to the rows. The thread runs from `start` to `stop`.

    Args:
        program: whose rings are drained.
        queue_bytes: bound of the page events that wait here. Changes and regions are rare, and always taken.
    """

    def __init__(self, program: Program, queue_bytes: int = QUEUE_BYTES) -> None:
        self._program = program
        self._queue_bytes = queue_bytes
        self._lock = threading.Lock()
        self._batch: Batch = {}
        self._page_bytes = 0
        self._meanwhile: Meanwhile | None = None
        self._stopping = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="directmap-drain")

    def start(self) -> None:
        """Begin to drain."""
        self._thread.start()

    @property
    def page_bytes(self) -> int:
        """Page events that wait for their rows to be made."""
        return self._page_bytes

    def take(self) -> Batch:
        """Everything drained since the last time, after a draining now; every ring has its part, be it empty."""
        if self._error:
            raise self._error
        with self._lock:
            self._page_bytes = 0  # what waits is taken now, so there is room
            self._drain()
            batch, self._batch, self._page_bytes = self._batch, {}, 0
        return batch

    def drain(self) -> None:
        """Drain now, beside the thread. Raises what the thread has met."""
        if self._error:
            raise self._error
        with self._lock:
            self._drain()

    def watch(self, meanwhile: Meanwhile | None) -> None:
        """From now on also tell `meanwhile` what is drained, the pages arrays that wait here first; None: nobody."""
        with self._lock:
            if meanwhile:
                for chunks in self._batch.get("array_ring", []):
                    meanwhile.add_chunks(chunks)
            self._meanwhile = meanwhile

    def stop(self) -> None:
        """End the thread; `take` gives what is left."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                with self._lock:
                    self._drain()
                self._stopping.wait(BUSY_SECONDS if self._busy() else IDLE_SECONDS)
        except BaseException as error:  # told by whoever drains next
            self._error = error

    def _drain(self) -> None:
        drained = self._program.drain(pages=self._page_bytes < self._queue_bytes)
        for name, records in drained.items():
            if len(records) or name not in self._batch:
                self._batch.setdefault(name, []).append(records)
        self._page_bytes += sum(drained[name].nbytes for name in (*PAGE_RINGS, "page_events") if name in drained)
        if self._meanwhile:
            self._meanwhile.add(drained)

    def _busy(self) -> bool:
        page_rings = self._program.page_rings
        if page_rings is not None and page_rings.used > BUSY_SHARE:
            return True
        return any(ring.used > ring.size * BUSY_SHARE for ring in self._program.rings.values())
