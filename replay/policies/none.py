"""No cache: what was recorded."""

from __future__ import annotations

from replay.placement import Host, as_recorded
from replay.policies.base import Outcome, Policy
from replay.requests import Requests

__all__ = ["NoCache"]


class NoCache(Policy):
    """Each request on the frames that the recorded kernel gave it.

    Source: the recording. Mechanism: none; if the recorded kernel groups its pages already (packs, a ROX cache), so
    does this. It goes through the same carrying over of changes as every other policy, so it must give back the
    recording exactly: the engine's own test.
    """

    name = "none"
    title = "as recorded"

    def place(self, requests: Requests, host: Host) -> Outcome:
        return Outcome([as_recorded(requests)], identity=True)
