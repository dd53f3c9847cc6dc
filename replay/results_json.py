"""Results for programs, as docs/json.md says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from replay.costs import Costs
from replay.judgement import Judgement
from replay.judgement_words import happened, judged
from replay.pricing import costs_json, priced
from replay.results import PolicyResult

__all__ = ["results_json"]


def results_json(
    results: Sequence[PolicyResult], costs: Costs | None = None, found: Judgement | None = None
) -> dict[str, Any]:
    """What `run --json` prints. Prices are held against `none`, which is then among the results; without it `answer` and
    `judgement` are null.
    """
    return {
        "answer": None if found is None else f"{happened(found)} {judged(found)}",
        "judgement": None if found is None else found.to_json(),
        **costs_json(costs),
        "results": [
            {**result.to_json(), "priced": None if costs is None else priced(result, results, costs).to_json()}
            for result in results
        ],
    }
