"""Keeps what the page programs cost below a limit: past it page events are sampled, then off. Never the changes.

The kernel times the programs itself (`BPF_ENABLE_STATS`, since 5.8, d46edd671a14 "bpf: Sharing bpf runtime stats with
BPF_ENABLE_STATS"): nanoseconds and number of runs, by program. The events that the recorder drains would not do: in
scope of regions, and when sampling, most runs record nothing, and each of them costs. The clock that is read before
and after a run is a cost of its own and, as calling the program is, outside of what it measures; so each run counts for
CALL_NS more.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from collect.errors import HostError
from collect.syscalls import Runs, enable_stats

__all__ = ["OFF", "STEPS", "Governor", "time_programs"]

STEPS = (1, 4, 16, 64, 0)
"""One page block in so many is recorded."""
OFF = 0

CALL_NS = 120
"""Calling a program and reading the clock twice. An empty program at both page tracepoints, timed, made an event 173 ns dearer on
6.18 (AMD EPYC), of which 51 were in `run_time_ns`: the least of 40 runs of a populate-and-drop loop each."""
CALM_TICKS = 2
"""A step is taken when the limit was passed so many times in a row: not for one burst."""


def time_programs() -> int:
    """Have the kernel time every BPF program until the descriptor that is returned is closed. Needs CAP_SYS_ADMIN."""
    try:
        return enable_stats()
    except OSError as error:
        raise HostError(
            f"--max-overhead: the kernel does not time BPF programs here ({error.strerror}); "
            "it needs CAP_SYS_ADMIN; record without it"
        ) from None


class Governor:
    """Steps page events down when their programs cost more than a limit.

    Args:
        limit: of their share of all CPUs' time, in per cent.
        n_cpus: that are online.
        sample: the step to begin with.
        runs: tells the page programs' runs so far.
        set_sample: takes a step: 1 for all page blocks, N for one in N, 0 for none.
        can_sample: whether a step between all and none changes anything; else the first step is off.
        now_ns: the clock.
    """

    def __init__(
        self,
        limit: float,
        n_cpus: int,
        sample: int,
        runs: Callable[[], Runs],
        set_sample: Callable[[int], None],
        *,
        can_sample: bool = True,
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.sample = sample
        self.percent = 0.0
        self.steps: list[dict[str, int | float]] = []
        self._limit, self._n_cpus = limit, n_cpus
        self._runs, self._set_sample, self._now_ns = runs, set_sample, now_ns
        self._before, self._then_ns = runs(), now_ns()
        self._n_above = 0
        self._lower = STEPS if can_sample else (OFF,)

    def tick(self) -> bool:
        """Measure since the last tick; True if a step was taken."""
        runs, now_ns = self._runs(), self._now_ns()
        spent = runs.ns - self._before.ns + (runs.n - self._before.n) * CALL_NS
        self.percent = 100 * spent / max((now_ns - self._then_ns) * self._n_cpus, 1)
        self._before, self._then_ns = runs, now_ns
        self._n_above = self._n_above + 1 if self.percent > self._limit else 0
        lower = [step for step in self._lower if step > self.sample] or [OFF]
        if self._n_above < CALM_TICKS or self.sample == OFF:
            return False
        self._n_above = 0
        self.sample = lower[0]
        self._set_sample(self.sample)
        self.steps.append({"ts_ns": now_ns, "page_sample": self.sample, "percent": round(self.percent, 3)})
        what = f"one page block in {self.sample} is recorded" if self.sample else "no more page events are recorded"
        print(
            f"page events cost {self.percent:.2g} % of all CPUs' time, more than --max-overhead {self._limit:g}: "
            f"from here on {what}; changes are recorded as before",
            file=sys.stderr,
        )
        return True
