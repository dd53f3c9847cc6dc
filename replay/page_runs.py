"""Runs of pages that lie side by side, one act each."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from analyze.jit import kernel
from replay.requests import NEVER, Requests

__all__ = ["Runs", "runs_of"]

Int64 = npt.NDArray[np.int64]


class Runs:
    """Pages of requests whose places follow one another.

    Attributes:
        request: [runs] whose pages they are. place: of the first page. n_pages: how many.
        is_first: [runs] the first run of its request (0 or 1, to count things once a request).
        begin_ns, end_ns: [runs] of the request; end_ns is NEVER where it is not freed. user: its `User`.
    """

    def __init__(self, requests: Requests, dest: Int64, which: npt.NDArray[np.bool_]) -> None:
        at = np.zeros((3, int(requests.n_pages[which].sum())), np.int64)
        self.request, self.place, self.n_pages = at[:, : _runs(requests.first, dest, which, at)]
        self.is_first: Int64 = np.diff(self.request, prepend=-1) != 0
        self.is_first = self.is_first.astype(np.int64)
        self.begin_ns: Int64 = requests.begin_ns[self.request]
        self.end_ns: Int64 = requests.end_ns[self.request]
        self.user = requests.user[self.request]

    def only(self, which: npt.NDArray[np.bool_]) -> Runs:
        """Some of them."""
        part = object.__new__(Runs)
        for name, column in vars(self).items():
            setattr(part, name, column[which])
        return part

    @property
    def freed(self) -> Runs:
        """Those of requests that are freed within the trace."""
        return self.only(self.end_ns != NEVER)


@kernel
def _runs(first: Int64, dest: Int64, which: npt.NDArray[np.bool_], runs: Int64) -> int:
    """Write request, place and number of pages of each run; how many there are."""
    n = 0
    for request in range(len(which)):
        if not which[request]:
            continue
        after = -1  # the page that would go on with the run
        for i in range(first[request], first[request + 1]):
            place = dest[i]
            if place < 0:
                continue
            if place == after:
                runs[2, n - 1] += 1
            else:
                runs[0, n], runs[1, n], runs[2, n] = request, place, 1
                n += 1
            after = place + 1
    return n


def runs_of(requests: Requests, dest: Int64, which: npt.NDArray[np.bool_]) -> Runs:
    """Runs of the requests `which`; pages without a place are left out."""
    return Runs(requests, dest, which)
