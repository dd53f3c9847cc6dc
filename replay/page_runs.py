"""Runs of pages that lie side by side, one act each."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

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
        owner = requests.owner()
        pages = np.flatnonzero(which[owner] & (dest >= 0))
        place, whose = dest[pages], owner[pages]
        starts = np.ones(len(pages), np.bool_)
        starts[1:] = (whose[1:] != whose[:-1]) | (place[1:] != place[:-1] + 1)
        at = np.flatnonzero(starts)
        self.request: Int64 = whose[at]
        self.place: Int64 = place[at]
        self.n_pages: Int64 = np.diff(np.append(at, len(pages)))
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


def runs_of(requests: Requests, dest: Int64, which: npt.NDArray[np.bool_]) -> Runs:
    """Runs of the requests `which`; pages without a place are left out."""
    return Runs(requests, dest, which)
