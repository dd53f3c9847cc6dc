"""What a policy is: it gets the requests of a trace and says where each page lies."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

from replay.placement import Host, Placement
from replay.requests import Requests

__all__ = ["Outcome", "Policy"]


@dataclass(frozen=True)
class Outcome:
    """How a trace may have gone under a policy.

    Attributes:
        placements: one, or several where the trace does not tell which it would have been; results span them all.
        identity: nothing moved: the recorded kernel already does this, or made no request that it concerns.
        caveats: what the numbers do not say, one sentence each.
        narrow: what would narrow the intervals, one sentence each.
    """

    placements: list[Placement]
    identity: bool = False
    caveats: list[str] = field(default_factory=list)
    narrow: list[str] = field(default_factory=list)


class Policy(ABC):
    """One policy a file. Subclasses say in their docstring: source, mechanism, what is not modelled."""

    name: ClassVar[str]
    title: ClassVar[str]
    """One line for a table or a plot."""
    parameters: ClassVar[dict[str, str]] = {}
    """Name and meaning, with the value that is used."""

    @abstractmethod
    def place(self, requests: Requests, host: Host) -> Outcome:
        """Serve the requests. Must not look at what happens to the page tables."""
