"""What a policy is: it gets the requests of a trace and says where each page lies."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from collect.errors import TraceError
from replay.placement import Host, Placement
from replay.requests import Requests

__all__ = ["VIEW", "Outcome", "Parameter", "Policy"]


@dataclass(frozen=True)
class Outcome:
    """How a trace may have gone under a policy.

    Attributes:
        placements: one, or several where the trace does not tell which it would have been; results span them all.
        identity: nothing moved: the recorded kernel already does this, or made no request that it concerns.
        caveats: what the numbers do not say, one sentence each.
        narrow: what would narrow the intervals, one sentence each.
        expected: which of the placements is held for the likeliest, where its blocks split no 1G entry that was not split
            anyway; None: none of them.
    """

    placements: list[Placement]
    identity: bool = False
    caveats: list[str] = field(default_factory=list)
    narrow: list[str] = field(default_factory=list)
    expected: int | None = None


@dataclass(frozen=True)
class Parameter:
    """Something of a policy that can be set.

    Attributes:
        default: its value; the type says which values there are.
        meaning: one line, with the source of the default.
        choices: of a word, those allowed.
        lowest, highest: of a number.
        unit: of a number.
    """

    default: str | int
    meaning: str
    choices: tuple[str, ...] = ()
    lowest: int = 0
    highest: int = 0
    unit: str = ""

    def parse(self, text: str) -> str | int:
        """Raises ValueError, which says what there is instead."""
        if isinstance(self.default, int):
            if not text.isdecimal() or not self.lowest <= int(text) <= self.highest:
                raise ValueError(f"a number from {self.lowest} to {self.highest}")
            return int(text)
        if text not in self.choices:
            raise ValueError(" or ".join(self.choices))
        return text

    @property
    def values(self) -> str:
        """What may be given, for a list."""
        if isinstance(self.default, int):
            return f"{self.lowest} to {self.highest}{' ' if self.unit else ''}{self.unit}"
        return ", ".join(self.choices)


VIEW = Parameter(
    "backed",
    "what is served: what the recorded kernel's own caches took (backed), or what was asked of them (asked), as if the "
    "kernel had neither packs nor a ROX cache",
    ("backed", "asked"),
)


class Policy(ABC):
    """One policy a file. Subclasses say in their docstring: source, mechanism, what is not modelled."""

    name: ClassVar[str]
    title: str
    """One line for a table or a plot."""
    parameters: ClassVar[dict[str, Parameter]] = {}
    """By name. `requests` (usually `VIEW`) says which view of the requests `place` gets; without it, the one as backed."""

    def __init__(self, settings: Mapping[str, str] | None = None) -> None:
        """Raises TraceError for a parameter or a value that does not exist."""
        self.settings: dict[str, str | int] = {name: p.default for name, p in self.parameters.items()}
        self.label = self.name
        """Name and what was set, for a column of results."""
        self.merge_ignoring: int | None = None
        """`Pte` bits that do not keep entries from merging again; None: they never merge."""
        for name, text in (settings or {}).items():
            if name not in self.parameters:
                there = ", ".join(self.parameters) or "none"
                raise TraceError(f"policy {self.name} has no parameter {name[:60]!r}; it has: {there}")
            try:
                self.settings[name] = self.parameters[name].parse(text)
            except ValueError as error:
                raise TraceError(f"{self.name}.{name} cannot be {text[:60]!r}; give {error}") from None

    def word(self, name: str) -> str:
        """Value of a parameter that is a word."""
        return str(self.settings[name])

    def number(self, name: str) -> int:
        """Value of a parameter that is a number."""
        return int(self.settings[name])

    @property
    def as_asked(self) -> bool:
        """Which view of the requests `place` gets."""
        return self.settings.get("requests") == "asked"

    @abstractmethod
    def place(self, requests: Requests, host: Host) -> Outcome:
        """Serve the requests. Must not look at what happens to the page tables."""
