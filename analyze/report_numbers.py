"""The report as strict JSON."""

from __future__ import annotations

from typing import Any

from analyze.analysis import Analysis
from analyze.page import TraceView, plain
from analyze.report_checks import attached_probes, missing_probes

__all__ = ["numbers"]


def numbers(analysis: Analysis, seen: TraceView) -> dict[str, Any]:
    """The report as strict JSON: what `seen` shows, for machines."""
    manifest = analysis.trace.manifest
    levels = analysis.rebuilt.levels
    ends = {"start": levels.iloc[0], "end": levels.iloc[-1]}
    return {
        "trace": seen.title,
        "answer": seen.answer,
        "verification": analysis.verification,
        "leaf_entries": {
            when: {"4K": int(row["k4"]), "2M": int(row["m2"]), "1G": int(row["g1"])} for when, row in ends.items()
        },
        "users": [
            {
                "user": user.key,
                "splits_2m": user.n_2m,
                "splits_1g": user.n_1g,
                "names": [{"name": r.name, "splits_2m": r.n_2m, "splits_1g": r.n_1g} for r in user.rows],
            }
            for user in seen.users
        ],
        "losses": manifest["losses"],
        "probes": {
            "attached": attached_probes(manifest),
            "missing": [plain(str(probe.get("name"))) for probe in missing_probes(manifest)],
        },
        "kernel": {key: plain(str(manifest["kernel"].get(key)), 600) for key in ("release", "version", "cmdline")},
        "created": manifest["created"],
        "duration_s": analysis.duration_s,
        "tool_version": manifest["tool_version"],
        "format_version": manifest["format_version"],
        "limits": list(seen.limits),
    }
