"""The health of a trace in words: what was compared with what, what was lost, what could not be seen."""

from __future__ import annotations

from typing import Any

from analyze.losses import CONCLUSIONS, Doubt, in_doubt
from analyze.report.page import Check, plain
from analyze.words.numbers import splits as splits_text

__all__ = ["attached_probes", "checks", "limits", "missing_probes", "verdict"]


def verdict(verification: dict[str, Any]) -> Check:
    """Exact or not, in one line."""
    pages, lost = verification["pages_compared"], verification["lost_events_of_map"]
    between = verification["between"]
    wrong = sum(found["level_mismatches"] + found["attribute_mismatches"] for found in (verification, between))
    pages += between["pages_compared"]
    if verification["exact"]:
        beside = verification["lost_events"]
        kept = f"{beside:,} lost that say nothing about the map; see below" if beside else "0 events lost"
        return Check("exact", "good", f"{pages:,} pages compared with the page tables, 0 unexplained, {kept}.")
    if not verification["end_snapshot"]:
        return Check("not exact", "bad", "There is no end snapshot to compare with: the recorder was killed.")
    return Check(
        "not exact",
        "bad",
        f"{pages:,} pages compared with the page tables, {wrong:,} unexplained, {lost:,} events lost; see below.",
    )


def checks(verification: dict[str, Any], manifest: dict[str, Any]) -> list[Check]:
    """Every check that was made of a trace, and every one that could not be made."""
    return [
        _pages(verification),
        *_between(verification),
        _rules(verification),
        _counters(verification),
        _observed(verification),
        _losses(verification, manifest),
        *_outside(verification),
        *_probes(manifest),
        *_incomplete(manifest),
    ]


def _pages(verification: dict[str, Any]) -> Check:
    name = "Start + changes = end"
    if not verification["end_snapshot"]:
        return Check(name, "bad", "Not checked: the trace has no end snapshot.")
    levels, attributes = verification["level_mismatches"], verification["attribute_mismatches"]
    text = (
        f"The end state, rebuilt from the start snapshot and the changes alone, against the page tables: "
        f"{verification['pages_compared']:,} pages, {levels:,} wrong in level, {attributes:,} in attributes."
    )
    exceptions = verification["exceptions"]
    if exceptions["accessed_dirty_pages"]:
        text += f" {exceptions['accessed_dirty_pages']:,} differ only in bits that the CPU sets by itself."
    if exceptions["kfence_pages"]:
        text += f" In KFENCE's pool of {exceptions['kfence_pages']:,} pages the present bit is not compared."
    if verification["unexplained"]:
        first = verification["unexplained"][0]
        text += f" The first unexplained run: {first['n_pages']:,} pages from page frame {first['pfn']:#x}."
    return Check(name, "bad" if levels or attributes else "good", text)


def _between(verification: dict[str, Any]) -> list[Check]:
    """The snapshots that were taken while the recording ran; none, no line."""
    found = verification["between"]
    if not found["snapshots"]:
        return []
    text = (
        f"{found['snapshots']:,} snapshots while the recording ran, {found['changes']:,} changes before them, each against the "
        f"state rebuilt for its moment: {found['level_mismatches']:,} pages wrong in level, "
        f"{found['attribute_mismatches']:,} in attributes, in {found['differ']:,} of the snapshots."
    )
    if found["frames_read_again"] is not None:
        text += f" {found['frames_read_again']:,} 2M frames changed while they were read, and were read again."
    if found["frames_undecided"]:
        text += f" {found['frames_undecided']:,} changed too often to be read, and are not compared."
    return [Check("The state in between", "bad" if found["differ"] else "good", text)]


def _rules(verification: dict[str, Any]) -> Check:
    wrong, ambiguous = verification["rule_mismatches"], verification["rule_ambiguous"]
    text = (
        f"{verification['direct_map_changes']:,} changes of the direct map; what the probe read in the page tables before "
        f"and after each is unlike our prediction in {wrong:,} places."
    )
    if ambiguous:
        text += f" {ambiguous:,} more undecided, since another change overlapped."
    return Check("The rules predict what the probe saw", "bad" if wrong else "good", text)


