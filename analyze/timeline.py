"""Leaf entries and splits over time, in equal steps."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analyze.attribute import Attribution
from analyze.reconstruct import Rebuild
from analyze.users import USER_NAMES
from analyze.when import Span
from collect.schema import Level

__all__ = ["MAX_STEPS", "timeline"]

MAX_STEPS = 100_000


def timeline(rebuilt: Rebuild, attribution: Attribution, span: Span, n_steps: int) -> pd.DataFrame:
    """What the map came to in each of `n_steps` equal steps.

    Returns one row per moment, the first at the start and one at the end of each step: ts_ns, seconds (since the start of
    the recording), k4, m2, g1 (leaf entries then), splits_2m, splits_1g (since the row before), and for each user the
    entries that it split since then (2M and 1G).
    """
    n_steps = min(max(n_steps, 1), MAX_STEPS)
    steps = np.arange(n_steps + 1)
    length = span.last_ns - span.first_ns
    ts = span.first_ns + length // n_steps * steps + length % n_steps * steps // n_steps  # no overflow, no rounding
    levels, splits = rebuilt.levels, attribution.splits
    at = np.maximum(np.searchsorted(levels["ts_ns"].to_numpy(np.int64), ts, "right") - 1, 0)
    table = pd.DataFrame({"ts_ns": ts, "seconds": (ts - span.zero_ns) / 1e9})
    for name in ("k4", "m2", "g1"):
        table[name] = levels[name].to_numpy(np.int64)[at]
    split_ns = rebuilt.changes.effect_ns[splits["row"].to_numpy(np.int64)]
    step = np.searchsorted(ts, split_ns, "left").clip(max=n_steps)
    of_2m = (splits["level"] == Level.M2).to_numpy(np.bool_)
    table["splits_2m"] = np.bincount(step[of_2m], minlength=n_steps + 1)
    table["splits_1g"] = np.bincount(step[~of_2m], minlength=n_steps + 1)
    user = splits["user"].to_numpy(object)
    for name in USER_NAMES:
        table[name] = np.bincount(step[user == name], minlength=n_steps + 1)
    return table
