"""What a page shows of a replay: the answer, each policy beside the recording and the bound, how sure that is, and what it does not say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from analyze.plots.style import inline_svg
from analyze.report.page import Check, Picture, plain
from replay.costs import Costs
from replay.judgement import Judgement, Verdict, frames_apart
from replay.judgement_words import between, happened, headline, judged, sureness_clauses
from replay.measures import summed
from replay.plots import split_figure
from replay.plots_saved import in_order, puts_together, saved_figure
from replay.pricing import priced
from replay.pricing_text import amount
from replay.published import RESULTS
from replay.results import PolicyResult

__all__ = ["JudgedView", "PolicyView", "ReplayView", "frames_split", "judged_view", "replay_view"]

_STATES = {Verdict.YES: "good", Verdict.AT_A_PRICE: "doubt", Verdict.UNKNOWN: "doubt"}


@dataclass(frozen=True)
class JudgedView:
    """The answer: two sentences, and the second in a few words, and `short` with two numbers; `state` is a key of a check's states."""

    happened: str
    judged: str
    headline: str
    short: str
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
class CostsView:
    """Prices: for each policy and unit what all costs and what is saved; each cost with its source; what is not priced, and why."""

    title: str
    rows: Sequence[tuple[str, str, str]]
    notes: Sequence[str]
    published: Sequence[str]


@dataclass(frozen=True)
class ReplayView:
    """`shared`: caveats that every policy has; `costs`: None where nothing was priced."""

    policies: Sequence[PolicyView]
    sure: Sequence[Check]
    saved: Picture
    over_time: Picture
    costs: CostsView | None
    shared: Sequence[str]
    files: Sequence[str]


def judged_view(found: Judgement) -> JudgedView:
    """For the top of a page."""
    short = headline(found)
    if found.frames is not None:
        short += f": {between(found.base)} → {between(found.frames)}"
    return JudgedView(happened(found), judged(found), headline(found), short, _STATES.get(found.verdict, "none"))


def frames_split(result: PolicyResult) -> str:
    """For a cell: 2M frames ever split; where a policy puts them together, also how many are apart at once, which the pictures draw."""
    apart = f" ({between(frames_apart(result))} at once)" if puts_together(result) else ""
    return f"{between(result.split_2m)}{apart}"


def replay_view(
    results: Sequence[PolicyResult],
    found: Judgement | None,
    costs: Costs | None = None,
    *,
    slug: str = "trace",
    files: dict[str, list[str]] | None = None,
) -> ReplayView:
    """The section of a page.

    Args:
        found: what `judge` said of these results.
        costs: by which they are priced; `none` is then among them.
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
        costs=_costs(in_order(results), costs) if costs is not None else None,
        shared=shared,
        files=files.get("numbers", ()),
    )


def _costs(results: Sequence[PolicyResult], costs: Costs) -> CostsView:
    prices = [(result.policy, priced(result, results, costs)) for result in results]
    items = {item.cost.key: item.cost for _, pricing in prices for item in pricing.items}
    reasons: dict[str, list[str]] = {}
    for key, why in {key: why for _, pricing in prices for key, why in pricing.not_priced.items()}.items():
        reasons.setdefault(why, []).append(key)
    notes = [
        f"{cost.key}: {amount(cost.each, cost.unit)} each ({cost.measured}; {cost.source}). {cost.note}".strip()
        for cost in items.values()
    ]
    notes += [f"Not priced: {', '.join(keys)}; {why}." for why, keys in reasons.items()]
    return CostsView(
        title=plain(f"{costs.name} ({costs.title})" if costs.title else costs.name),
        rows=[
            (policy if i == 0 else "", amount(total, unit), amount(pricing.saved[unit], unit))
            for policy, pricing in prices
            for i, (unit, total) in enumerate(pricing.totals.items())
        ],
        notes=[plain(note, 600) for note in notes],
        published=[f"{one.who}: {one.found} ({one.source})" for one in RESULTS],
    )


def _policy(result: PolicyResult, shared: Sequence[str]) -> PolicyView:
    flushes = summed(result.tlb_flushes_split, result.tlb_flushes_call, result.tlb_flushes_ranged)
    return PolicyView(
        name=result.policy,
        title=result.title,
        split_2m=frames_split(result),
        split_1g=between(result.split_1g),
        live=between(result.split_2m_live_end),
        entries=between(result.leaf_entries_end),
        flushes=between(flushes),
        idle=between(result.idle_pages_peak),
        refills=f"{between(summed(*result.refills.values()))} ({between(result.refill_failures)})",
        not_served=between(result.requests_not_served),
        caveats=[text for text in result.caveats if text not in shared],
        narrow=result.narrow,
    )
