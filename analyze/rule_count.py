"""How many changes of a trace exercised each rule: what a trace can prove, and what it never met."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from analyze.directmap import FRAME
from analyze.entries import RULES
from analyze.reconstruct import Rebuild
from analyze.rule_names import N_COUNTED, Rule
from collect.schema import ChangeKind, Cpa, Space

__all__ = ["count_rules"]

_KERNEL_4K = np.uint64(1 << 11)


def count_rules(rebuilt: Rebuild) -> dict[Rule, int]:
    """Every rule with the number of changes that met it, 0 included; changes outside of the snapshots' times meet none."""
    met = rebuilt.final.entries.meta[RULES : RULES + 2 * N_COUNTED : 2].tolist()
    found = {rule: int(met[rule]) for rule in Rule if rule < N_COUNTED}
    changes = rebuilt.changes
    columns = changes.columns
    cpa = columns["kind"] == ChangeKind.CPA
    direct = cpa & changes.direct
    nested = (columns["parent_id"] != 0) & (columns["check_alias"] == 0)
    in_direct = nested & np.isin(columns["parent_id"], columns["call_id"][direct])
    failed = direct & (columns["ret"] != 0)
    of_columns: dict[Rule, npt.NDArray[np.bool_]] = {
        Rule.ALIAS: direct & nested & ~in_direct,
        Rule.ALIAS_IMAGE: cpa & nested & (columns["space"] == Space.KERNEL_IMAGE),
        Rule.DECOY: direct & np.isin(columns["call_id"], columns["parent_id"][in_direct & direct]),
        Rule.PAGES_ARRAY: direct & (changes.pfns_start[1:] > changes.pfns_start[:-1]),
        Rule.FAILED: failed & (changes.n_done == 0),
        Rule.FAILED_HALFWAY: failed & (changes.n_done > 0),
        Rule.PAGE_DIRECTORY: direct & (columns["has_pgd"] != 0),
        Rule.KERNEL_4K: direct & ((columns["mask_set"] & _KERNEL_4K) != 0),
        Rule.NO_ALIAS: cpa & ~nested & (((columns["flags"] & int(Cpa.NO_CHECK_ALIAS)) != 0) | (columns["check_alias"] == 0)),
        Rule.OVERLAPPED: direct & ~in_direct & _overlapped(rebuilt, direct & ~in_direct),
    }  # fmt: skip
    return found | {rule: int(rows.sum()) for rule, rows in of_columns.items()}


def _overlapped(rebuilt: Rebuild, rows: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Changes that began before another in the 2M frame of their first page was done."""
    at = np.flatnonzero(rows)
    changes = rebuilt.changes
    calls = pd.DataFrame(
        {
            "row": at,
            "frame": changes.first_pfn[at] // FRAME,
            "entry": changes.columns["ts_ns"][at],
            "leave": changes.exit_ns[at],
        }
    ).sort_values(["frame", "entry"], kind="stable")
    by_frame = calls.groupby("frame", sort=False)["leave"]
    until = by_frame.cummax().groupby(calls["frame"], sort=False).shift(1, fill_value=0)
    found = np.zeros(len(rows), np.bool_)
    found[calls["row"][(calls["entry"] < until).to_numpy()]] = True
    return found
