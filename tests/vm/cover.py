"""A pairwise cover: few combinations, in which every two values of two factors that can meet do meet.

Most faults that depend on a configuration depend on one or two of its values (Kuhn, Wallace and Gallo, "Software fault
interactions and implications for software testing", IEEE TSE 30(6), 2004), so such a cover finds them at a fraction of
the cells.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, product

__all__ = ["Cell", "cells", "cover", "pairs"]

Cell = tuple[object, ...]
"""One value of each factor, in the factors' order."""

Pair = tuple[int, int, object, object]
"""Two places in a cell, and the values that stand there."""


def cells(factors: Mapping[str, Sequence[object]], possible: Callable[..., bool]) -> list[Cell]:
    """Every combination that can exist; `possible` gets the factors by their names."""
    return [cell for cell in product(*factors.values()) if possible(**dict(zip(factors, cell, strict=True)))]


def pairs(cell: Cell) -> set[Pair]:
    """What a cell covers."""
    return {(i, j, cell[i], cell[j]) for i, j in combinations(range(len(cell)), 2)}


def cover(factors: Mapping[str, Sequence[object]], possible: Callable[..., bool]) -> list[Cell]:
    """A cover of all pairs that occur in any possible cell, in the factors' order; the same on every run.

    Greedy: the cell that covers most of what is left; of several such, the one whose values were used least, which
    keeps the last cells from all being the first one with one value changed.
    """
    candidates = cells(factors, possible)
    order = {cell: place for place, cell in enumerate(candidates)}
    left = set().union(*map(pairs, candidates))
    random.Random(0).shuffle(candidates)
    used: Counter[tuple[int, object]] = Counter()
    chosen: list[Cell] = []
    while left:
        best = max(candidates, key=lambda cell: (len(pairs(cell) & left), -sum(used[at] for at in enumerate(cell))))
        chosen.append(best)
        left -= pairs(best)
        used.update(enumerate(best))
    return sorted(chosen, key=order.__getitem__)
