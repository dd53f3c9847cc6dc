"""How far to believe what is said of a trace's map and of who changed it, in one line each."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from analyze.losses import Doubt, lost_for
from analyze.words.terminal import counted

if TYPE_CHECKING:
    from analyze.verify import Verification

__all__ = ["Trust", "trust"]


@dataclass(frozen=True)
class Trust:
    """What `verify` found, as it bears on numbers of splits and of who made them.

    Attributes:
        exact: the state is proven page by page (`Verification.exact`).
        lost_of_map, lost_of_who: events lost that put the state in doubt, or who made a change.
        map, who: the same in words.
    """

    exact: bool
    lost_of_map: int
    lost_of_who: int
    map: str
    who: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def trust(verified: Verification) -> Trust:
    """In words: what was compared, or why there is doubt."""
    difference = verified.difference
    of_map, of_who = verified.lost_of_map, lost_for(verified.lost, Doubt.WHO | Doubt.REGIONS)
    if verified.exact and difference is not None:
        words = f"exact: {difference.pages:,} pages compared with the page tables"
    elif of_map:
        words = f"in doubt: {counted(of_map, 'event')} lost, so splits are a lower bound (see verify)"
    elif difference is None:
        words = "NOT CHECKED: no end snapshot to compare with (see verify)"
    else:
        words = f"in doubt: {_against(verified)} (see verify)"
    who = "by stack, process and region, none of them lost"
    if of_who:
        who = f"in doubt: {counted(of_who, 'event')} lost that tell who; what lacks them is called other"
    return Trust(verified.exact, of_map, of_who, words, who)


def _against(verified: Verification) -> str:
    """What keeps a trace that lost nothing from being exact; the first that does."""
    difference = verified.difference
    if difference is not None and difference.level + difference.attributes:
        return f"{counted(difference.level + difference.attributes, 'page')} unlike the page tables"
    between = sum(check.wrong for check in verified.between)
    if between:
        return f"{counted(between, 'page')} unlike the page tables in between"
    if verified.unfinished:
        return f"the return of {counted(verified.unfinished, 'call')} was not seen"
    if verified.rule_count:
        return f"{counted(verified.rule_count, 'time')} the probe saw what no rule predicts"
    return "other splits were seen or counted than were rebuilt"