def _counters(verification: dict[str, Any]) -> Check:
    splits = verification["splits"]
    name = "The kernel's own counters agree"
    found = f"{splits_text(splits['found_2m'], splits['found_1g'])} in the direct map"
    if splits["high_mapping_2m"] or splits["high_mapping_1g"]:
        found += f", {splits_text(splits['high_mapping_2m'], splits['high_mapping_1g'])} in the kernel's high mapping"
    if splits["decoys_2m"] or splits["decoys_1g"]:
        found += f" ({splits_text(splits['decoys_2m'], splits['decoys_1g'])} of a kind that the kernel does not count)"
    if splits["agree"] is None:
        return Check(
            "The kernel's own counters are missing",
            "none",
            f"Found {found}; this kernel does not count splits in /proc/vmstat.",
        )
    slack = f", with {splits['slack']:,} changes while a counter was read" if splits["slack"] else ""
    return Check(
        name if splits["agree"] else "The kernel's own counters do not agree",
        "good" if splits["agree"] else "bad",
        f"Found {found}; /proc/vmstat counted {splits_text(splits['counted_2m'], splits['counted_1g'])}, both between its first reading and its last{slack}.",
    )


def _observed(verification: dict[str, Any]) -> Check:
    seen = verification["splits_observed"]
    if seen is None:
        return Check(
            "Splits were not observed one by one",
            "none",
            "No probe saw them as they were done (a trace of format 1, or a kernel without it): the other checks stand alone.",
        )
    differ = seen["leaves_that_differ"]
    return Check(
        "Splits seen are not those rebuilt" if differ else "Each split was seen as it was done",
        "bad" if differ else "good",
        f"{seen['count']:,} seen at the moment they were done; {differ:,} entries were split another number of times by our rules.",
    )


def _losses(verification: dict[str, Any], manifest: dict[str, Any]) -> Check:
    lost, unfinished = verification["lost_events"], verification["unfinished_calls"]
    if not lost and not unfinished:
        return Check("Nothing was lost", "good", f"All {len(manifest['losses'])} counters of lost events stand at 0.")
    classes = [f"{plain(str(name).replace('_', ' '), 40)} {n:,}" for name, n in verification["losses"].items()]
    if unfinished:
        classes.append(f"calls whose return was not seen {unfinished:,}")
    doubted = in_doubt(verification["losses"]) | (Doubt.MAP | Doubt.WHO if unfinished else Doubt(0))
    words = "; ".join(text for doubt, text in CONCLUSIONS.items() if doubted & doubt)
    return Check("Events were lost", "bad", f"{', '.join(classes)}. In doubt: {words}.")


def _outside(verification: dict[str, Any]) -> list[Check]:
    """What loading and unloading our own probes did to the map, before and after the numbers of the report."""
    words = {"before_start": "attaching the probes", "after_end": "detaching them"}
    parts = [
        f"{when} split {splits_text(counts['splits_2m'], counts['splits_1g'])}"
        for key, when in words.items()
        if (counts := verification["outside_recording"].get(key)) and (counts["splits_2m"] or counts["splits_1g"])
    ]
    if not parts:
        return []
    return [Check("What the recorder did itself", "none", f"Not counted in this report: {' and '.join(parts)}.")]


def attached_probes(manifest: dict[str, Any]) -> list[str]:
    """Names of what the recorder attached to."""
    found = manifest["probes"].get("attached")
    return [plain(str(name)) for name in found] if isinstance(found, list) else []


def missing_probes(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """What the recorder could not attach to: name, why, and what that costs."""
    found = manifest["probes"].get("missing")
    return [probe for probe in found if isinstance(probe, dict)] if isinstance(found, list) else []


def _probes(manifest: dict[str, Any]) -> list[Check]:
    return [
        Check(
            f"Without {plain(str(probe.get('name')), 60)}",
            "none",
            plain(f"{probe.get('why', '')}; cost: {probe.get('costs', '')}", 300),
        )
        for probe in missing_probes(manifest)
    ]


def _incomplete(manifest: dict[str, Any]) -> list[Check]:
    if manifest["complete"]:
        return []
    if manifest.get("ended"):
        return [
            Check(
                "Cut off", "bad", f"The recording ended because {plain(str(manifest['ended']), 80)}; it lacks its end."
            )
        ]
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
