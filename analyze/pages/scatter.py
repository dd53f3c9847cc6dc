"""Scattered or dense: how full the frames are that special pages keep split, and how far apart they lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from analyze.directmap import FRAME, GIGA

__all__ = ["BUCKETS", "Scatter", "scatter", "scatter_by"]

BUCKETS = ((1, 1), (2, 7), (8, 63), (64, FRAME - 1), (FRAME, FRAME))
"""Special pages per frame: first and last number of each class."""


@dataclass(frozen=True)
class Scatter:
    """How some special pages lie.

    Attributes:
        pages: how many.
        frames: 2M frames that hold at least one.
        least: the least number of 2M frames that so many pages fit in: pages / 512, rounded up.
        gigas: 1G ranges that hold at least one.
        median, most: special pages in a frame that has any: the middle one, and the fullest.
        by_fullness: frames in each class of `BUCKETS`.
    """

    pages: int
    frames: int
    least: int
    gigas: int
    median: float
    most: int
    by_fullness: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        names = (str(first) if first == last else f"{first}-{last}" for first, last in BUCKETS)
        return {**self.__dict__, "by_fullness": dict(zip(names, self.by_fullness, strict=True))}


def scatter(pfn: npt.NDArray[np.int64]) -> Scatter:
    """Of distinct page frames."""
    per_frame = np.unique(pfn // FRAME, return_counts=True)[1]
    return Scatter(
        pages=len(pfn),
        frames=len(per_frame),
        least=-(-len(pfn) // FRAME),
        gigas=len(np.unique(pfn // GIGA)),
        median=float(np.median(per_frame)) if len(per_frame) else 0.0,
        most=int(per_frame.max()) if len(per_frame) else 0,
        by_fullness=tuple(int(((per_frame >= first) & (per_frame <= last)).sum()) for first, last in BUCKETS),
    )


def scatter_by(live: pd.DataFrame) -> dict[str, Scatter]:
    """By user, most frames first, of live special pages (columns user, pfn)."""
    parts = {str(user): scatter(part["pfn"].to_numpy(np.int64)) for user, part in live.groupby("user", sort=True)}
    return dict(sorted(parts.items(), key=lambda item: (-item[1].frames, item[0])))
