"""The table of docs/rules.md: each rule, its source, its code, its tests, and the recordings of real kernels that met it.

`python3 -m tests.rules_table` writes it anew, from the recordings in sample_traces/ and tests/recordings/; a test holds the
document to that.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from analyze.reconstruct import rebuild
from analyze.rule_count import count_rules
from analyze.rule_names import Rule
from collect.trace import open_trace

__all__ = ["DOCUMENT", "RECORDINGS", "counts", "table", "written"]

TOP = Path(__file__).resolve().parents[1]
DOCUMENT = TOP / "docs" / "rules.md"
RECORDINGS = sorted(
    path.parent for kept in ("sample_traces", "tests/recordings") for path in (TOP / kept).glob("*/manifest.json")
)
BEGIN, END = "<!-- rules:begin -->", "<!-- rules:end -->"

_MODEL = "property/test_rules.py"
_LARGE = ("`rules._decide`", _MODEL)
_PAGES = ("`rules._change_pages`", _MODEL)
# Where a rule stands in our code, and what tests it beside the recordings (tests/unit/test_recordings.py).
PLACES: dict[Rule, tuple[str, str]] = {
    Rule.KEPT_2M: _LARGE,
    Rule.KEPT_1G: _LARGE,
    Rule.REWRITTEN_2M: _LARGE,
    Rule.REWRITTEN_1G: _LARGE,
    Rule.SPLIT_2M: _LARGE,
    Rule.SPLIT_1G: _LARGE,
    Rule.FORCED_2M: _LARGE,
    Rule.FORCED_1G: _LARGE,
    Rule.RODATA_2M: _LARGE,
    Rule.RODATA_1G: _LARGE,
    Rule.STATIC_2M: ("`rules._decide`, `entries.split_frame`", _MODEL),
    Rule.STATIC_1G: ("`rules._decide`, `entries.split_giga`", _MODEL),
    Rule.SAME_4K: _PAGES,
    Rule.WRITTEN_4K: _PAGES,
    Rule.RODATA_4K: _PAGES,
    Rule.GLOBAL_LOST: ("`rules._changed`, `entries._for_smaller`", f"{_MODEL}, unit/test_directmap.py"),
    Rule.LARGE_ABSENT: ("`rules._changed_large`, `pagetables.normalise`", f"{_MODEL}, unit/test_collect_pagetables.py"),
    Rule.ABSENT_SPLIT: ("`entries.split_frame`, `entries.split_giga`", _MODEL),
    Rule.PAT_LARGE: ("`pagetables.normalise`, `rules._changed_large`", f"{_MODEL}, unit/test_collect_pagetables.py"),
    Rule.HOLE_PASSED: ("`rules.change_range`, `rules._change_pages`", f"{_MODEL}, unit/test_directmap.py"),
    Rule.HOLE_FILLED: ("`holes.fill`", f"{_MODEL}, unit/test_directmap.py"),
    Rule.LEFT_SPLIT: ("`rules.split_leaf`, `observed_splits.load_splits`", f"{_MODEL}, unit/test_observed_splits.py"),
    Rule.NO_MASKS: ("`rules.change_range`, `changes.load_changes`", _MODEL),
    Rule.COLLAPSED_2M: ("`entries.collapse_frame`", _MODEL),
    Rule.COLLAPSED_1G: ("`entries.collapse_giga`", _MODEL),
    Rule.HOTPLUG_ADD: ("`hotplug.add_range`, `hotplug.Reread`", "unit/test_hotplug.py"),
    Rule.HOTPLUG_REMOVE: ("`hotplug.remove_range`", "unit/test_hotplug.py"),
    Rule.ALIAS: ("recorded, not predicted", "property/test_reconstruct.py"),
    Rule.ALIAS_IMAGE: ("recorded; `counter_check`", "unit/test_verify.py"),
    Rule.DECOY: ("`changes._effect_ns`, `counter_check`", "unit/test_verify.py"),
    Rule.PAGES_ARRAY: ("`playback._apply_all`", "unit/test_recording.py"),
    Rule.FAILED: ("`changes.load_changes`", "unit/test_observed_splits.py"),
    Rule.FAILED_HALFWAY: ("`rules.change_range` (n_done)", f"{_MODEL}, unit/test_observed_splits.py"),
    Rule.PAGE_DIRECTORY: ("`rules.change_range` (has_pgd)", _MODEL),
    Rule.KERNEL_4K: ("`entries.collapse_frame`", _MODEL),
    Rule.NO_ALIAS: ("recorded, not predicted", "unit/test_recordings.py"),
    Rule.OVERLAPPED: ("`rule_check._find_overlaps`", "property/test_reconstruct.py, unit/test_verify.py"),
}


@cache
def counts(recording: Path) -> dict[Rule, int]:
    """Changes of a recording that exercised each rule."""
    return count_rules(rebuild(open_trace(recording)))


def table() -> str:
    """The table, as Markdown."""
    lines = [
        "| rule | kernel source | our code | tests beside the recordings | changes that exercised it, by recording |",
        "|---|---|---|---|---|",
    ]
    for rule in Rule:
        seen = [f"{path.name} {counts(path)[rule]:,}" for path in RECORDINGS if counts(path)[rule]]
        code, tests = PLACES[rule]
        where = ", ".join(seen) or "**never provoked on a real kernel**"
        lines.append(f"| {rule.text} (`{rule.name.lower()}`) | {rule.source} | {code} | {tests} | {where} |")
    return "\n".join(lines)


def written(text: str) -> str:
    """The document with the table as it is now."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    DOCUMENT.write_text(written(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
