"""Large entries put back as soon as nothing keeps them apart, on top of any policy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from collect.schema import Pte
from replay.placement import Host
from replay.policies.base import Outcome, Parameter, Policy
from replay.requests import Requests

__all__ = ["SUFFIX", "EagerMerge"]

SUFFIX = "+merge"

_HARDWARE = int(Pte.A | Pte.D)


class EagerMerge(Policy):
    """Another policy, and frames become one 2M entry again as soon as all their pages are alike; then 1G entries.

    Source: Aaron Lu, "[RFC PATCH 0/4] x86/mm/cpa: merge splitted direct mapping when possible", 2022-08-08,
    20220808145649.2261258-1-aaron.lu@intel.com.

    Mechanism: see `replay.books`. Each merge flushes every TLB. It acts on whatever is changed while the trace runs, also in
    frames that were split before; on what nobody touches it does not.

    G is lost for good where a page was not present (pgprot_clear_protnone_bits), so with `global=kept` a frame that had one such
    page never merges again, unless the machine has no G in its direct map (page-table isolation).

    Not modelled: attributes that KFENCE changes behind CPA's back (its pool is never merged).
    """

    name = "merge"
    title = "eager merge (RFC 2022)"
    parameters: ClassVar[dict[str, Parameter]] = {
        "global": Parameter("ignored", "whether entries that differ in G alone are alike", ("ignored", "kept")),
    }

    def __init__(self, inner: Policy, settings: Mapping[str, str] | None = None) -> None:
        super().__init__(settings)
        self.inner = inner
        self.title = f"{inner.title}, and eager merge"
        self.label = inner.label + SUFFIX
        self.merge_ignoring = _HARDWARE | (int(Pte.G) if self.word("global") == "ignored" else 0)

    @property
    def as_asked(self) -> bool:
        return self.inner.as_asked

    def place(self, requests: Requests, host: Host) -> Outcome:
        outcome = self.inner.place(requests, host)
        return Outcome(
            outcome.placements,
            identity=False,
            caveats=[
                *outcome.caveats,
                "Merging acts on frames that are changed while the trace runs; what was split before and is let alone stays.",
            ],
            narrow=outcome.narrow,
        )
