"""The table `counters` by counter: totals that the kernel and the recorder stated, once a second."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from collect.errors import TraceError
from collect.trace import Trace

__all__ = ["CounterSeries"]

_MAX_TS = 1 << 62

Series = tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64]]


class CounterSeries:
    """All counters of a trace, read once. Raises TraceError for times centuries after boot.

    Attributes:
        names: of the counters, sorted.
        readings: int64 nanoseconds, the moments of all readings, ascending.
    """

    def __init__(self, trace: Trace) -> None:
        table = trace.table("counters")
        ts = table["ts_ns"].to_numpy()
        if len(ts) and ts.max() >= _MAX_TS:
            raise TraceError(f"{trace.path}: table counters: a time stamp is centuries after boot; copy the trace anew")
        named = table["counter"].combine_chunks().dictionary_encode()
        self.names: list[str] = sorted(named.dictionary.to_pylist())
        codes = {name: code for code, name in enumerate(named.dictionary.to_pylist())}
        code = named.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        order = np.lexsort((ts, code))
        self._ts = ts[order].astype(np.int64)
        self._values = table["value"].to_numpy()[order]
        ends = np.cumsum(np.bincount(code, minlength=len(codes)))
        self._span = {name: (int(ends[i - 1]) if i else 0, int(ends[i])) for name, i in codes.items()}
        self.readings: npt.NDArray[np.int64] = np.unique(self._ts)

    def of(self, name: str) -> Series:
        """Times (int64 ns, ascending) and values of one counter by its whole name; empty where there is none such."""
        begin, end = self._span.get(name, (0, 0))
        return self._ts[begin:end], self._values[begin:end]

    def before(self, name: str, ts_ns: int) -> int | None:
        """Value at the last reading up to a moment, else at the first one after it; None where there is none."""
        ts, values = self.of(name)
        return int(values[max(int(np.searchsorted(ts, ts_ns, "right")) - 1, 0)]) if len(ts) else None

    def after(self, name: str, ts_ns: int) -> int | None:
        """Value at the first reading from a moment on, else at the last one before it; None where there is none."""
        ts, values = self.of(name)
        return int(values[min(int(np.searchsorted(ts, ts_ns, "left")), len(ts) - 1)]) if len(ts) else None

    def grown(self, name: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """When a total grew, and by how much: from, to (ns, the readings around it), n; what it fell by is left out.

        A total that is not 0 at its first reading grew before it: `from` is that reading too.
        """
        ts, values = self.of(name)
        signed = np.minimum(values, np.uint64(_MAX_TS)).astype(np.int64)
        step = np.diff(signed, prepend=0)
        at = np.flatnonzero(step > 0)
        return ts[np.maximum(at - 1, 0)], ts[at], step[at]
