"""Costs: what a file may say, intervals in and out, and what is never priced."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collect.errors import HostError
from replay.__main__ import main
from replay.costs import UNITS, Costs, read_costs
from replay.pricing import price, times
from replay.pricing_text import amount
from replay.published import RESULTS
from replay.results import Interval, PolicyResult
from replay.run import run_policies
from tests.machine import write_trace
from tests.machine.rewrite import with_manifest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "costs-example.toml"
CHURN = ROOT / "sample_traces" / "6.1-churn"
CPU = "AMD EPYC 9B14"


def a_cost(lo: float = 1, hi: float = 2, unit: str = "us", measured: str = "mine", **more: Any) -> dict[str, Any]:
    return {"cost": [lo, hi], "unit": unit, "source": "a test", "measured": measured, **more}


def costs_of(tmp_path: Path, **content: Any) -> Costs:
    path = tmp_path / "costs.json"
    path.write_text(json.dumps({"format": 1, **{key.replace("_", "-"): value for key, value in content.items()}}))
    return read_costs(path)


@pytest.fixture(scope="module")
def results() -> dict[str, PolicyResult]:
    return {r.policy: r for r in run_policies(CHURN, ["none", "gfp-unmapped", "prog-pack", "rox-cache+merge"])}


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made trace that says it comes from a real CPU."""
    trace = write_trace(tmp_path_factory.mktemp("machine") / "emulated", 3, scale=0.1, kernel_style="5.10")
    return with_manifest(trace, trace.parent / "native", cpu={"emulated": False, "model": CPU})


def test_the_example_prices_what_it_sources() -> None:
    costs = read_costs(EXAMPLE)
    assert set(costs.by_key) == {"tlb-flush-global", "tlb-flush-ranged", "page-table-page", "idle-page"}
    assert all(cost.measured == "published" for cost in costs.by_key.values())
    assert costs.by_key["tlb-flush-global"].each == Interval(96, 2283)
    text = EXAMPLE.read_text()
    assert all(key in text for key in UNITS), "the example names everything that can be priced"


def test_counts_times_costs_on_a_real_trace(results: dict[str, PolicyResult]) -> None:
    """By hand: 141 + 3 splits and 1,016 calls flush everything, 1,150 flushes of ranges."""
    costs = read_costs(EXAMPLE)
    none = price(results["none"], results["none"], costs)
    assert none.totals["cycles"] == Interval(1160 * 96 + 1150 * 260, 1160 * 2283 + 1150 * 1276)
    assert none.totals["bytes"] == Interval(161 * 4096, 161 * 4096)
    assert set(none.saved.values()) == {Interval(0, 0)}
    gfp = price(results["gfp-unmapped"], results["none"], costs)
    # 10 to 14 splits left of 144, so 130 to 134 fewer, and 150 of 1,150 flushes of ranges
    assert gfp.saved["cycles"] == Interval(130 * 96 + 1000 * 260, 134 * 2283 + 1000 * 1276)
    assert gfp.saved["bytes"] == Interval((161 - 31 - 5087) * 4096, (161 - 27 - 5087) * 4096)
    assert {item.cost.key: item.count for item in gfp.items}["idle-page"] == results["gfp-unmapped"].idle_pages_peak
    merge = price(results["rox-cache+merge"], results["none"], costs)
    flushes = {item.cost.key: item.count for item in merge.items}["tlb-flush-global"]
    assert flushes.lo == 149 + 1102 + 143, "a merge flushes everything too"
    assert price(results["prog-pack"], results["none"], costs).saved["cycles"] == Interval(0, 0)


def test_what_has_no_cost_is_not_priced_and_said(results: dict[str, PolicyResult], tmp_path: Path) -> None:
    pricing = price(results["none"], results["none"], costs_of(tmp_path, split=a_cost()))
    assert [item.cost.key for item in pricing.items] == ["split"]
    assert set(pricing.not_priced) == set(UNITS) - {"split"}
    assert set(pricing.not_priced.values()) == {"the file has no cost for it"}


def test_units_of_time_add_up_and_others_do_not(results: dict[str, PolicyResult], tmp_path: Path) -> None:
    costs = costs_of(
        tmp_path, split=a_cost(1, 2, "us"), cpa_call=a_cost(100, 300, "ns"), refill=a_cost(1, 1, "USD"), merge=a_cost(1, 1, "EUR")
    )  # fmt: skip
    totals = price(results["none"], results["none"], costs).totals
    assert set(totals) == {"s", "USD", "EUR"}
    assert totals["s"].lo == pytest.approx(144e-6 + 11790 * 100e-9)
    assert totals["s"].hi == pytest.approx(288e-6 + 11790 * 300e-9)


