"""A trace decoded once, for every policy."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from analyze.directmap import DirectMap, Runs
from analyze.reconstruct import Rebuild, rebuild
from analyze.rules import Window
from analyze.verify import Verification, verify
from collect.errors import TraceError
from collect.schema import Level, Pte
from collect.trace import Trace
from replay.calls import Calls, read_calls, text_pages
from replay.host import read_host, whole_ram
from replay.occupied import never_free
from replay.placement import Host
from replay.pressure import Pressure
from replay.requests import NEVER, Requests, read_requests
from replay.steps import CHANGE, SPLIT_LEFT, Steps, own, read_steps

__all__ = ["GRID_POINTS", "Stream", "as_asked", "decode"]

Int64 = npt.NDArray[np.int64]

GRID_POINTS = 481
_ORDINARY = np.uint64(int(Pte.P | Pte.RW))
_PRESENT = np.uint64(int(Pte.P))


@dataclass(frozen=True)
class Stream:
    """What `replay.engine.walk` runs over.

    Attributes:
        requests: those made after the start snapshot; older ones stay where they are.
        n_requests_before: how many were made while the start snapshot was read, and are left out.
        start: rows of the start snapshot.
        window: per real 2M frame, the times between which changes count.
        whole_ram: per real 2M frame, whether all of it is RAM.
        grid_ns: moments at which curves are sampled; the first is the start, the last the end.
        rebuilt: the analyzer's reconstruction, which `none` must equal.
    """

    trace: Trace
    requests: Requests
    n_requests_before: int
    host: Host
    steps: Steps
    calls: Calls
    start: Runs
    window: Window
    whole_ram: npt.NDArray[np.bool_]
    grid_ns: Int64
    rebuilt: Rebuild

    @cached_property
    def may_host(self) -> npt.NDArray[np.bool_]:
        """Per real 2M frame, whether a free block of 2 MiB may have lain there at some moment: all of it is RAM, and page
        events do not prove that something else was there all the time. Raises TraceError."""
        return self.whole_ram & ~never_free(self.trace)[: len(self.whole_ram)]

    @property
    def n_put_back(self) -> int:
        """Steps that put large entries back or made new memory: after them a leaf may split again."""
        return int(np.count_nonzero((self.steps.op != CHANGE) & (self.steps.op != SPLIT_LEFT)))

    @cached_property
    def verified(self) -> Verification:
        """What the analyzer can prove of the trace."""
        return verify(self.trace, self.rebuilt)

    def start_map(self, n_symbolic: int = 0) -> DirectMap:
        """The direct map at the start, with room for symbolic blocks behind it."""
        memory = self.trace.manifest["memory"]
        rodata = memory.get("rodata")
        m = DirectMap(
            memory["max_pfn"],
            rodata=tuple(rodata) if rodata else None,
            n_symbolic=n_symbolic,
            symbolic_attrs=self._ordinary_attrs(),
        )
        m.load(*self.start)
        return m

    def _ordinary_attrs(self) -> int:
        """Attributes of most memory that large entries map."""
        large = (self.start.level >= Level.M2) & (self.start.attrs & _ORDINARY == _ORDINARY)
        if not large.any():
            return int(_ORDINARY)
        words, inverse = np.unique(self.start.attrs[large], return_inverse=True)
        pages = self.start.n_leaves[large] << np.where(self.start.level[large] == Level.G1, 18, 9)
        return int(words[np.bincount(inverse.reshape(-1), weights=pages).argmax()])


def decode(trace: Trace, pressure: Pressure | None = None, rebuilt: Rebuild | None = None) -> Stream:
    """Decode a trace for any number of policies; `rebuilt` where it was rebuilt already. Raises TraceError."""
    try:
        return _decoded(trace, pressure, rebuilt or rebuild(trace))
    except TraceError as error:
        known = str(trace.path) in str(error)
        raise TraceError(str(error) if known else f"{trace.path}: {error}") from None


def _decoded(trace: Trace, pressure: Pressure | None, rebuilt: Rebuild) -> Stream:
    steps = read_steps(rebuilt.changes, rebuilt.window, rebuilt.observed)
    start_ns = trace.manifest["ts_start_ns"]
    end_ns = max(trace.manifest["ts_end_ns"], start_ns + 1)
    stream = Stream(
        trace=trace,
        requests=read_requests(trace),
        n_requests_before=0,
        host=read_host(trace, rebuilt.start.map, pressure),
        steps=steps,
        calls=Calls.none(),
        start=rebuilt.start.map.runs(),
        window=rebuilt.window,
        whole_ram=whole_ram(trace.manifest["memory"]["ranges"], len(rebuilt.window.lo)),
        grid_ns=start_ns + np.linspace(0, end_ns - start_ns, GRID_POINTS).astype(np.int64),
        rebuilt=rebuilt,
    )
    return _joined(stream, stream.requests)


def as_asked(stream: Stream) -> Stream:
    """The same trace with the requests as they were asked for (see `replay.requests`). Raises TraceError."""
    return _joined(stream, read_requests(stream.trace, as_asked=True))


def _joined(stream: Stream, requests: Requests) -> Stream:
    """The stream with these requests, and which changes and calls are theirs."""
    n_all = len(requests)
    changes = stream.rebuilt.changes
    exact_from = int(stream.window.lo.max()) if len(stream.window.lo) else 0
    requests = requests.select(requests.alloc_ns > exact_from)
    steps = own(stream.steps, requests)
    requests = _lifetimes(requests, steps)
    early = requests.begin_ns <= exact_from
    if early.any():
        requests = requests.select(~early)
        steps = own(steps, requests)
    requests = replace(requests, text=text_pages(changes, requests), reset=_reset_pages(requests, steps))
    grid = stream.grid_ns
    return replace(
        stream,
        requests=requests,
        n_requests_before=n_all - len(requests),
        steps=steps,
        calls=read_calls(changes, steps, requests, int(grid[0]), int(grid[-1])),
    )


def _reset_pages(requests: Requests, steps: Steps) -> npt.NDArray[np.bool_]:
    """[pages] whether one step of its own took the page out of the direct map and another put it back."""
    step = np.repeat(np.arange(len(steps)), np.diff(steps.page_first))
    owned = steps.page_owned >= 0
    page, step = steps.page_owned[owned], step[owned]
    out, back = np.zeros(len(requests.pfn), np.bool_), np.zeros(len(requests.pfn), np.bool_)
    out[page[steps.mask_clr[step] & _PRESENT != 0]] = True
    back[page[steps.mask_set[step] & _PRESENT != 0]] = True
    return out & back


def _lifetimes(requests: Requests, steps: Steps) -> Requests:
    """Widen each request's life to its own changes just before its allocation returned and after its free began."""
    step = np.repeat(np.arange(len(steps)), np.diff(steps.page_first))
    owned = steps.page_owned >= 0
    request = requests.owner[steps.page_owned[owned]]
    begin_ns, last_ns = requests.alloc_ns.copy(), requests.free_ns.copy()
    np.minimum.at(begin_ns, request, steps.entry_ns[step[owned]])
    np.maximum.at(last_ns, request, steps.exit_ns[step[owned]])
    end_ns = np.where(requests.free_ns == NEVER, NEVER, np.maximum(last_ns, begin_ns + 1))
    return replace(requests, begin_ns=begin_ns, end_ns=end_ns)
