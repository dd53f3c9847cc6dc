"""Calls of threads as begins and ends that nest, in order of time."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from analyze.jit import kernel

__all__ = ["nested_events"]

Ints = npt.NDArray[np.int64]


def nested_events(thread: Ints, begin_ns: Ints, end_ns: Ints, depth: Ints) -> tuple[Ints, npt.NDArray[np.bool_], Ints]:
    """Two events for each call: its row, whether it is the end, and when; ascending in time, and nested within a thread.

    A call that would reach beyond the one around it on its thread (which no kernel does) ends with that one.
    """
    order = np.lexsort((depth, -end_ns, begin_ns, thread))
    row = np.empty(2 * len(order), np.int64)
    is_end = np.empty(2 * len(order), np.bool_)
    ts = np.empty(2 * len(order), np.int64)
    _nest(
        order, thread, begin_ns, end_ns, np.empty(len(order), np.int64), np.empty(len(order), np.int64), row, is_end, ts
    )
    by_time = np.argsort(ts, kind="stable")  # of a thread they ascend already, and stay in their order
    return row[by_time], is_end[by_time], ts[by_time]


@kernel
def _nest(
    order: Ints,
    thread: Ints,
    begin_ns: Ints,
    end_ns: Ints,
    open_row: Ints,
    open_end: Ints,
    row: Ints,
    is_end: npt.NDArray[np.bool_],
    ts: Ints,
) -> None:
    """Calls in order of thread and begin; `open_row` and `open_end` hold those that are running."""
    n, top = 0, 0
    for place in range(len(order)):
        call = order[place]
        new_thread = place > 0 and thread[call] != thread[order[place - 1]]
        while top > 0 and (new_thread or open_end[top - 1] <= begin_ns[call]):
            top -= 1
            row[n], is_end[n], ts[n] = open_row[top], True, open_end[top]
            n += 1
        end = end_ns[call]
        if top > 0 and open_end[top - 1] < end:
            end = open_end[top - 1]
        row[n], is_end[n], ts[n] = call, False, begin_ns[call]
        n += 1
        open_row[top], open_end[top] = call, end
        top += 1
    while top > 0:
        top -= 1
        row[n], is_end[n], ts[n] = open_row[top], True, open_end[top]
        n += 1