def test_an_emulated_machine_prices_neither_its_clock_nor_its_host(
    results: dict[str, PolicyResult], tmp_path: Path
) -> None:
    none = results["none"]
    assert none.emulated
    costs = costs_of(
        tmp_path, cpu=none.provenance["cpu"], cpa_call=a_cost(measured="host"), leaf_4k_second=a_cost(),
        idle_page_second=a_cost(), split=a_cost(measured="mine"),
    )  # fmt: skip
    pricing = price(none, none, costs)
    assert [item.cost.key for item in pricing.items] == ["split"]
    assert pricing.not_priced["cpa-call"] == "measured on the trace's host, which is emulated"
    assert "seconds are none" in pricing.not_priced["leaf-4k-second"]
    assert "seconds are none" in pricing.not_priced["idle-page-second"]


def test_a_real_machine_prices_its_clock_and_what_was_measured_on_its_cpu(native: Path, tmp_path: Path) -> None:
    none, grouped = run_policies(native, ["none", "grouped"])
    pages = {"leaf_4k_second": a_cost(1, 1, "ns"), "idle_page_second": a_cost(2, 2, "ns")}
    costs = costs_of(tmp_path, cpu=CPU, cpa_call=a_cost(measured="host"), **pages)
    pricing = price(grouped, none, costs)
    counts = {item.cost.key: item.count for item in pricing.items}
    assert set(counts) == {"cpa-call", "leaf-4k-second", "idle-page-second"}
    seconds = grouped.provenance["seconds"]
    assert counts["idle-page-second"].hi == pytest.approx(grouped.idle_pages_mean.hi * seconds)
    assert 0 <= counts["leaf-4k-second"].lo <= counts["leaf-4k-second"].hi <= 512 * grouped.split_2m.hi * seconds
    # fewer frames split, for as long: less of that, for sure
    saved = {item.cost.key: item.saved for item in pricing.items}
    assert saved["leaf-4k-second"].lo > 0
    other = costs_of(tmp_path, cpu="another", cpa_call=a_cost(measured="host"))
    assert price(grouped, none, other).not_priced["cpa-call"].startswith("measured on another, and the trace's host is")


def test_frame_seconds_bound_what_happened_between_two_moments(native: Path) -> None:
    """Of `none`, each split's own time says exactly how long its frame was split."""
    from collect.trace import open_trace
    from replay.engine import walk
    from replay.placement import as_recorded
    from replay.stream import decode

    stream = decode(open_trace(native))
    done = walk(stream, as_recorded(stream.requests))
    n = int(done.log.n[0])
    end = int(stream.grid_ns[-1])
    inside = (done.log.level[:n] == 2) & (done.log.ts_ns[:n] < end)
    exact = float(((end - done.log.ts_ns[:n][inside]) / 1e9).sum())
    (none,) = run_policies(native, ["none"])
    bounds = none.split_frame_seconds
    assert bounds.lo <= exact <= bounds.hi
    step = (int(stream.grid_ns[1]) - int(stream.grid_ns[0])) / 1e9
    assert bounds.hi - bounds.lo <= step * (none.split_2m.hi + 1)
    (merged,) = run_policies(native, ["none+merge"])
    assert merged.split_frame_seconds.lo == 0.0


