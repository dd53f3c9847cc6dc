"""What stands on the command line becomes policies with settings, users and memory pressure; what is wrong is one clear line."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest

from collect.errors import HostError, TraceError
from replay.__main__ import _parser
from replay.arguments import separate
from replay.placement import Host, as_recorded
from replay.policies import CLASSES, Outcome, Parameter, Policy, choose
from replay.pressure import Pressure, low_watermark
from replay.requests import Requests
from replay.serving import parse_users
from replay.users import User


class Foreign(Policy):
    """A policy of somebody else's package."""

    name = "foreign"
    title = "somebody else's"
    parameters = {"size": Parameter(3, "of something", lowest=1, highest=9)}  # noqa: RUF012

    def place(self, requests: Requests, host: Host) -> Outcome:
        return Outcome([as_recorded(requests)])


def with_entry(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """As if an installed package had this entry point."""
    there = [EntryPoint(name=name, value=value, group=choose.GROUP)]
    monkeypatch.setattr(choose, "entry_points", lambda *, group: there if group == choose.GROUP else [])


def test_all_that_there_are_by_default_each_once() -> None:
    assert [p.label for p in choose.choose()] == list(CLASSES)
    assert [p.label for p in choose.choose(["grouped", "none", "grouped"])] == ["grouped", "none"]


def test_settings_behind_a_name_and_by_set() -> None:
    names = ["gfp-unmapped:variant=ideal,refill-order=4", "gfp-unmapped", "none+merge:global=kept", "grouped+merge"]
    ideal, plain, kept, merged = choose.choose(names, ["gfp-unmapped.shrinker=descending", "merge.global=ignored"])
    assert (ideal.word("variant"), ideal.number("refill-order"), ideal.word("shrinker")) == ("ideal", 4, "descending")
    assert (plain.word("variant"), plain.word("shrinker")) == ("posted", "descending")
    assert [p.label for p in (ideal, plain, kept, merged)] == [names[0], "gfp-unmapped", "none+merge", "grouped+merge"]
    assert kept.merge_ignoring is not None and merged.merge_ignoring is not None
    assert merged.merge_ignoring - kept.merge_ignoring == 0x100  # G
    assert plain.merge_ignoring is None
    assert [p.as_asked for p in choose.choose(["ungrouped+merge", "grouped:requests=asked", "grouped"])] == [
        True,
        True,
        False,
    ]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("none,gfp-unmapped", ["none", "gfp-unmapped"]),
        ("a:x=1,y=2", ["a:x=1,y=2"]),
        ("a:x=1,y=2,b", ["a:x=1,y=2", "b"]),
        ("a,b:x=1,y=2,c+merge,d", ["a", "b:x=1,y=2", "c+merge", "d"]),
        ("a:x=1,b:x=2", ["a:x=1", "b:x=2"]),
        ("a:x=1,y=2+merge:global=kept,z=1,b", ["a:x=1,y=2+merge:global=kept,z=1", "b"]),
        ("a,", ["a", ""]),
    ],
)
def test_commas_separate_policies_and_parameters(text: str, names: list[str]) -> None:
    assert separate(text) == names


def test_policies_are_named_with_blanks_or_commas_and_by_more_than_one_option() -> None:
    parsed = _parser().parse_args(["run", "X", "--policy", "none,grouped", "rox-cache", "--policy", "a:x=1,y=2"])
    assert parsed.policy == ["none", "grouped", "rox-cache", "a:x=1,y=2"]
    assert _parser().parse_args(["run", "X"]).policy == []


def test_a_directory_among_the_policies_is_called_one(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="it is a directory; put traces before --policy"):
        choose.choose(["none", str(tmp_path)])
    with pytest.raises(TraceError, match="no policy is called 'xxx"):
        choose.choose(["x" * 5000])


