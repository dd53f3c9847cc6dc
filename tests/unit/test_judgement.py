"""Whether a cache would have been worth it: every verdict from made-up results, and the answers for the real recordings."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from collect.errors import TraceError
from replay.judgement import Judgement, Thresholds, Verdict, frames_apart, judge, thresholds
from replay.judgement_words import happened, headline, judged, percent, sureness_clauses
from replay.results import Interval, PolicyResult, Series
from replay.run import run_policies

SAMPLES = Path(__file__).parents[2] / "sample_traces"
MEMORY = 8 << 18
"""Pages of a machine of 8 GiB: 4,096 frames, of which 41 are a hundredth."""


def result(
    policy: str, lo: float, hi: float | None = None, *, idle: float = 0, peak: float | None = None, **more: Any
) -> PolicyResult:
    """A result with so many frames split; `peak`: the most of them that cannot be put back at once."""
    split = Interval(lo, lo if hi is None else hi)
    values: dict[str, Any] = {f.name: Interval(0, 0) for f in fields(PolicyResult) if f.type == "Interval"}
    values |= {f.name: {} for f in fields(PolicyResult) if str(f.type).startswith("dict")}
    values |= {
        "policy": policy,
        "title": policy,
        "identity": False,
        "split_2m": split,
        "split_2m_live_peak": split if peak is None else Interval(peak, peak),
        "split_2m_by_user": {"module": split},
        "idle_pages_peak": Interval(idle, idle),
        "series": curve([0.0, split.hi, split.hi]),
        "provenance": {"seconds": 60.0, "memory_pages": MEMORY, "exact": True, "lost_of_map": 0, "lost_of_requests": 0},
    }
    values["provenance"] |= more.pop("provenance", {})
    return PolicyResult(**(values | more))


def curve(split: list[float]) -> Series:
    flat = np.zeros(len(split))
    up = np.array(split)
    return Series(np.linspace(0.0, 60.0, len(split)), up, up, flat, flat, flat, flat)


def answer(*results: PolicyResult) -> Judgement:
    found = judge(results)
    assert found is not None
    return found


def test_a_cache_that_saves_nearly_all_for_little_memory_is_worth_it() -> None:
    found = answer(result("none", 500), result("gfp-unmapped", 12, idle=4000), result("clairvoyant", 3, 8))
    assert found.verdict == Verdict.YES
    assert found.saved == Interval(488, 488) and found.most == 497
    assert "worth it" in headline(found)
    assert "12 frames split instead of 500" in judged(found)


def test_a_cache_that_holds_much_memory_is_worth_it_at_a_price() -> None:
    just = int(0.01 * MEMORY)
    assert answer(result("none", 500), result("gfp-unmapped", 12, idle=just)).verdict == Verdict.YES
    found = answer(result("none", 500), result("gfp-unmapped", 12, idle=just + 1))
    assert found.verdict == Verdict.AT_A_PRICE
    assert "at a price" in judged(found) and "of the memory" in judged(found)


def test_a_cache_that_saves_less_than_half_is_not_worth_it() -> None:
    found = answer(result("none", 500), result("gfp-unmapped", 300), result("clairvoyant", 10))
    assert found.verdict == Verdict.NO
    assert "not have been worth it" in judged(found)


def test_a_cache_that_splits_more_is_not_worth_it() -> None:
    assert answer(result("none", 500), result("gfp-unmapped", 700)).verdict == Verdict.NO


def test_where_even_one_that_knows_the_future_saves_little_there_is_little_to_gain() -> None:
    found = answer(result("none", 40), result("gfp-unmapped", 1), result("clairvoyant", 0))
    assert found.verdict == Verdict.LITTLE
    assert "saves at most 40 frames" in judged(found)
    found = answer(result("none", 2000), result("gfp-unmapped", 1990), result("clairvoyant", 1980))
    assert found.verdict == Verdict.LITTLE, "much was split, but nobody can help it"
    assert "saves at most 20 frames" in judged(found)


def test_the_same_frames_are_little_on_a_larger_machine() -> None:
    large = {"memory_pages": 64 * MEMORY}
    found = answer(result("none", 500, provenance=large), result("gfp-unmapped", 12, provenance=large))
    assert found.verdict == Verdict.LITTLE


def test_nothing_split_is_nothing_to_save() -> None:
    found = answer(result("none", 0), result("gfp-unmapped", 0))
    assert found.verdict == Verdict.NOTHING
    assert "no frame of the direct map was split" in happened(found)


def test_an_interval_across_the_line_cannot_be_told_and_says_what_would_narrow_it() -> None:
    narrow = ["A recording with --pages all."]
    found = answer(result("none", 130), result("gfp-unmapped", 5, 120, narrow=narrow))
    assert found.verdict == Verdict.UNKNOWN
    assert "cannot be told: 5–120 frames split instead of 130" in judged(found)
    assert ("none", "Would narrow it: A recording with --pages all.") in sureness_clauses(found)


def test_an_interval_on_one_side_of_the_line_decides() -> None:
    assert answer(result("none", 130), result("gfp-unmapped", 5, 60)).verdict == Verdict.YES
    assert answer(result("none", 130), result("gfp-unmapped", 70, 120)).verdict == Verdict.NO


def test_a_rival_that_does_as_well_for_sure_is_named() -> None:
    cache = result("gfp-unmapped", 10, 12, idle=1000)
    found = answer(result("none", 500), cache, result("prog-pack", 4, 10, idle=1000))
    assert found.verdict == Verdict.NO_BETTER
    assert "no better than prog-pack" in judged(found)
    assert answer(result("none", 500), cache, result("prog-pack", 4, 11)).verdict == Verdict.YES, (
        "perhaps is not for sure"
    )
    assert answer(result("none", 500), cache, result("prog-pack", 4, idle=1001)).verdict == Verdict.YES, "it holds more"


def test_the_best_rival_is_the_one_that_is_best_at_its_worst() -> None:
    found = answer(
        result("none", 500), result("gfp-unmapped", 10), result("prog-pack", 0, 300), result("grouped", 90, 95)
    )
    assert found.rival is not None and found.rival.policy == "grouped"


def test_the_best_that_linux_has_is_named_beside_a_better_proposal() -> None:
    cache, pack = result("gfp-unmapped", 10), result("prog-pack", 15, 24)
    found = answer(result("none", 500), cache, pack, result("grouped", 12))
    assert found.rival is not None and found.rival.policy == "grouped"
    assert found.in_linux is not None and found.in_linux.frames == Interval(15, 24)
    assert "prog-pack, which Linux has since 5.18, 15–24" in judged(found)
    assert answer(result("none", 500), cache, pack).in_linux is None, "it is the best rival, and named as that"
    idle = result("rox-cache", 500, identity=True)
    assert answer(result("none", 500), cache, idle, result("grouped", 12)).in_linux is None, (
        "it would have changed nothing"
    )


@pytest.mark.parametrize(
    "policy", ["clairvoyant:old-frames=left", "gfp-unmapped+merge", "gfp-unmapped:variant=ideal", "ungrouped"]
)
def test_what_is_no_rival(policy: str) -> None:
    assert answer(result("none", 500), result("gfp-unmapped", 10), result(policy, 1)).rival is None


def test_entries_that_are_put_back_count_while_they_are_apart() -> None:
    merged = result("none+merge", 500, peak=200)
    assert frames_apart(merged) == Interval(200, 200)
    found = answer(result("none", 500), result("gfp-unmapped", 10), merged)
    assert found.rival is not None and found.rival.frames == Interval(200, 200)


def test_a_setting_of_the_cache_is_judged_where_the_cache_as_posted_was_not_replayed() -> None:
    ideal = result("gfp-unmapped:variant=ideal", 10)
    assert answer(result("none", 500), ideal).policy == "gfp-unmapped:variant=ideal"
    assert answer(result("none", 500), ideal, result("gfp-unmapped", 20)).policy == "gfp-unmapped"


def test_without_the_cache_or_without_the_recording_there_is_no_answer() -> None:
    assert answer(result("none", 500)).verdict == Verdict.NOT_ASKED
    assert judge([result("gfp-unmapped", 10)]) is None


def test_losses_put_it_in_doubt_and_say_which_way() -> None:
    lost = {"exact": False, "lost_of_map": 7}
    found = answer(result("none", 500, provenance=lost), result("gfp-unmapped", 10))
    assert not found.sure
    assert "in doubt" in judged(found) and "7 changes of the map were lost" in judged(found)
    assert answer(result("none", 500, provenance={"lost_of_requests": 3}), result("gfp-unmapped", 10)).sure is False
    assert answer(result("none", 500, provenance={"exact": False}), result("gfp-unmapped", 10)).sure is False
    assert answer(result("none", 500), result("gfp-unmapped", 10)).sure is True


def test_a_load_that_was_still_splitting_when_the_recording_ended_is_told() -> None:
    rising = curve([0.0, 100.0, 200.0, 300.0, 400.0, 500.0])
    found = answer(result("none", 500, series=rising), result("gfp-unmapped", 10))
    assert "still being split" in judged(found)
    flat = curve([0.0, 460.0, 460.0, 460.0, 460.0, 500.0])
    assert answer(result("none", 500, series=flat), result("gfp-unmapped", 10)).sure


def test_what_the_kernel_has_already_is_said() -> None:
    kernel = {"has_packs": True, "has_rox": True}
    found = answer(result("none", 500, provenance=kernel), result("gfp-unmapped", 10))
    assert "on top of this kernel's own bpf_prog_pack and ROX cache" in judged(found)


def test_thresholds_can_be_set() -> None:
    results = [result("none", 500), result("gfp-unmapped", 300)]
    assert answer(*results).verdict == Verdict.NO
    found = judge(results, thresholds(["part=0.3", "little-share=0.001"]))
    assert found is not None and found.verdict == Verdict.YES
    assert thresholds([]) == Thresholds()
    for wrong in ("part", "part=2", "part=x", "share=0.1", "part=nan"):
        with pytest.raises(TraceError, match="little-share, part, idle-share, rising"):
            thresholds([wrong])


def every_verdict() -> list[Judgement]:
    base = result("none", 500)
    return [
        answer(result("none", 0)),
        answer(result("none", 40), result("clairvoyant", 0)),
        answer(base),
        answer(base, result("gfp-unmapped", 400), result("prog-pack", 400)),
        answer(base, result("gfp-unmapped", 10), result("prog-pack", 10)),
        answer(base, result("gfp-unmapped", 10, idle=5), result("prog-pack", 20)),
        answer(base, result("gfp-unmapped", 10, idle=MEMORY), result("clairvoyant", 10)),
        answer(base, result("gfp-unmapped", 10, 490), result("clairvoyant", 1, 10)),
    ]


def test_every_verdict_is_two_sentences_and_nothing_is_said_of_speed() -> None:
    answers = every_verdict()
    assert {found.verdict for found in answers} == set(Verdict)
    for found in answers:
        text = f"{happened(found)} {judged(found)}"
        assert len(re.findall(r"\.(?= [A-Z]|$)", text)) == 2, text
        assert not re.search(r"fast|slow|speed|perform|latenc|throughput", text, re.IGNORECASE), text


def test_json_is_strict_and_names_what_it_was_judged_by() -> None:
    for found in every_verdict():
        text = json.dumps(found.to_json(), allow_nan=False)
        assert json.loads(text)["thresholds"]["little_share"] == 0.01


def test_a_share_keeps_the_digits_that_tell_it_from_nothing() -> None:
    assert [percent(p).replace("\N{NARROW NO-BREAK SPACE}", "") for p in (0, 0.01, 0.034, 0.5, 0.0002, 1)] == [
        "0%", "1%", "3.4%", "50%", "0.02%", "100%",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "split", "whose"),
    [
        ("5.10-bpf", "98 frames of 2M (2.4 % of the memory) and 2 entries of 1G", "all by BPF"),
        ("6.1-churn", "141 frames of 2M (3.4 % of the memory) and 3 entries of 1G", "54 by secretmem, 46 by modules"),
        ("7.2-churn", "136 frames of 2M (3.3 % of the memory) and 1 entry of 1G", "79 by modules, 50 by secretmem"),
    ],
)
def test_the_answers_for_the_real_recordings(name: str, split: str, whose: str) -> None:
    results = run_policies(
        SAMPLES / name, ["none", "gfp-unmapped", "prog-pack", "grouped", "none+merge", "clairvoyant"]
    )
    found = judge(results)
    assert found is not None
    assert found.verdict == Verdict.YES and found.sure
    assert split in happened(found).replace("\N{NARROW NO-BREAK SPACE}", " ")
    assert whose in happened(found)
    assert sum(n.hi for n in found.by_user.values()) == found.base.hi, "every frame is somebody's"


def test_the_sentence_names_no_rival_that_saves_nothing_and_no_bound_that_looks_beaten() -> None:
    words = judged(
        answer(
            result("none", 136), result("gfp-unmapped", 8, 11), result("prog-pack", 136), result("clairvoyant", 0, 10)
        )
    )
    assert "8–11 frames split instead of 136 (one that knows the future: 0–10)" in words
    assert words.endswith(
        "; no other policy that was replayed saves anything; as a count this is sure: the trace is exact."
    )


def test_where_the_cache_was_not_replayed_the_sentence_says_that_and_what_is_sure() -> None:
    words = judged(answer(result("none", 500), result("prog-pack", 20)))
    assert words == (
        "No verdict on a __GFP_UNMAPPED cache: it was not replayed (name gfp-unmapped with --policy); what was counted is sure: the "
        "trace is exact."
    )
