"""The report as strict JSON; its keys stand in docs/json.md."""

from __future__ import annotations

from typing import Any

from analyze import who as who_module
from analyze.analysis import Analysis
from analyze.health import Health
from analyze.report.answer import answer, title
from analyze.report.checks import attached_probes, limits, missing_probes
from analyze.report.keepers import MAX_CAUSES, MAX_STEPS
from analyze.report.users import users
from analyze.who import Who
from analyze.words.plain_text import plain

__all__ = ["numbers"]


def numbers(analysis: Analysis, health: Health, kept: Who) -> dict[str, Any]:
    """What the page shows, for machines."""
    manifest = analysis.trace.manifest
    levels = analysis.rebuilt.levels
    ends = {"start": levels.iloc[0], "end": levels.iloc[-1]}
    split_by = users(analysis)
    return {
        "trace": title(analysis),
        "answer": " ".join(answer(analysis, split_by)),
        "health": health.to_json(),
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
            for user in split_by
        ],
        "kept": _kept(kept, manifest["ts_start_ns"]),
        "pages": _pages(analysis),
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
        "limits": list(limits(analysis.verification, manifest)),
    }


def _pages(analysis: Analysis) -> dict[str, Any] | None:
    """What `pages --json` holds but for series over time."""
    if analysis.pages is None:
        return None
    return {key: value for key, value in analysis.pages.to_json().items() if key != "intervals"}


def _kept(found: Who, start_ns: int) -> dict[str, Any]:
    """The heads of what `who --json` holds in full."""
    whole = who_module.to_json(found, start_ns)
    return {
        "frames": whole["frames"],
        "kept_by": whole["kept_by"],
        "causes": whole["causes"][:MAX_CAUSES],
        "healing": {"own_first": whole["healing"]["own_first"], "steps": whole["healing"]["steps"][:MAX_STEPS]},
    }
