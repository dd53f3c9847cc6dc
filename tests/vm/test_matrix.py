"""What `make test-kernels` makes of its cells' results: which count, which run again, and what the tables say."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from tests.vm.errors import LabError
from tests.vm.matrix import MachineCell, Tool
from tests.vm.matrix_tables import BEGIN, END, Row, kernels_page, readme_table, with_table

ROOT = Path(__file__).parents[2]
TOOL = Tool(commit="0123456789ab", collect="c" * 40, analyze="a" * 40, dirty=False)
BIG = MachineCell("6.1", 5, "amd64", 2, 12)
SMALL = MachineCell("5.10", 4, "cloud-amd64", 1, 4)
NOT_RUN = MachineCell("7.2", 4, "amd64", 4, 12)


def result(cell: MachineCell, **verify: Any) -> dict[str, Any]:
    """What a good cell's JSON holds."""
    splits = {"found_2m": 60, "found_1g": 2, "agree": True, "counted_2m": 60}
    counts: dict[str, Any] = {"level_mismatches": 0, "attribute_mismatches": 0, "lost_events": 0}
    counts["between"] = {
        "snapshots": 3,
        "pages_compared": 9,
        "frames_read_again": 17,
        **dict.fromkeys(list(counts)[:2], 0),
    }
    counts["exceptions"] = {"accessed_dirty_pages": 23, "kfence_pages": 512}
    return {
        "cell": asdict(cell),
        "tool": asdict(TOOL),
        "date": "2026-01-02T03:04:05+00:00",
        "good": True,
        "release": f"{cell.kernel}.0-9-{cell.flavour}",
        "start": {"4k": 1000, "2m": 500, "1g": 8},
        "verify": {"exact": True, "pages_compared": 3_145_690, "changes": 9518, "splits": splits, **counts} | verify,
    }


def row(cell: MachineCell, told: dict[str, Any] | None) -> Row:
    return cell.name, asdict(cell), told


def lines_of(page: str, start: str) -> list[str]:
    return [line for line in page.splitlines() if line.startswith(start)]


def test_a_result_counts_only_for_the_very_trees_that_made_it() -> None:
    assert TOOL.same(asdict(TOOL))
    assert TOOL.same(asdict(replace(TOOL, commit="another"))), "a commit that leaves both packages alone"
    for other in (replace(TOOL, collect="d" * 40), replace(TOOL, analyze="d" * 40), replace(TOOL, dirty=True)):
        assert not TOOL.same(asdict(other)) and not other.same(asdict(TOOL))
    assert not replace(TOOL, dirty=True).same(asdict(replace(TOOL, dirty=True))), (
        "nobody knows which changes those were"
    )


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout; run it in one: git clone")
def test_the_checkout_names_its_own_trees() -> None:
    here = Tool.here()
    assert len(here.collect) == len(here.analyze) == 40 and here.collect != here.analyze


def test_the_page_has_a_row_for_every_cell_run_or_not() -> None:
    page = kernels_page([row(BIG, result(BIG)), row(NOT_RUN, None)], TOOL.same)
    assert (
        "| 6.1.0-9-amd64 | 5-level | 2 | 12 GB | 8 | 9,518 | 60 | 2 | agrees | 0 | 3,145,699 | 3 | 17 | 0 | 23, 512 | yes |"
        in page
    )
    assert lines_of(page, f"| {NOT_RUN.name} | 4-level | 4 | 12 GB |")[0].endswith("| not run |")
    assert "* tool: `0123456789ab`" in page and "* date: 2026-01-02\n" in page
    assert "†" not in page and "`-`" not in page


def test_a_guest_without_1g_entries_says_so_whatever_its_memory() -> None:
    """The start snapshot decides: 4 GB with such entries has a number, 12 GB without has none."""
    with_1g = kernels_page([row(SMALL, result(SMALL))], TOOL.same)
    assert "| 4 GB | 8 | 9,518 | 60 | 2 |" in with_1g and "`-`" not in with_1g
    without = kernels_page([row(BIG, result(BIG) | {"start": {"4k": 1, "2m": 2, "1g": 0}})], TOOL.same)
    assert "| 12 GB | - | 9,518 | 60 | - |" in without and "`-`: the start snapshot" in without


def test_a_kernel_without_counters_is_not_said_to_agree() -> None:
    splits = {"found_2m": 96, "found_1g": 0, "agree": None, "counted_2m": None}
    page = kernels_page([row(SMALL, result(SMALL, splits=splits))], TOOL.same)
    assert "| none |" in page and "agrees" not in page


def test_a_failed_cell_is_in_both_tables_with_its_reason() -> None:
    told = result(BIG, lost_events=1, exact=False) | {"good": False, "why": "1 lost: regions_programs_not_run"}
    rows = [row(BIG, told), row(SMALL, {"good": False, "why": "no guest", "tool": asdict(TOOL), "date": told["date"]})]
    page = kernels_page(rows, TOOL.same)
    assert "**no**: 1 lost: regions_programs_not_run |" in page and "**no**: no guest |" in page
    short = readme_table(rows)
    assert "| 6.1.0-9 | 0 of 1 | 5 levels | 2 | 12 GB | 9,518 | 60, 2 | 3 | 3,145,699 | 0 | 1 |" in short
    assert "| 5.10 | 0 of 1 |" in short


def test_a_wrong_page_of_a_snapshot_between_is_wrong_in_both_tables() -> None:
    told = result(BIG)
    told["verify"]["between"]["attribute_mismatches"] = 2
    assert "| 3 | 17 | 2 | 23, 512 |" in kernels_page([row(BIG, told)], TOOL.same)
    assert "| 3 | 3,145,699 | 2 | 0 |" in readme_table([row(BIG, told)])


def test_every_row_has_as_many_cells_as_the_head() -> None:
    failed = {"good": False, "why": "no guest", "tool": asdict(TOOL), "date": "2026-01-02T03:04:05+00:00"}
    rows = [row(BIG, result(BIG)), row(SMALL, failed), row(NOT_RUN, None)]
    for page in (kernels_page(rows, TOOL.same), readme_table(rows)):
        assert len({line.count("|") for line in lines_of(page, "|")}) == 1


def test_a_result_of_an_older_tool_is_marked() -> None:
    page = kernels_page([row(BIG, result(BIG))], replace(TOOL, analyze="d" * 40).same)
    assert "| yes † |" in page and "†: recorded by an earlier" in page


def test_the_readme_keeps_everything_but_the_table() -> None:
    text = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    assert with_table(text, "new") == f"before\n{BEGIN}\nnew\n{END}\nafter\n"
    assert with_table(with_table(text, "x"), "new") == with_table(text, "new")
    with pytest.raises(LabError, match="marks"):
        with_table("no marks", "new")


def test_our_readme_has_the_marks() -> None:
    assert with_table((ROOT / "README.md").read_text(), "new")