@given(
    st.tuples(st.integers(-50, 50), st.integers(0, 50)), st.tuples(st.integers(0, 50), st.integers(0, 50)), st.data()
)
def test_a_product_holds_every_product(count: tuple[int, int], each: tuple[int, int], data: st.DataObject) -> None:
    a, b = Interval(count[0], count[0] + count[1]), Interval(each[0], each[0] + each[1])
    x, y = data.draw(st.integers(int(a.lo), int(a.hi))), data.draw(st.integers(int(b.lo), int(b.hi)))
    product = times(a, b)
    assert product.lo <= x * y <= product.hi
    assert {product.lo, product.hi} <= {i * j for i in (a.lo, a.hi) for j in (b.lo, b.hi)}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"format": 1, "tlb-flush": a_cost()}, "'tlb-flush' is no cost; there are cpa-call, page-table-step"),
        ({"format": 2, "split": a_cost()}, "format is '2', this directmap reads 1"),
        ({"split": a_cost()}, "format is 'None'"),
        ({"format": 1}, "no cost in it"),
        ({"format": 1, "split": 3}, "split must be a table of cost, unit, source, measured"),
        ({"format": 1, "split": a_cost(colour="red")}, "split has 'colour'; it may have cost, unit, source, measured, note"),
        ({"format": 1, "split": {"cost": [1, 2], "unit": "us", "measured": "mine"}}, "split has no 'source'"),
        ({"format": 1, "split": a_cost(unit="")}, "needs a unit and a source"),
        ({"format": 1, "split": a_cost(measured="guessed")}, "'guessed'; give host or published or mine"),
        ({"format": 1, "split": a_cost(2, 1)}, "must be [lowest, highest]"),
        ({"format": 1, "split": a_cost(-1, 1)}, "must be [lowest, highest]"),
        ({"format": 1, "split": a_cost() | {"cost": 5}}, "[v, v] for one that is known exactly"),
        ({"format": 1, "split": a_cost() | {"cost": [1, True]}}, "must be [lowest, highest]"),
        ({"format": 1, "split": a_cost() | {"cost": [1, float("nan")]}}, "must be [lowest, highest]"),
        ({"format": 1, "split": a_cost() | {"cost": [1, float("inf")]}}, "must be [lowest, highest]"),
        ({"format": 1, "title": 3, "split": a_cost()}, "title must be text"),
        ({"format": 1, "split": a_cost(measured="host")}, "say which CPU that is"),
        ([1, 2], "holds no table of costs"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_refused_in_one_line(
    content: object, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "c.json"
    path.write_text(json.dumps(content))
    assert main(["run", "/nowhere", "--costs", str(path)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and says in err and str(path) in err, err


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("c.toml", "format = ", "cannot be parsed"),
        ("c.json", "[" * 100_000, "cannot be parsed"),
        ("c.yaml", "format: 1", "ends in .toml or .json"),
        ("c.toml", "x" * ((1 << 20) + 1), "larger than 1 MiB"),
    ],
)
def test_what_is_no_such_file_at_all(name: str, text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(HostError, match=says):
        read_costs(path)
    with pytest.raises(HostError, match="no such file"):
        read_costs(tmp_path / "not-there.toml")


def test_text_says_prices_sources_and_who_disagrees(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(CHURN), "--policy", "gfp-unmapped", "--costs", str(EXAMPLE)]) == 0
    out = capsys.readouterr().out
    assert out.isascii() and max(map(len, out.splitlines())) < 80
    flat = " ".join(out.split())
    assert "saved against none" in flat and "272,480-1,581,922 cycles" in flat
    assert "Not priced: cpa-call, page-table-step, split" in flat
    assert "what was counted is priced, what its clock says is not" in flat
    assert "is in none of these prices" in flat
    for one in RESULTS:
        assert one.who in flat and one.source.split()[-1] in flat
    assert flat.count("Xing Zhengjun") == 1, "once, with the prices"


def test_without_costs_nothing_is_priced(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(CHURN), "--policy", "gfp-unmapped"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "riced by" not in out and "cycles" not in out
    assert main(["run", str(CHURN), "--policy", "gfp-unmapped", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["costs"] is None and printed["published"] == []
    assert [result["priced"] for result in printed["results"]] == [None]


@pytest.mark.parametrize(
    "command",
    [
        ["compare", str(CHURN), str(ROOT / "sample_traces" / "5.10-bpf"), "--policy", "gfp-unmapped"],
        ["sweep", str(CHURN), "--policy", "gfp-unmapped", "--over", "gfp-unmapped.refill-order=8,9"],
    ],
)
def test_compare_and_sweep_price_every_row(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    command = [*command, "--costs", str(EXAMPLE)]
    assert main([*command, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    rows = printed.get("rows") or [printed["base"], *printed["points"]]
    assert len(rows) in (3, 4)
    saved = {
        (row["trace"], row["policy"], str(row.get("values", ""))): row["priced"]["saved"]["cycles"] for row in rows
    }
    assert saved["6.1-churn", "none", ""] == [0, 0]
    gfp = next(value for key, value in reversed(saved.items()) if key[:2] == ("6.1-churn", "gfp-unmapped"))
    assert gfp == [272480, 1581922]
    assert printed["costs"]["each"]["idle-page"]["cost"] == [4096, 4096]
    assert len(printed["published"]) == len(RESULTS)
    assert main(command) == 0
    out = capsys.readouterr().out
    assert out.isascii() and max(map(len, out.splitlines())) < 80
    assert "272,480-1,581,922 cycles" in out


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (Interval(0.0012, 0.0034), "s", "1.2-3.4 ms"),
        (Interval(-2e-6, 3e-6), "s", "-2 to 3 us"),
        (Interval(0, 0), "s", "0 s"),
        (Interval(1e-12, 1e-11), "s", "0.001-0.01 ns"),
        (Interval(4096, 4096), "bytes", "4,096 bytes"),
        (Interval(0.5, 1500), "USD", "0.5-1,500 USD"),
    ],
)
def test_amounts(value: Interval, unit: str, text: str) -> None:
    assert amount(value, unit) == text
