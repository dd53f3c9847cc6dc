"""The cells of `make test-kernels`: every pair that can exist is in one of them, and there are few."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import combinations, product
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vm.cover import cells, cover, pairs
from tests.vm.matrix import FACTORS, possible

ROOT = Path(__file__).parents[2]


@st.composite
def systems(draw: st.DrawFn) -> tuple[dict[str, tuple[str, ...]], set[tuple[str, str]]]:
    """Two to five factors of one to four values, and some pairs of values that exclude each other."""
    sizes = draw(st.lists(st.integers(1, 4), min_size=2, max_size=5))
    factors = {f"f{i}": tuple(f"{i}:{j}" for j in range(size)) for i, size in enumerate(sizes)}
    values = [value for factor in factors.values() for value in factor]
    barred = draw(st.sets(st.tuples(st.sampled_from(values), st.sampled_from(values)), max_size=4))
    return factors, barred


@settings(deadline=None)
@given(systems())
def test_every_pair_that_can_exist_is_covered_and_no_impossible_cell_is_chosen(
    system: tuple[dict[str, tuple[str, ...]], set[tuple[str, str]]],
) -> None:
    factors, barred = system

    def allowed(**cell: str) -> bool:
        return not any(pair in barred for pair in combinations(cell.values(), 2))

    wanted = set().union(*map(pairs, cells(factors, allowed)))
    chosen = cover(factors, allowed)
    assert set().union(*map(pairs, chosen)) == wanted
    assert all(allowed(**dict(zip(factors, cell, strict=True))) for cell in chosen)
    assert len(chosen) == len(set(chosen))


def test_the_matrix_of_kernels_covers_all_its_pairs_in_sixteen_cells() -> None:
    """Sixteen is the least: four kernels, each with four numbers of CPUs."""
    chosen = cover(FACTORS, possible)
    covered = set().union(*map(pairs, chosen))
    for (i, first), (j, second) in combinations(enumerate(FACTORS), 2):
        for a, b in product(FACTORS[first], FACTORS[second]):
            exists = {first: a, second: b} != {"kernel": "5.10", "levels": 5}
            assert ((i, j, a, b) in covered) == exists, f"{first} {a} with {second} {b}"
    assert len(chosen) == 16


def test_the_cover_is_the_same_in_every_process() -> None:
    """Else a matrix that was interrupted would go on with other cells."""
    program = "from tests.vm.cover import cover; from tests.vm.matrix import FACTORS, possible; print(cover(FACTORS, possible))"
    seen = {
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert seen == {f"{cover(FACTORS, possible)}\n"}
