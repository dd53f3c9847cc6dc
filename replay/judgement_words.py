"""The answer in two sentences: what happened, and whether a cache would have been worth it; and how sure that is, in clauses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from analyze.users import USER_LABELS
from analyze.words.numbers import count, duration, enumeration, memory, number
from collect.schema import HUGE_FRAME_PAGES
from replay.judgement import IN_LINUX, Judgement, Verdict
from replay.results import Interval

if TYPE_CHECKING:
    from analyze.report.page import State

__all__ = ["CACHE", "between", "happened", "headline", "idle_text", "judged", "percent", "sureness", "sureness_clauses"]

CACHE = "a __GFP_UNMAPPED cache"

_HEADLINES = {
    Verdict.NOTHING: "nothing to save",
    Verdict.LITTLE: "little to gain",
    Verdict.NO: "not worth it here",
    Verdict.NO_BETTER: "a rival does as well",
    Verdict.YES: "worth it here, for the map",
    Verdict.AT_A_PRICE: "worth it here, at a price",
    Verdict.UNKNOWN: "cannot be told",
    Verdict.NOT_ASKED: "not replayed",
}


def headline(found: Judgement) -> str:
    """The verdict in a few words, for a badge."""
    return _HEADLINES[found.verdict]


def happened(found: Judgement) -> str:
    """What was split, by whom, and which share of the memory that is: one sentence, as the replay counts it (distinct frames)."""
    how_long = f"In {duration(found.seconds)}," if found.seconds else "While this was recorded,"
    n, n_1g = found.base, found.base_1g
    if n.hi == 0 and n_1g.hi == 0:
        return f"{how_long} no frame of the direct map was split."
    frames = "frame" if n.lo == n.hi == 1 else "frames"
    giga = f" and {between(n_1g)} {'entry' if n_1g.lo == n_1g.hi == 1 else 'entries'} of 1G" if n_1g.hi else ""
    verb = "was" if frames == "frame" and not giga else "were"
    users = [(USER_LABELS.get(user, user), whose) for user, whose in found.by_user.items() if whose.hi]
    if len(users) == 1:
        by_whom = f", all by {users[0][0]}"
    else:
        by_whom = ": " + enumeration([f"{between(whose)} by {user}" for user, whose in users]) if users else ""
    return f"{how_long} {between(n)} {frames} of 2M{_of_memory(found, n)}{giga} {verb} split{by_whom}."


def judged(found: Judgement) -> str:
    """Whether the cache would have been worth it, beside its bound, its price and its best rival, and how sure that is: one sentence."""
    return f"{_verdict(found)}; {sureness(found)}."


def _verdict(found: Judgement) -> str:
    cache = f"{CACHE}{_on_top(found)}"
    subject = cache[0].upper() + cache[1:]
    if found.verdict == Verdict.NOTHING:
        return f"There was nothing for {CACHE} to save"
    if found.verdict == Verdict.LITTLE:
        return (
            f"{subject} had little to gain here: even a policy that knows the future saves at most "
            f"{count(int(found.most), 'frame')}{_of_memory(found, Interval(found.most, found.most))}"
        )
    if found.frames is None or found.saved is None:
        return f"No verdict on {CACHE}: it was not replayed (name gfp-unmapped with --policy)"
    instead = f"{between(found.frames)} frames split instead of {between(found.base)}{_floor(found)}"
    if found.verdict == Verdict.UNKNOWN:
        return f"Whether {cache} would have been worth it cannot be told: {instead}{_rival(found)}"
    if found.verdict == Verdict.NO:
        return f"{subject} would not have been worth it here: {instead}{_rival(found)}"
    held = f"{instead}, for {idle_text(found)}"
    if found.verdict == Verdict.NO_BETTER and found.rival is not None:
        return (
            f"{subject} would have been no better than {found.rival.policy}: {held}, beside {between(found.rival.frames)} for "
            f"{_held(found, found.rival.idle)}"
        )
    price = ", at a price" if found.verdict == Verdict.AT_A_PRICE else ""
    return f"{subject} would have been worth it here, for the map{price}: {held}{_rival(found)}"


def _not_replayed(found: Judgement) -> bool:
    return found.verdict not in (Verdict.NOTHING, Verdict.LITTLE) and (found.frames is None or found.saved is None)


def _on_top(found: Judgement) -> str:
    kept = [f"{name}" for name in found.kernel_caches]
    return f" on top of this kernel's own {enumeration(kept)}" if kept else ""


def _floor(found: Judgement) -> str:
    if found.bound is None:
        return ""
    if found.bound.exact:
        return f" (no policy does with fewer than {number(found.bound.lo)})"
    return f" (one that knows the future: {between(found.bound)})"


def _rival(found: Judgement) -> str:
    if found.rival is None:
        return ""
    if found.rival.frames.lo >= found.base.hi:
        return "; no other policy that was replayed saves anything"
    linux = ""
    if found.in_linux is not None:
        name, since = found.in_linux.policy, IN_LINUX[found.in_linux.policy]
        linux = f", and {name}, which Linux has since {since}, {between(found.in_linux.frames)}"
    return f"; its best rival, {found.rival.policy}, leaves {between(found.rival.frames)}{linux}"


def idle_text(found: Judgement) -> str:
    """What the cache holds idle, in memory."""
    return _held(found, found.idle) if found.idle is not None else ""


def _held(found: Judgement, idle: Interval) -> str:
    if idle.hi == 0:
        return "no memory idle"
    share = f" ({percent(idle.hi / found.memory_pages)} of the memory)" if found.memory_pages else ""
    return f"up to {memory(idle.hi)} idle{share}"


def sureness(found: Judgement) -> str:
    """How sure, as the end of a sentence."""
    if found.doubts:
        return f"this is in doubt, for {enumeration(list(found.doubts))}"
    told = "what was counted is sure" if _not_replayed(found) else "as a count this is sure"
    return f"{told}: the trace is exact{', though of emulated CPUs' if found.emulated else ''}"


def sureness_clauses(found: Judgement) -> list[tuple[State, str]]:
    """What bears on how sure the answer is: (state of a check, clause); "good", "doubt" or "none"."""
    clauses: list[tuple[State, str]] = [("good", _sentence(text)) for text in found.firm]
    clauses += [("doubt", _sentence(text)) for text in found.doubts]
    if found.frames is not None and found.frames.exact:
        clauses.append(("good", "The trace decides how many frames the cache would have split."))
    elif found.frames is not None:
        clauses.append(
            ("none", f"The trace leaves open how many frames the cache would have split: {between(found.frames)}.")
        )
    if found.frames_1g is not None and found.base_1g.hi:
        state: State = "good" if found.frames_1g.exact else "none"
        clauses.append(
            (
                state,
                f"1G entries: {between(found.base_1g)} were split as recorded, {between(found.frames_1g)} with the cache.",
            )
        )
    limits = found.thresholds
    if found.kernel_caches:
        clauses.append(
            (
                "none",
                f"What this kernel's own {enumeration(list(found.kernel_caches))} saves is in the recording already.",
            )
        )
    clauses.append(
        (
            "none",
            f"“Worth it” means: it saves at least {percent(limits.part)} of what can be saved at most, and that is at least "
            f"{percent(limits.little_share)} of the memory; with more than {percent(limits.idle_share)} of it idle, at a price. "
            "About the map alone: time needs costs.",
        )
    )
    clauses += [("none", f"Would narrow it: {text}") for text in found.narrow]
    return clauses


def _of_memory(found: Judgement, frames: Interval) -> str:
    if not found.memory_pages:
        return ""
    lo, hi = (percent(n * HUGE_FRAME_PAGES / found.memory_pages) for n in (frames.lo, frames.hi))
    return f" ({lo if lo == hi else f'{lo} to {hi}'} of the memory)"


def percent(part: float) -> str:
    """A share, with as many digits as tell it from 0."""
    digits = 0 if part in (0.0, 1.0) or (100 * part).is_integer() else 1 if part >= 0.001 else 2
    return f"{100 * part:.{digits}f}\N{NARROW NO-BREAK SPACE}%"


def between(n: Interval) -> str:
    """An interval with thousands apart as elsewhere in a report."""
    return number(n.lo) if n.exact else f"{number(n.lo)}–{number(n.hi)}"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."
