"""The health of a trace in words: what was compared with what, what was lost, what could not be seen."""

from __future__ import annotations

from typing import Any

from analyze.page import Check, plain

__all__ = ["checks", "limits", "verdict"]


def verdict(verification: dict[str, Any]) -> Check:
    """Exact or not, in one line."""
    pages, lost = verification["pages_compared"], verification["lost_events"]
    wrong = verification["level_mismatches"] + verification["attribute_mismatches"]
    if verification["exact"]:
        return Check("exact", "good", f"{pages:,} pages compared with the page tables, 0 unexplained, 0 events lost.")
    return Check(
        "not exact",
        "bad",
        f"{pages:,} pages compared with the page tables, {wrong:,} unexplained, {lost:,} events lost; see below.",
    )


def checks(verification: dict[str, Any], manifest: dict[str, Any]) -> list[Check]:
    """Every check that was made of a trace, and every one that could not be made."""
    return [
        _pages(verification),
        _rules(verification),
        _counters(verification),
        _losses(verification, manifest),
        *_probes(manifest),
        *_incomplete(manifest),
    ]


def _pages(verification: dict[str, Any]) -> Check:
    levels, attributes = verification["level_mismatches"], verification["attribute_mismatches"]
    return Check(
        "Start + changes = end",
        "bad" if levels or attributes else "good",
        f"The end state, rebuilt from the start snapshot and the changes alone, against the page tables: "
        f"{verification['pages_compared']:,} pages, {levels:,} wrong in level, {attributes:,} in attributes.",
    )


def _rules(verification: dict[str, Any]) -> Check:
    wrong = verification["rule_mismatches"]
    ambiguous = verification.get("rule_ambiguous", 0)
    between = f" {ambiguous:,} more overlapped another change and decide nothing." if ambiguous else ""
    return Check(
        "The rules predict what the probe saw",
        "bad" if wrong else "good",
        f"Levels and attributes that the probe read in the page tables after each change: {wrong:,} unlike our prediction.{between}",
    )


def _counters(verification: dict[str, Any]) -> Check:
    splits = verification["splits"]
    found = f"{splits['found_2m']:,} × 2M and {splits['found_1g']:,} × 1G found in the trace"
    name = "The kernel's own counters agree"
    if splits.get("counted_2m") is None:
        return Check(name, "none", f"{found}; this kernel does not count splits in /proc/vmstat.")
    agree = splits.get("agree", True)
    return Check(
        name,
        "good" if agree else "bad",
        f"{found}; /proc/vmstat counted {splits['counted_2m']:,} and {splits['counted_1g']:,} in the same time.",
    )


def _losses(verification: dict[str, Any], manifest: dict[str, Any]) -> Check:
    lost = {plain(str(name), 40): n for name, n in manifest["losses"].items() if n}
    if not lost and not verification["lost_events"]:
        return Check("Nothing was lost", "good", f"All {len(manifest['losses'])} counters of lost events stand at 0.")
    listed = ", ".join(f"{name} {n:,}" for name, n in lost.items()) or "changes without a seen return"
    return Check("Events were lost", "bad", f"{verification['lost_events']:,} in all: {listed}.")


def _probes(manifest: dict[str, Any]) -> list[Check]:
    missing = manifest["probes"].get("missing", [])
    return [
        Check(
            f"Without {plain(str(probe.get('name')), 60)}",
            "none",
            plain(f"{probe.get('why', '')}; {probe.get('costs', '')}", 300),
        )
        for probe in missing
        if isinstance(probe, dict)
    ]


def _incomplete(manifest: dict[str, Any]) -> list[Check]:
    if manifest["complete"]:
        return []
    return [
        Check("Recovered", "bad", "The recorder was killed; this was recovered from its journal and may lack its end.")
    ]


def limits(verification: dict[str, Any], manifest: dict[str, Any]) -> list[str]:
    """What a reader must not conclude from the numbers of this trace."""
    found = [
        "How much slower the machine became. Entries and splits are counted; what a TLB miss costs depends on load and CPU, "
        "and published measurements disagree.",
        "Who split what was split before the recording began: it is in the map, without a name.",
        "More than stacks and regions tell: a change is given to the user whose code made it. What is not recognised is “other”, "
        "and its stack is shown.",
    ]
    if manifest["cpu"].get("emulated"):
        found.append(
            "Anything about time: the CPUs were emulated. The page tables and the kernel code that changed them were real."
        )
    if not verification["exact"]:
        found.append(
            "The whole truth: this trace is not exact, so every number on this page may be off by what is unexplained."
        )
    if manifest["sampling"].get("pages") == "none":
        found.append("Which pages stood behind what was asked for: page events were not recorded.")
    return found
