"""The policies by name. To add one: a file here with a subclass of `Policy`, and a line below."""

from __future__ import annotations

from replay.policies.base import Outcome, Policy
from replay.policies.gfp_unmapped import GfpUnmapped
from replay.policies.none import NoCache
from replay.policies.prog_pack import ProgPack

__all__ = ["POLICIES", "Outcome", "Policy"]

POLICIES: dict[str, Policy] = {policy.name: policy for policy in (NoCache(), GfpUnmapped(), ProgPack())}
