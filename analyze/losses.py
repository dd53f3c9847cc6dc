"""What each class of loss puts in doubt: the one place that says so, for verify, reports and exports.

Where a class is counted: `enum loss` in collect/bpf/records.h (named by `collect.records.LOSSES`), the programs that the
kernel did not run (`collect.program.Program.losses`), and the recorder's own (`collect.recorder`).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntFlag
from typing import NamedTuple

__all__ = ["ARRAY_PAGES", "CLASSES", "CONCLUSIONS", "Doubt", "Loss", "in_doubt", "loss_of", "lost_for"]


class Doubt(IntFlag):
    """A conclusion that losses may make wrong."""

    MAP = 1
    WHO = 2
    REGIONS = 4
    PAGES = 8


CONCLUSIONS: dict[Doubt, str] = {
    Doubt.MAP: "the state of the direct map",
    Doubt.WHO: "who made a change, and for what",
    Doubt.REGIONS: "which regions lived when, and on which frames",
    Doubt.PAGES: "page events: rates, orders, lifetimes",
}
"""In words, most serious first."""


class Loss(NamedTuple):
    """A class of loss: what happened, in words, and what that puts in doubt."""

    text: str
    doubt: Doubt


ARRAY_PAGES = "pages of arrays"
"""Pages of pages arrays that the recorder could not record; no counter of its own, but `changes.n_pfns_lost`."""

_CHANGE = Doubt.MAP | Doubt.WHO
_REGION = Doubt.REGIONS | Doubt.WHO  # whose a frame is, its region tells

CLASSES: dict[str, Loss] = {
    "changes_ring_full": Loss("changes, no room in their ring", _CHANGE),
    "changes_programs_not_run": Loss("changes, neither fentry nor kprobe was run", _CHANGE),
    "calls_map_full": Loss("changes, too many ran at once", _CHANGE),
    "exit_without_entry": Loss("changes whose beginning was not seen", _CHANGE),
    "entry_without_exit": Loss("changes whose end was not seen", _CHANGE),
    "pages_array_cut": Loss("parts of pages arrays", _CHANGE),
    ARRAY_PAGES: Loss("pages of pages arrays", _CHANGE),
    # A task that is not known has no scopes, no parents, and its splits are not seen: what a failed call left is one.
    "tasks_map_full_or_nested_too_deep": Loss("nested calls, too many or too deep", _CHANGE | Doubt.REGIONS),
    "splits_ring_full": Loss("splits seen as they were done, no room in their ring", Doubt.MAP),
    "splits_programs_not_run": Loss("splits seen as they were done, no program was run", Doubt.MAP),
    "snapshot_frames_unstable": Loss("2M frames of a snapshot that never came to rest", Doubt.MAP),
    "stacks_ring_full_or_unwalked": Loss("call stacks", Doubt.WHO),
    "regions_ring_full": Loss("region events, no room in their ring", _REGION),
    "regions_programs_not_run": Loss("region events, neither fentry nor kprobe was run", _REGION),
    "regions_map_full": Loss("regions, too many lived at once", _REGION),
    "region_frames_cut": Loss("parts of the frames behind regions", _REGION),
    "blocks_gone_unseen": Loss("frees of blocks of the ROX cache", _REGION),
    "pages_ring_full": Loss("page events, no room in their ring", Doubt.PAGES),
    "pages_programs_not_run": Loss("page events, no program was run", Doubt.PAGES),
    "unreported_programs_not_run": Loss("bulk, contiguous or split allocations, no program was run", Doubt.PAGES),
    "bulk_allocations_not_followed": Loss("bulk allocations, too many pages or too many at once", Doubt.PAGES),
}


def loss_of(name: str) -> Loss:
    """What a class of loss means; one that this version does not know may concern everything."""
    return CLASSES.get(name, Loss(name, Doubt.MAP | Doubt.WHO | Doubt.REGIONS | Doubt.PAGES))


def lost_for(losses: Mapping[str, int], doubt: Doubt) -> int:
    """Events lost that put a conclusion in doubt; `losses` as in the manifest."""
    return sum(n for name, n in losses.items() if loss_of(name).doubt & doubt)


def in_doubt(losses: Mapping[str, int]) -> Doubt:
    """All conclusions that losses put in doubt; empty where nothing was lost."""
    found = Doubt(0)
    for name, n in losses.items():
        if n:
            found |= loss_of(name).doubt
    return found
