"""The policies by name. To add one: a file here with a subclass of `Policy`, and a line below.

Other packages add theirs by an entry point of the group `directmap.policies` (see `replay.policies.choose`).
"""

from __future__ import annotations

from replay.policies.base import Outcome, Parameter, Policy
from replay.policies.clairvoyant import Clairvoyant
from replay.policies.gfp_unmapped import GfpUnmapped
from replay.policies.grouped import Grouped
from replay.policies.migrate_unmapped import MigrateUnmapped
from replay.policies.none import NoCache
from replay.policies.pageblock_flip import PageblockFlip
from replay.policies.prog_pack import ProgPack
from replay.policies.rox_cache import RoxCache
from replay.policies.secretmem_pool import SecretmemPool
from replay.policies.ungrouped import Ungrouped

__all__ = ["CLASSES", "POLICIES", "Outcome", "Parameter", "Policy"]

CLASSES: dict[str, type[Policy]] = {
    policy.name: policy
    for policy in (
        NoCache,
        Ungrouped,
        ProgPack,
        RoxCache,
        GfpUnmapped,
        MigrateUnmapped,
        Grouped,
        PageblockFlip,
        SecretmemPool,
        Clairvoyant,
    )
}

POLICIES: dict[str, Policy] = {name: policy() for name, policy in CLASSES.items()}
"""With every parameter at its default."""