@pytest.mark.parametrize(
    ("names", "settings", "says"),
    [
        (["magic"], [], "no policy is called 'magic'"),
        (["none+split"], [], "no policy is called"),
        (["gfp-unmapped:variant=best"], [], "posted or cover or ideal"),
        (["gfp-unmapped:refill-order=11"], [], "a number from 0 to 9"),
        (["gfp-unmapped:refill-order=-1"], [], "a number from 0 to 9"),
        (["gfp-unmapped:nonsense"], [], "NAME:parameter=value"),
        (["none:x=1"], [], "it has: none"),
        (["none+merge,x=1"], [], "or :parameter=value"),
        ([], ["gfp-unmapped"], "POLICY.PARAMETER=VALUE"),
        ([], ["magic.x=1"], "no policy is called 'magic'"),
        (["none"], ["gfp-unmapped.variant=ideal"], "is not replayed"),
        (["none"], ["merge.global=kept"], "is not replayed"),
    ],
)
def test_what_does_not_exist_is_refused_in_one_line(names: list[str], settings: list[str], says: str) -> None:
    with pytest.raises(TraceError, match=says.replace(".", r"\.")) as error:
        choose.choose(names, settings)
    assert "\n" not in str(error.value)


def test_a_policy_of_another_package_is_found_by_its_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    with_entry(monkeypatch, "foreign", f"{__name__}:Foreign")
    monkeypatch.setattr(EntryPoint, "load", lambda self: Foreign)
    (policy,) = choose.choose(["foreign:size=7"])
    assert policy.number("size") == 7
    assert list(choose.known())[-1] == "foreign"


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("none", "collections:OrderedDict", "has the name of another"),
        ("theirs", "collections:OrderedDict", "no subclass"),
        ("theirs", "no_such_module_anywhere:Policy", "cannot be loaded"),
    ],
)
def test_a_broken_package_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str) -> None:
    with_entry(monkeypatch, name, value)
    with pytest.raises(HostError, match=says):
        choose.choose(["none"])


def test_users_by_name_one_or_many() -> None:
    assert parse_users(None) is None
    assert parse_users("modules,bpf, SecretMem") == {User.MODULE, User.BPF, User.SECRETMEM}
    with pytest.raises(TraceError, match="no user is called 'collector'; choose from other, module"):
        parse_users("collector")


class Recorded:
    """As much of a trace as a scenario asks for: ten seconds."""

    manifest = {"ts_start_ns": 5_000_000_000, "ts_end_ns": 15_000_000_000}  # noqa: RUF012


def moments(text: str, host: Host | None = None, ram_pages: int = 1 << 20) -> list[tuple[float, int]]:
    host = host or Host(1, np.zeros(0, np.int64), np.zeros((0, 11), np.int64))
    ns, pages = Pressure.parse(text).moments(Recorded(), host, ram_pages)  # type: ignore[arg-type]
    return list(zip(((ns - 5_000_000_000) / 1e9).tolist(), pages.tolist(), strict=True))


def test_scenarios_of_memory_pressure(tmp_path: Path) -> None:
    assert moments("4:128") == [(4.0, 128), (8.0, 128)]
    scenario = tmp_path / "calls"
    scenario.write_text("# of the shrinker\n9 512\n\n2.5 128  # early\n11 7\n-1 3\n")
    assert moments(str(scenario)) == [(2.5, 128), (9.0, 512)]
    blocks = np.zeros((3, 11), np.int64)
    blocks[:, 3] = 1000, 300, 1000  # 8000 pages, 2400 pages
    host = Host(1, np.array([6, 7, 8]) * 1_000_000_000, blocks)
    assert low_watermark(1 << 20) == 2560  # 4 GB: min_free_kbytes 8192, and a quarter more
    assert moments("trace", host) == [(2.0, 128)]


@pytest.mark.parametrize("text", ["", "0:5", "nan:5", "5:0", "5:x", "/nowhere", "-1:5", "inf:1"])
def test_a_scenario_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(TraceError, match="--pressure"):
        Pressure.parse(text)


@pytest.mark.parametrize("line", ["1", "a b", "1 -5", "nan 5", "1 2 3"])
def test_a_line_that_is_none_is_refused(tmp_path: Path, line: str) -> None:
    scenario = tmp_path / "calls"
    scenario.write_text(f"1 5\n{line}\n")
    with pytest.raises(TraceError, match="--pressure"):
        Pressure.parse(str(scenario))
