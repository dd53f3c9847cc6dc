"""`compare`: two captures on the same axes, what speaks against comparing them, and whose doing the difference is."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from analyze.__main__ import main
from analyze.capture import Capture, capture
from analyze.comparison import FACTS, Comparison, comparison
from analyze.reconstruct import rebuild
from collect.schema import Level, RegionEvent, RegionKind
from collect.trace import open_trace
from tests.machine import write_trace
from tests.machine.rewrite import rewrite, with_manifest

SAMPLES = Path(__file__).parents[2] / "sample_traces"


@cache
def sample(name: str) -> Capture:
    return capture(SAMPLES / name)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_trace(tmp_path_factory.mktemp("machine") / "trace", 31, scale=0.1)


def number(found: Comparison, key: str) -> tuple[float, float, float]:
    row = found.numbers.set_index("key").loc[key]
    return row["a"], row["b"], row["difference"]


def test_6_1_and_7_2_under_one_load_differ_by_these_users() -> None:
    found = comparison(sample("6.1-churn"), sample("7.2-churn"))
    assert dict(zip(found.users["user"], found.users["n_2m_difference"], strict=True)) == {
        "module": 33, "bpf": -19, "ftrace": -10, "kprobe": -5, "secretmem": -4, "before": 0,
    }  # fmt: skip
    assert number(found, "splits_2m") == (141, 136, -5)
    assert number(found, "kept") == (19, 27, 8)
    assert number(found, "alike") == (0, 10, 10)
    bpf = found.causes[found.causes["cause"] == "bpf_prog_pack"].iloc[0]
    assert (bpf["n_2m_a"], bpf["n_2m_b"], bpf["change"]) == (26, 7, "less")
    changes = dict(zip(found.causes["cause"], found.causes["change"], strict=True))
    assert changes["hid_sensor_hub"] == "new"
    assert changes["be2net"] == "gone"
    assert changes["usbcore"] == "more"


def test_splits_are_held_against_what_was_asked_for() -> None:
    users = comparison(sample("6.1-churn"), sample("7.2-churn")).users.set_index("user")
    for user, kind in (("bpf", RegionKind.BPF_IMAGE), ("module", RegionKind.MODULE)):
        for side, name in (("a", "6.1-churn"), ("b", "7.2-churn")):
            rows = open_trace(SAMPLES / name).table("regions").to_pylist()
            asked = sum(row["event"] == RegionEvent.ALLOC and row["kind"] == kind for row in rows)
            assert users.loc[user, f"asked_{side}"] == asked
            assert users.loc[user, f"per_100_{side}"] == pytest.approx(100 * users.loc[user, f"n_2m_{side}"] / asked)
    assert users.loc["ftrace", "asked_a"] == -1


def test_the_doubts_name_what_differs() -> None:
    same_load = comparison(sample("6.1-churn"), sample("7.2-churn")).doubts
    assert any("emulated CPU: no rates" in doubt for doubt in same_load)
    assert any("secretmem 1,010 against 846" in doubt for doubt in same_load)
    assert not any("command" in doubt or "Memory" in doubt or "exact" in doubt for doubt in same_load)
    assert any("Other commands" in d for d in comparison(sample("5.10-bpf"), sample("7.2-churn")).doubts)


def test_a_trace_against_itself_differs_in_nothing() -> None:
    found = comparison(sample("7.2-churn"), sample("7.2-churn"))
    assert found.facts["same"].all()
    assert (found.numbers["difference"] == 0).all()
    assert set(found.causes["change"]) == {"same"}
    assert len(found.doubts) == 1  # of rates


def test_turned_round_every_difference_turns_its_sign() -> None:
    one = comparison(sample("6.1-churn"), sample("7.2-churn"))
    other = comparison(sample("7.2-churn"), sample("6.1-churn"))
    assert (one.numbers["difference"] == -other.numbers["difference"]).all()
    merged = one.causes.merge(other.causes, on=["user", "cause", "group"], suffixes=("", "_other"))
    assert len(merged) == len(one.causes) == len(other.causes)
    assert (merged["n_2m_difference"] == -merged["n_2m_difference_other"]).all()
    turned = {"new": "gone", "gone": "new", "more": "less", "less": "more", "same": "same"}
    assert (merged["change"].map(turned) == merged["change_other"]).all()


def test_causes_add_up_to_all_splits() -> None:
    for name in ("5.10-bpf", "6.1-churn", "7.2-churn"):
        rebuilt = rebuild(open_trace(SAMPLES / name))
        assert sample(name).causes["n_2m"].sum() == (rebuilt.splits["level"] == Level.M2).sum()
        assert sample(name).causes["n_1g"].sum() == (rebuilt.splits["level"] == Level.G1).sum()


def test_rates_are_given_of_real_cpus_only(source: Path, tmp_path: Path) -> None:
    emulated = capture(source)
    native = capture(with_manifest(source, tmp_path / "t", cpu={"emulated": False}))
    assert emulated.seconds is None
    assert "changes_per_s" not in set(comparison(emulated, native).numbers["key"])
    found = comparison(native, native)
    length = native.facts["seconds"]
    assert number(found, "changes_per_s") == pytest.approx((native.changes / length, native.changes / length, 0))


def test_lengths_memory_and_losses_that_differ_are_told(source: Path, tmp_path: Path) -> None:
    native = with_manifest(source, tmp_path / "a", cpu={"emulated": False})
    manifest = open_trace(native).manifest
    longer = with_manifest(
        native, tmp_path / "b",
        ts_end_ns=manifest["ts_end_ns"] + 10**12, losses={"changes_ring_full": 2}, sampling={"pages": "all"},
        memory={"ranges": manifest["memory"]["ranges"][1:]},
        probes={"missing": [{"name": "execmem_alloc", "why": "", "costs": ""}]},
    )  # fmt: skip
    doubts = "\n".join(comparison(capture(native), capture(longer)).doubts)
    for text in (
        "differ in length",
        "Memory differs",
        "B is not exact",
        "B lost 2 events",
        "Page events",
        "Only B lacks",
    ):
        assert text in doubts


def test_it_fits_a_terminal_and_names_every_fact(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(SAMPLES / "6.1-churn"), str(SAMPLES / "7.2-churn")]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.isascii()
    assert max(map(len, out.splitlines())) < 80
    assert "  B - A is made of: module +33, bpf -19, ftrace -10, kprobe -5, secretmem -4." in out
    words = " ".join(out.split())
    assert all(text in words for key, text in FACTS.items() if key != "seconds")


def test_json_is_strict(capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    assert main(["compare", "--json", str(SAMPLES / "5.10-bpf"), str(SAMPLES / "7.2-churn")]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert set(found["facts"]) == set(FACTS)
    assert found["trust"]["a"]["exact"] and found["trust"]["b"]["exact"]
    secret = next(row for row in found["users"] if row["user"] == "secretmem")
    assert secret["asked_a"] == 0
    assert secret["per_100_a"] is None
    assert secret["n_2m_difference"] == 50


def test_names_from_a_trace_cannot_reach_the_terminal(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = "\x1b[31m<b>\r\n\N{RIGHT-TO-LEFT OVERRIDE}é" * 20
    table = open_trace(source).table("strings")
    texts = [evil + text for text in table["text"].to_pylist()]
    rewritten = table.from_pydict({"string_id": table["string_id"], "text": texts}, schema=table.schema)
    bad = rewrite(source, tmp_path / "t", "strings", rewritten)
    with_manifest(bad, bad, kernel={"release": evil}, cpu={"model": evil}, command=["x", "--", evil], tool_version=evil)
    for pair in ((source, bad), (bad, source), (bad, bad)):
        assert main(["compare", *map(str, pair)]) == 0
        out = capsys.readouterr().out
        assert out.isascii()
        assert "\x1b" not in out and "\r" not in out
        assert max(map(len, out.splitlines())) < 80


def test_a_trace_that_is_not_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(SAMPLES / "5.10-bpf"), str(tmp_path / "none")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
