"""What a load says at its end: one JSON line of what was really done, and what it did to the map."""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections import Counter
from pathlib import Path


def direct_map() -> dict[str, int]:
    """The kernel's own totals: DirectMap* in kB, and the split counters where it has them."""
    found: dict[str, int] = {}
    for source, prefix in (("/proc/meminfo", "DirectMap"), ("/proc/vmstat", "direct_map_")):
        for line in Path(source).read_text(encoding="ascii").splitlines():
            if line.startswith(prefix):
                name, value = line.replace(":", " ").split()[:2]
                found[name] = int(value)
    return found


def parser(description: str, *, seconds: float) -> argparse.ArgumentParser:
    """The options that every load has."""
    options = argparse.ArgumentParser(description=description.partition("\n")[0])
    options.add_argument("--seed", type=int, default=1, help="decides the whole sequence of steps")
    options.add_argument("--scale", type=float, default=1.0, help="more or fewer steps")
    options.add_argument(
        "--seconds",
        type=float,
        default=seconds,
        help="stop early, and say so, when this much time has passed (default: %(default)s)",
    )
    options.add_argument("--stats", type=Path, help="write the JSON there too")
    return options


class Report:
    """Counts by kind, started when the load starts."""

    def __init__(self, load: str, options: argparse.Namespace) -> None:
        self._load = load
        self._options = options
        self._before = direct_map()
        self._started = time.monotonic()
        self.counts: Counter[str] = Counter()
        self.facts: dict[str, object] = {}

    def out_of_time(self) -> bool:
        """Has the wall-clock cap been reached? The report then says that the load was cut."""
        over = time.monotonic() - self._started > float(self._options.seconds)
        if over:
            self.facts["cut_short"] = True
        return over

    def finish(self) -> int:
        """Print the JSON line; returns the load's exit status."""
        after = direct_map()
        told: dict[str, object] = {
            "load": self._load,
            "kernel": platform.release(),
            "options": {key: value for key, value in vars(self._options).items() if key != "stats"},
            "seconds": round(time.monotonic() - self._started, 1),
            "counts": dict(sorted(self.counts.items())),
            **self.facts,
            "direct_map_before": self._before,
            "direct_map_after": after,
            "direct_map_change": {key: value - self._before.get(key, 0) for key, value in after.items()},
        }
        text = json.dumps(told)
        if self._options.stats is not None:
            self._options.stats.write_text(text + "\n", encoding="utf-8")
        print(text)
        sys.stdout.flush()
        return 0
