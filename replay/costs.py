"""What a unit costs, from a file of the user's: intervals with unit, source and where each was measured."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from collect.errors import HostError
from replay.measures import summed
from replay.results import Interval, PolicyResult

__all__ = ["MEASURED", "UNITS", "Cost", "Costs", "Unit", "read_costs"]

FORMAT = 1
MAX_BYTES = 1 << 20
HIGHEST = 1e15
LONGEST = 500
"""Characters of a text in the file."""

MEASURED = ("host", "published", "mine")
"""On the host of the trace; by others, who published it; by whoever wrote the file, on another machine."""

TIMES = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}
"""Units of time in seconds: costs in any of them add up."""


@dataclass(frozen=True)
class Unit:
    """Something that can be priced.

    Attributes:
        key: its name in the file.
        what: one of it, in words.
        of: how many a result has.
        of_time: counted by the recording's own clock, which says nothing where the machine was emulated.
    """

    key: str
    what: str
    of: Callable[[PolicyResult], Interval]
    of_time: bool = False


def _idle_seconds(result: PolicyResult) -> Interval:
    seconds, idle = float(result.provenance["seconds"]), result.idle_pages_mean
    return Interval(idle.lo * seconds, idle.hi * seconds)


def _leaf_seconds(result: PolicyResult) -> Interval:
    frames = result.split_frame_seconds
    return Interval(512 * frames.lo, 512 * frames.hi)


UNITS = {
    unit.key: unit
    for unit in (
        Unit("cpa-call", "a call that changes the map, without steps, splits and flushes in it", lambda r: r.cpa_calls),
        Unit("page-table-step", "a piece of a call that reaches the page tables", lambda r: r.cpa_steps),
        Unit("split", "a split of a 1G or 2M entry, without its flush", lambda r: r.tlb_flushes_split),
        Unit("merge", "a large entry put back, without its flush", lambda r: r.merges),
        Unit(
            "tlb-flush-global",
            "a flush of all entries on every CPU",
            lambda r: summed(r.tlb_flushes_split, r.tlb_flushes_call, r.merges),
        ),
        Unit("tlb-flush-ranged", "a flush of a range on every CPU", lambda r: r.tlb_flushes_ranged),
        Unit("refill", "a refill of a cache", lambda r: summed(*r.refills.values())),
        Unit("refill-failure", "an attempt to refill that got nothing", lambda r: r.refill_failures),
        Unit("request-not-served", "a request that failed", lambda r: r.requests_not_served),
        Unit("page-table-page", "a page of page tables at the end", lambda r: r.page_table_pages_end),
        Unit("idle-page", "a page held idle, of the most held at once", lambda r: r.idle_pages_peak),
        Unit("idle-page-second", "a page held idle for a second", _idle_seconds, of_time=True),
        Unit("leaf-4k-second", "a 4K entry of a frame split meanwhile, for a second", _leaf_seconds, of_time=True),
    )
}
"""By key, in the order in which they are printed."""


@dataclass(frozen=True)
class Cost:
    """What one unit costs.

    Attributes:
        key: of `UNITS`.
        each: bounds, in `unit`.
        unit: as the file names it.
        source: text, address or message-id.
        measured: one of `MEASURED`.
        note: what else the file says of it; "" for nothing.
    """

    key: str
    each: Interval
    unit: str
    source: str
    measured: str
    note: str = ""

    @property
    def sum_unit(self) -> str:
        """The unit in which it adds up with others."""
        return "s" if self.unit in TIMES else self.unit

    @property
    def scaled(self) -> Interval:
        """Bounds in `sum_unit`."""
        factor = TIMES.get(self.unit, 1.0)
        return Interval(self.each.lo * factor, self.each.hi * factor)


@dataclass(frozen=True)
class Costs:
    """A file of costs.

    Attributes:
        name: of the file.
        title: its own; "" for none.
        cpu: model of the machine on which what is `host` was measured; "" where nothing is.
        by_key: the costs.
    """

    name: str
    title: str
    cpu: str
    by_key: dict[str, Cost]

    def to_json(self) -> dict[str, Any]:
        return {
            "file": self.name,
            "title": self.title,
            "cpu": self.cpu,
            "each": {
                key: {
                    "cost": [cost.each.lo, cost.each.hi],
                    "unit": cost.unit,
                    "source": cost.source,
                    "measured": cost.measured,
                    "note": cost.note,
                }
                for key, cost in self.by_key.items()
            },
        }


def read_costs(path: Path) -> Costs:
    """Costs from a .toml or .json file; `docs/costs-example.toml` says how it is written.

    Raises HostError: unreadable, an unknown key (by name), a missing one, a number that is none.
    """
    value = _parsed(path)
    top = {"format", "title", "cpu"}
    unknown = next((key for key in value if key not in top and key not in UNITS), None)
    if unknown is not None:
        raise HostError(f"{path}: {str(unknown)[:60]!r} is no cost; there are {', '.join(UNITS)}")
    if value.get("format") != FORMAT:
        raise HostError(
            f"{path}: format is {str(value.get('format'))[:20]!r}, this directmap reads {FORMAT}; write format = 1"
        )
    title, cpu = (_text(value.get(key, ""), path, key) for key in ("title", "cpu"))
    by_key = {key: _cost(value[key], key, path) for key in UNITS if key in value}
    if not by_key:
        raise HostError(f"{path}: no cost in it; give one or more of {', '.join(UNITS)}")
    here = next((cost.key for cost in by_key.values() if cost.measured == "host"), None)
    if here is not None and not cpu:
        raise HostError(
            f'{path}: {here} was measured on the trace\'s host; say which CPU that is: cpu = "MODEL", as '
            "`directmap-analyze info` prints it"
        )
    return Costs(path.name, title, cpu, by_key)


def _parsed(path: Path) -> dict[str, Any]:
    kinds: dict[str, Callable[[str], Any]] = {".toml": tomllib.loads, ".json": json.loads}
    parse = kinds.get(path.suffix.lower())
    if parse is None:
        raise HostError(f"{path}: is it TOML or JSON? give a file that ends in .toml or .json")
    try:
        if not path.is_file():
            raise HostError(f"{path}: no such file; give a file of costs, such as docs/costs-example.toml")
        if path.stat().st_size > MAX_BYTES:
            raise HostError(f"{path}: larger than {MAX_BYTES >> 20} MiB, so no file of costs; give another")
        value = parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise HostError(f"{path}: cannot be read ({error.strerror}); mend its permissions") from None
    except (ValueError, RecursionError) as error:
        raise HostError(f"{path}: cannot be parsed ({' '.join(str(error).split())[:200]}); mend it") from None
    if not isinstance(value, dict):
        raise HostError(f"{path}: holds no table of costs; see docs/costs-example.toml")
    return value


def _cost(value: object, key: str, path: Path) -> Cost:
    needed, may = ("cost", "unit", "source", "measured"), ("note",)
    if not isinstance(value, dict):
        raise HostError(f"{path}: {key} must be a table of {', '.join(needed)}; see docs/costs-example.toml")
    unknown = next((name for name in value if name not in (*needed, *may)), None)
    if unknown is not None:
        raise HostError(f"{path}: {key} has {str(unknown)[:60]!r}; it may have {', '.join((*needed, *may))}")
    missing = next((name for name in needed if name not in value), None)
    if missing is not None:
        raise HostError(f"{path}: {key} has no {missing!r}; give {', '.join(needed)}")
    unit, source, measured = (_text(value[name], path, f"{key}.{name}") for name in needed[1:])
    if not unit or not source:
        raise HostError(f"{path}: {key} needs a unit and a source; a number without them prices nothing")
    if measured not in MEASURED:
        raise HostError(f"{path}: {key}.measured is {measured[:20]!r}; give {' or '.join(MEASURED)}")
    return Cost(key, _bounds(value["cost"], key, path), unit, source, measured, _text(value.get("note", ""), path, key))


def _bounds(value: object, key: str, path: Path) -> Interval:
    what = f"{path}: {key}.cost must be [lowest, highest], two numbers from 0 up; [v, v] for one that is known exactly"
    if not (isinstance(value, list) and len(value) == 2):
        raise HostError(what)
    for one in value:
        if isinstance(one, bool) or not isinstance(one, int | float) or not 0 <= one <= HIGHEST or math.isnan(one):
            raise HostError(what)
    if value[0] > value[1]:
        raise HostError(what)
    return Interval(float(value[0]), float(value[1]))


def _text(value: object, path: Path, key: str) -> str:
    if not isinstance(value, str) or len(value) > LONGEST:
        raise HostError(f"{path}: {key} must be text of at most {LONGEST} characters")
    return " ".join(value.split())
