"""Two captures side by side: before and after, kernel X and kernel Y. What differs, and whose doing the difference is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from analyze.capture import Capture, capture

__all__ = ["FACTS", "Comparison", "compare_captures"]

FACTS = {
    "kernel": "kernel",
    "cpu": "CPU",
    "cpus": "CPUs online",
    "emulated": "CPU is emulated",
    "memory_pages": "pages of memory",
    "paging_levels": "paging levels",
    "load": "command recorded",
    "seconds": "seconds recorded",
    "pages": "page events recorded",
    "probes_missing": "probes missing",
    "complete": "recording is complete",
    "format": "trace format",
    "tool": "recorded by directmap",
}
"""What is told of each capture, in words."""

CLOSE = 0.1
"""Durations and amounts asked for that differ by less than this share are alike."""

_COUNTS = ("n_2m", "n_1g", "still", "frames", "alone_frames", "pages")


@dataclass(frozen=True)
class Comparison:
    """Two captures held against each other.

    Attributes:
        a, b: the captures.
        facts: fact (a key of `FACTS`), a, b, same.
        doubts: why the two should not be compared as they stand, a sentence each; empty where nothing speaks against it.
        numbers: what (text), key, a, b, difference (b - a).
        users: one row per user: n_2m, n_1g, still, frames (of causes summed), pages, each as _a, _b and _difference; asked_a,
            asked_b (regions asked for; -1 where that is not counted); per_100_a, per_100_b (2M splits for 100 asked; NaN).
        causes: one row per (user, cause): the same counts, and change ("new", "gone", "more", "less", "same": of its 2M splits;
            where those are equal, of the pages it keeps), largest difference of 2M splits first.
    """

    a: Capture
    b: Capture
    facts: pd.DataFrame
    doubts: list[str]
    numbers: pd.DataFrame
    users: pd.DataFrame
    causes: pd.DataFrame

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON; null where a number does not exist."""

        def rows(table: pd.DataFrame) -> list[dict[str, Any]]:
            plain = table.astype(object).where(table.notna(), None)
            columns = {str(name): plain[name].tolist() for name in plain.columns}
            return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

        return {
            "a": self.a.name,
            "b": self.b.name,
            "trust": {"a": self.a.trust.to_json(), "b": self.b.trust.to_json()},
            "facts": {key: {"a": self.a.facts[key], "b": self.b.facts[key]} for key in FACTS},
            "doubts": self.doubts,
            "numbers": rows(self.numbers),
            "users": rows(self.users),
            "causes": rows(self.causes),
        }


def compare_captures(a: Path | str, b: Path | str) -> Comparison:
    """Compare two traces, one after the other in memory. Raises TraceError."""
    return comparison(capture(Path(a)), capture(Path(b)))


def comparison(a: Capture, b: Capture) -> Comparison:
    """Compare two captures."""
    facts = pd.DataFrame(
        [{"fact": key, "a": a.facts[key], "b": b.facts[key], "same": a.facts[key] == b.facts[key]} for key in FACTS]
    )
    causes = _causes(a, b)
    return Comparison(a, b, facts, _doubts(a, b), _numbers(a, b), _users(causes, a, b), causes)


def _doubts(a: Capture, b: Capture) -> list[str]:
    found = []
    for side, one in (("A", a), ("B", b)):
        if not one.trust.exact:
            found.append(f"{side} is not exact, so a difference may be an error of {side}: {one.trust.map}.")
        if one.trust.lost_of_who:
            found.append(
                f"{side} lost {one.trust.lost_of_who:,} events that tell who; its counts by user are in doubt."
            )
    if a.facts["load"] != b.facts["load"]:
        found.append("Other commands were recorded; what differs may be the load's doing.")
    elif a.facts["load"] is None:
        found.append("Neither recorded a command of its own; whether the load was the same the traces cannot tell.")
    if a.facts["memory_pages"] != b.facts["memory_pages"]:
        found.append(
            "Memory differs in size: the same pages lie further apart in more of it. Compare counts, not shares."
        )
    emulated = a.facts["emulated"], b.facts["emulated"]
    if any(emulated):
        which = "Both were" if all(emulated) else "One was"
        found.append(f"{which} recorded on an emulated CPU: no rates, and lengths of time are not compared.")
    elif not _alike(a.facts["seconds"], b.facts["seconds"]):
        found.append("They differ in length; compare the rates, or what was split for 100 asked.")
    for user in a.asked:
        if not _alike(a.asked[user], b.asked[user]):
            found.append(f"Not as much was asked for: {user} {a.asked[user]:,} against {b.asked[user]:,} times.")
    if a.facts["pages"] != b.facts["pages"]:
        found.append("Page events were not recorded alike; splits and keepers do not depend on them.")
    for name in sorted(set(a.facts["probes_missing"]) ^ set(b.facts["probes_missing"])):
        found.append(f"Only {'A' if name in a.facts['probes_missing'] else 'B'} lacks the probe {name}.")
    return found


