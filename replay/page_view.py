"""What a page shows of a replay: the answer, each policy beside the recording and the bound, how sure that is, and what it does not say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from analyze.page import Check, Picture
from analyze.plots_style import inline_svg
from replay.judgement import Judgement, Verdict
from replay.judgement_words import between, happened, headline, judged, sureness_clauses
from replay.plots import split_figure
from replay.plots_saved import in_order, saved_figure
from replay.results import Interval, PolicyResult

__all__ = ["JudgedView", "PolicyView", "ReplayView", "judged_view", "replay_view"]

_STATES = {Verdict.YES: "good", Verdict.AT_A_PRICE: "doubt", Verdict.UNKNOWN: "doubt"}


@dataclass(frozen=True)
class JudgedView:
    """The answer: two sentences, and the second in a few words; `state` is a key of a check's states."""

    happened: str
    judged: str
    headline: str
    state: str


@dataclass(frozen=True)
class PolicyView:
    """A row of the comparison, in words."""

    name: str
    title: str
    split_2m: str
    split_1g: str
    live: str
    entries: str
    flushes: str
    idle: str
    refills: str
    not_served: str
    caveats: Sequence[str]
    narrow: Sequence[str]


@dataclass(frozen=True)
class ReplayView:
    """`shared`: caveats that every policy has."""

    policies: Sequence[PolicyView]
    sure: Sequence[Check]
    saved: Picture
    over_time: Picture
    shared: Sequence[str]
    files: Sequence[str]


def judged_view(found: Judgement) -> JudgedView:
    """For the top of a page."""
    return JudgedView(happened(found), judged(found), headline(found), _STATES.get(found.verdict, "none"))


def replay_view(
    results: Sequence[PolicyResult],
    found: Judgement | None,
    *,
    slug: str = "trace",
    files: dict[str, list[str]] | None = None,
) -> ReplayView:
    """The section of a page.

    Args:
        found: what `judge` said of these results.
        slug: ASCII word that tells this trace from others on the page.
        files: beside the page, for the pictures `saved` and `split`, and for `numbers`.
    """
    files = files or {}
    shared = [text for text in results[0].caveats if all(text in r.caveats for r in results)] if results else []
    ends = "; ".join(f"{r.policy} {r.split_2m}" for r in results)
    clauses = sureness_clauses(found) if found is not None else []
    return ReplayView(
        policies=[_policy(result, shared) for result in in_order(results)],
        sure=[Check(text, state, "") for state, text in clauses],
        saved=Picture(
            Markup(
                inline_svg(saved_figure(results), f"{slug}-saved-plot", f"2M frames split under each policy: {ends}.")
            ),
            "Solid: what the policy leaves for sure; hatched: what the trace alone does not decide. Dotted line: as recorded. No policy can "
            "do better than clairvoyant's lower end; its upper end is a packing that was found.",
            files.get("saved", ()),
        ),
        over_time=Picture(
            Markup(
                inline_svg(
                    split_figure(results), f"{slug}-replay", f"2M frames split over time by policy, at the end: {ends}."
                )
            ),
            "2M frames split over time under each policy, and what it holds idle; a band where the trace does not decide.",
            files.get("split", ()),
        ),
        shared=shared,
        files=files.get("numbers", ()),
    )


def _policy(result: PolicyResult, shared: Sequence[str]) -> PolicyView:
    flushes = _sum(result.tlb_flushes_split, result.tlb_flushes_call, result.tlb_flushes_ranged)
    return PolicyView(
        name=result.policy,
        title=result.title,
        split_2m=between(result.split_2m),
        split_1g=between(result.split_1g),
        live=between(result.split_2m_live_end),
        entries=between(result.leaf_entries_end),
        flushes=between(flushes),
        idle=between(result.idle_pages_peak),
        refills=f"{between(_sum(*result.refills.values()))} ({between(result.refill_failures)})",
        not_served=between(result.requests_not_served),
        caveats=[text for text in result.caveats if text not in shared],
        narrow=result.narrow,
    )


def _sum(*intervals: Interval) -> Interval:
    return Interval(sum(i.lo for i in intervals), sum(i.hi for i in intervals))
