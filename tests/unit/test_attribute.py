"""Whose doing it is: by process, by stack, by region."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from analyze.attribute import Attribution, User, attribute
from analyze.reconstruct import Rebuild, rebuild
from analyze.stacks import symbol
from analyze.users import SYMBOLS
from collect.schema import Space
from collect.trace import Trace, open_trace
from tests.machine import COLLECTOR, write_trace
from tests.machine.rewrite import rewrite, with_manifest

OWN_USERS = {1000: User.MODULE, 1200: User.SECRETMEM, 1300: User.KPROBE, 1500: User.FTRACE, 4000: User.COLLECTOR}
"""Processes of the synthetic machine that do one thing only (and graphics or kexec, which are nobody's)."""


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    return open_trace(write_trace(tmp_path_factory.mktemp("machine") / "trace", 31, scale=0.3))


@pytest.fixture(scope="module")
def rebuilt(trace: Trace) -> Rebuild:
    return rebuild(trace)


@pytest.fixture(scope="module")
def attribution(trace: Trace, rebuilt: Rebuild) -> Attribution:
    return attribute(trace, rebuilt)


def test_every_process_is_given_its_own_user(rebuilt: Rebuild, attribution: Attribution) -> None:
    tgid = rebuilt.changes.columns["tgid"]
    for process, user in OWN_USERS.items():
        users = set(attribution.change_user[tgid == process].tolist())
        assert user in users
        assert users <= {user, User.OTHER}


def test_a_nested_call_has_its_parent_s_stack_and_user(rebuilt: Rebuild, attribution: Attribution) -> None:
    columns = rebuilt.changes.columns
    nested = columns["parent_id"] != 0
    assert nested.any()
    root = attribution.change_root[nested]
    assert (columns["call_id"][root] == columns["parent_id"][nested]).all()
    assert (attribution.change_stack[nested] == columns["stack_id"][root]).all()
    assert (attribution.change_user[nested] == attribution.change_user[root]).all()


def test_a_call_made_in_the_reclaim_of_another_s_is_its_own_user_s(trace: Trace, tmp_path: Path) -> None:
    """As TTM's shrinker, which gives pages back while another's split waits for one: nested, with a stack of its own."""
    table = trace.table("changes")
    stacks = trace.table("stacks")
    telling = next(name for name, user in SYMBOLS.items() if user == User.FTRACE)
    reclaim = {"stack_id": 999, "frames": ["set_pages_array_wb+0x1", f"{telling}+0x2", "do_shrink_slab+0x3"]}
    nested = (table["parent_id"].to_numpy() != 0) & (table["tgid"].to_numpy() == 1000)
    row = int(nested.argmax())
    stack_id = table["stack_id"].to_numpy().copy()
    stack_id[row] = 999
    at = table.column_names.index("stack_id")
    changed = table.set_column(at, table.schema.field(at), pa.array(stack_id))
    rewrite(trace.path, tmp_path / "t", "changes", changed)
    more = stacks.from_pylist([*stacks.to_pylist(), reclaim], schema=stacks.schema)
    reclaimed = open_trace(rewrite(tmp_path / "t", tmp_path / "t", "stacks", more))
    found = attribute(reclaimed, rebuild(reclaimed))
    assert found.change_root[row] == row
    assert found.change_stack[row] == 999
    assert found.change_user[row] == User.FTRACE


def test_what_a_kworker_frees_later_belongs_to_the_region_that_was_there(
    rebuilt: Rebuild, attribution: Attribution
) -> None:
    stacks = attribution.stacks
    delayed = stacks.having(["delayed_vfree_work"])[attribution.change_stack]
    assert delayed.any()
    kinds = {User(code) for code in attribution.change_user[delayed & rebuilt.changes.direct].tolist()}
    assert User.MODULE in kinds
    assert kinds <= {User.MODULE, User.KPROBE, User.FTRACE}


def test_what_our_own_process_asked_for_is_ours_also_when_a_kworker_frees_it(
    trace: Trace, tmp_path: Path, rebuilt: Rebuild
) -> None:
    other = open_trace(with_manifest(trace.path, tmp_path / "t", recorder={"pid": 1101, "tgid": 1100}))
    user = attribute(other, rebuild(other)).change_user
    assert (user[rebuilt.changes.columns["tgid"] == COLLECTOR.tgid] != User.COLLECTOR).all()
    assert (user[rebuilt.changes.columns["tgid"] == 1100] == User.COLLECTOR).all()


def test_modules_are_named(attribution: Attribution) -> None:
    named = attribution.splits[attribution.splits["user"] == "module"]["name"]
    assert (named != "").all()


def test_splits_keep_their_order_and_gain_who(rebuilt: Rebuild, attribution: Attribution) -> None:
    assert (attribution.splits["row"] == rebuilt.splits["row"]).all()
    assert {"user", "comm", "pid", "tgid", "stack_id", "name"} <= set(attribution.splits.columns)
    secret = attribution.splits[attribution.splits["user"] == "secretmem"].iloc[0]
    assert secret["comm"] == "secrets"
    assert any("secretmem" in frame for frame in attribution.stack_frames(int(secret["stack_id"])))


def test_without_regions_the_stacks_still_tell(trace: Trace, tmp_path: Path) -> None:
    bare = open_trace(rewrite(trace.path, tmp_path / "t", "regions", trace.table("regions").slice(0, 0)))
    user = attribute(bare, rebuild(bare)).change_user
    assert {User.MODULE, User.SECRETMEM, User.KPROBE, User.FTRACE} <= set(user.tolist())


def test_special_pages_are_those_unlike_their_frame(rebuilt: Rebuild, attribution: Attribution) -> None:
    special, frames = attribution.special, attribution.frames
    assert set(frames["frame"]) == set(rebuilt.final.split_frames().tolist())
    assert (rebuilt.final.level_of(special["pfn"].to_numpy()) == 1).all()
    g_only = special["attrs"] ^ special["original"] == 0x100
    assert (g_only == special["residue"]).all()
    live = special[~special["residue"]]
    assert frames["live"].sum() == live["frame"].nunique()
    assert (frames["live"] == (frames["n_special"] > 0)).all()
    assert frames["n_special"].sum() + frames["n_residue"].sum() == len(special)


def test_pages_that_modules_gave_back_keep_no_frame_alive(attribution: Attribution) -> None:
    special = attribution.special
    assert special[special["user"] == "module"]["residue"].all()


def test_each_special_page_names_the_change_that_last_touched_it(rebuilt: Rebuild, attribution: Attribution) -> None:
    changes = rebuilt.changes
    made = attribution.special[attribution.special["row"] >= 0]
    assert len(made) > 10
    for page in made.itertuples():
        row = int(page.row)
        start, end = changes.pfns_start[row], changes.pfns_start[row + 1]
        pages = changes.pfns[start:end] if end > start else np.arange(changes.n_done[row]) + changes.first_pfn[row]
        assert page.pfn in pages
        assert changes.columns["space"][row] == Space.DIRECT_MAP


def test_symbols_lose_offset_module_and_clone_suffix() -> None:
    assert symbol("ttm_pool_alloc+0x1f [ttm]") == "ttm_pool_alloc"
    assert symbol("vfree.part.0+0x12") == "vfree"
    assert symbol("load_module") == "load_module"


def test_no_symbol_that_several_users_share_decides() -> None:
    shared = {"module_alloc", "module_memfree", "vfree", "__vunmap", "execmem_alloc", "execmem_free", "set_memory_ro"}
    assert not shared & set(SYMBOLS)
    assert not any(name.startswith(("bpf_trace_run", "bpf_trampoline_6", "ftrace_trampoline")) for name in SYMBOLS)
