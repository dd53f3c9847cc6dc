"""The health of a trace for the page."""

from __future__ import annotations

from analyze.health import BROKEN, DOUBTED, SOUND, Health, Lost
from analyze.report.page import Check, HealthView, State
from analyze.words.health import NOTHING_LOST, clock_text, consistency_text, explained_text, levels_text, verdict_text

__all__ = ["health_view"]

MAX_SPANS = 8

_STATES: dict[str, State] = {SOUND: "good", DOUBTED: "doubt", BROKEN: "bad"}


def health_view(found: Health) -> HealthView:
    """Verdict, each conclusion with what puts it in doubt, and what was counted."""
    state, text = verdict_text(found).split(": ", 1)
    return HealthView(
        verdict=Check(state, _STATES[found.verdict], _sentence(text)),
        conclusions=[
            Check(
                f"In doubt: {conclusion.text}" if conclusion.in_doubt else f"Holds: {conclusion.text}",
                "doubt" if conclusion.in_doubt else "good",
                _sentence("; ".join(conclusion.why)) if conclusion.why else "",
            )
            for conclusion in found.conclusions
        ],
        facts=_facts(found),
    )


def _facts(found: Health) -> list[tuple[str, str]]:
    facts = [("lost", "; ".join(_lost(lost) for lost in found.losses) or NOTHING_LOST)]
    if found.explained:
        facts.append(("explained", explained_text(found.explained)))
    facts.append(("consistent", consistency_text(found)))
    if found.levels:
        facts.append(("counters", levels_text(found)))
    facts.append(("clock", clock_text(found)))
    return facts


def _lost(lost: Lost) -> str:
    spans = ", ".join(f"{span.from_s:.0f}–{span.to_s:.0f} s: {span.lost:,}" for span in lost.spans[:MAX_SPANS])
    more = f", {lost.n_spans - MAX_SPANS} more" if lost.n_spans > MAX_SPANS else ""
    return f"{lost.lost:,} {lost.text} ({spans}{more})" if spans else f"{lost.lost:,} {lost.text}, counted at the end"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."