def _alike(a: float, b: float) -> bool:
    return abs(a - b) <= CLOSE * max(abs(a), abs(b))


def _numbers(a: Capture, b: Capture) -> pd.DataFrame:
    def of(one: Capture) -> dict[tuple[str, str], float]:
        known = one.causes[one.causes["group"] != "own"]
        own = one.causes[one.causes["group"] == "own"]
        rows: dict[tuple[str, str], float] = {
            (f"{level}_{when}", f"{level} entries at the {when}"): one.levels[when][level]
            for level in ("1G", "2M", "4K")
            for when in ("start", "end")
        }
        rows |= {
            ("changes", "changes of the direct map"): one.changes,
            ("splits_2m", "2M entries split, our own apart"): int(known["n_2m"].sum()),
            ("splits_1g", "1G entries split, our own apart"): int(known["n_1g"].sum()),
            ("own_splits_2m", "2M entries split by our recorder"): int(own["n_2m"].sum()),
            ("split_frames", "2M frames split at the end"): sum(one.states.values()),
            ("kept", "  kept by special pages"): one.states["kept"],
            ("residue", "  kept by no page, some lack G"): one.states["residue"],
            ("alike", "  kept by no page, all alike"): one.states["alike"],
            ("never_whole", "  never one entry"): one.states["never_whole"],
            ("healed", "frames that would heal, all known gone"): one.healed,
            ("special_pages", "special pages"): one.scatter.pages,
            ("special_frames", "frames they lie in"): one.scatter.frames,
            ("enough", "frames that would be enough"): one.scatter.least,
        }
        return rows

    first, second = of(a), of(b)
    rows = [{"key": key, "what": what, "a": first[key, what], "b": second[key, what]} for key, what in first]
    for one in rows:
        one["difference"] = one["b"] - one["a"]  # type: ignore[operator]
    if a.seconds and b.seconds:
        rates = [one.changes / one.seconds for one in (a, b) if one.seconds]
        rows.append(
            {
                "key": "changes_per_s",
                "what": "changes per second",
                "a": rates[0],
                "b": rates[1],
                "difference": rates[1] - rates[0],
            }
        )
    return pd.DataFrame(rows, columns=["what", "key", "a", "b", "difference"])


def _causes(a: Capture, b: Capture) -> pd.DataFrame:
    keys = ["user", "cause", "group"]
    both = a.causes.merge(b.causes, on=keys, how="outer", suffixes=("_a", "_b"))
    for name in _COUNTS:
        for side in ("a", "b"):
            both[f"{name}_{side}"] = both[f"{name}_{side}"].fillna(0).astype("int64")
        both[f"{name}_difference"] = both[f"{name}_b"] - both[f"{name}_a"]
    both["change"] = [
        _change((row["n_2m_a"], row["pages_a"]), (row["n_2m_b"], row["pages_b"])) for row in both.to_dict("records")
    ]
    size = both["n_2m_difference"].abs()
    pages = both["pages_difference"].abs()
    order = both.assign(size=size, size_pages=pages).sort_values(
        ["size", "size_pages", "user", "cause"], ascending=[False, False, True, True]
    )
    return order.drop(columns=["size", "size_pages"]).reset_index(drop=True)


def _change(a: tuple[int, int], b: tuple[int, int]) -> str:
    if a == b:
        return "same"
    if not any(a):
        return "new"
    if not any(b):
        return "gone"
    return "more" if b > a else "less"


def _users(causes: pd.DataFrame, a: Capture, b: Capture) -> pd.DataFrame:
    counts = [
        f"{name}_{side}" for name in ("n_2m", "n_1g", "still", "frames", "pages") for side in ("a", "b", "difference")
    ]
    users = causes.groupby("user", sort=True)[counts].sum().reset_index()
    for side, one in (("a", a), ("b", b)):
        asked = [one.asked.get(str(user), -1) for user in users["user"]]
        users[f"asked_{side}"] = asked
        users[f"per_100_{side}"] = [
            100 * n / of if of > 0 else float("nan") for n, of in zip(users[f"n_2m_{side}"], asked, strict=True)
        ]
    order = users["n_2m_difference"].abs().sort_values(ascending=False, kind="stable").index
    return users.loc[order].reset_index(drop=True)
