"""One capture in numbers that can stand beside those of another: what machine, what was asked for, what became of the map."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analyze.attribute import attribute
from analyze.causes import By
from analyze.pages.scatter import Scatter
from analyze.reconstruct import Rebuild, rebuild
from analyze.trust import Trust, trust
from analyze.verify import verify
from analyze.who import STATES, who
from collect.schema import RegionEvent, RegionKind, Tier
from collect.trace import Trace, open_trace

__all__ = ["ASKED", "Capture", "capture"]

ASKED = {"bpf": RegionKind.BPF_IMAGE, "module": RegionKind.MODULE, "secretmem": RegionKind.SECRET_PAGE}
"""What each user asks for, as the table `regions` counts it."""


@dataclass(frozen=True)
class Capture:
    """One trace, summed up.

    Attributes:
        name: of its directory.
        facts: what it was recorded on and how, by the keys of `analyze.comparison.FACTS`.
        trust: how far its numbers are to be believed.
        levels: leaf entries at the start and at the end, {"start" | "end": {"4K", "2M", "1G": n}}.
        changes: calls that changed the direct map.
        asked: by user, how many regions were asked for while recording, our own process left out.
        causes: one row per (user, cause by name): group, n_2m, n_1g (splits), still (of those 2M frames, split at the end),
            frames, alone_frames, pages (that it keeps at the end).
        states: split 2M frames at the end by `analyze.who.STATES`.
        healed: frames that all known causes together keep, and that nothing else does.
        scatter: of all special pages at the end.
    """

    name: str
    facts: dict[str, Any]
    trust: Trust
    levels: dict[str, dict[str, int]]
    changes: int
    asked: dict[str, int]
    causes: pd.DataFrame
    states: dict[str, int]
    healed: int
    scatter: Scatter

    @property
    def seconds(self) -> float | None:
        """Length of the recording; None where it means nothing, for the CPU was emulated."""
        return None if self.facts["emulated"] else float(self.facts["seconds"])


def capture(directory: Path) -> Capture:
    """Open, rebuild, verify and sum up a trace. Raises TraceError."""
    trace = open_trace(directory)
    rebuilt = rebuild(trace)
    found = who(rebuilt, attribute(trace, rebuilt), By.NAME)
    return Capture(
        name=directory.absolute().name,
        facts=_facts(trace),
        trust=trust(verify(trace, rebuilt)),
        levels=_levels(rebuilt),
        changes=int(rebuilt.changes.direct.sum()),
        asked=_asked(trace),
        causes=_causes(found.split_by, found.causes),
        states={state: found.n_frames(state) for state in STATES},
        healed=found.kept_by("known")[1],
        scatter=found.scatter,
    )


def _facts(trace: Trace) -> dict[str, Any]:
    manifest = trace.manifest
    kernel, cpu, memory, sampling = (manifest[key] for key in ("kernel", "cpu", "memory", "sampling"))
    command = [str(word) for word in manifest["command"]]
    missing = manifest["probes"].get("missing")
    return {
        "kernel": str(kernel.get("release")),
        "cpu": str(cpu.get("model")),
        "cpus": cpu.get("n_online"),
        "emulated": bool(cpu.get("emulated")),
        "memory_pages": sum(end - first for first, end in memory["ranges"]),
        "paging_levels": memory["paging_levels"],
        "load": " ".join(command[command.index("--") + 1 :]) if "--" in command else None,
        "seconds": max(manifest["ts_end_ns"] - manifest["ts_start_ns"], 0) / 1e9,
        "pages": str(sampling.get("pages")),
        "probes_missing": sorted(str(p.get("name")) for p in missing if isinstance(p, dict))
        if isinstance(missing, list)
        else [],
        "complete": manifest["complete"],
        "format": manifest["format_version"],
        "tool": manifest["tool_version"],
    }


def _levels(rebuilt: Rebuild) -> dict[str, dict[str, int]]:
    ends = {"start": rebuilt.levels.iloc[0], "end": rebuilt.levels.iloc[-1]}
    return {when: {"4K": int(row["k4"]), "2M": int(row["m2"]), "1G": int(row["g1"])} for when, row in ends.items()}


def _asked(trace: Trace) -> dict[str, int]:
    table = trace.table("regions", ["event", "tier", "kind", "tgid", "ts_ns"])
    own = trace.manifest["recorder"].get("tgid")
    start = trace.manifest["ts_start_ns"]
    mine = (table["event"].to_numpy() == RegionEvent.ALLOC) & (table["tier"].to_numpy() == Tier.ASKED)
    mine &= table["ts_ns"].to_numpy() >= np.uint64(start)
    if isinstance(own, int):
        mine &= table["tgid"].to_numpy() != own
    kind = table["kind"].to_numpy()[mine]
    return {user: int((kind == code).sum()) for user, code in ASKED.items()}


def _causes(split_by: pd.DataFrame, keeps: pd.DataFrame) -> pd.DataFrame:
    keys = ["user", "cause", "group"]
    kinds = dict.fromkeys(keys, object)  # a table without rows has numbers where others have names
    both = (
        split_by[[*keys, "n_2m", "n_1g", "still"]]
        .astype(kinds)
        .merge(keeps[[*keys, "frames", "alone_frames", "pages"]].astype(kinds), on=keys, how="outer")
    )
    counts = both.columns.difference(keys)
    both[counts] = both[counts].fillna(0).astype(np.int64)
    return both
