"""Traces from strangers: whatever number stands in a cell, there is an answer or one clear line."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from analyze.attribute import attribute
from analyze.reconstruct import rebuild
from analyze.verify import verify
from collect.errors import TraceError
from collect.schema import TABLES
from collect.trace import open_trace
from tests.machine import write_trace
from tests.machine.rewrite import rewrite, with_manifest

NUMBERS = {pa.uint8(): 8, pa.uint16(): 16, pa.uint32(): 32, pa.uint64(): 64}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_trace(tmp_path_factory.mktemp("machine") / "trace", 51, scale=0.02)


def numbers(n_bits: int) -> st.SearchStrategy[int]:
    most = (1 << n_bits) - 1
    edges = [0, 1, most, most >> 1, (most >> 1) + 1, most >> 12, 1 << (n_bits // 2), 4 << 18, (4 << 18) - 1]
    return st.one_of(st.sampled_from([n for n in edges if n <= most]), st.integers(0, most))


def values(kind: pa.DataType) -> st.SearchStrategy[Any]:
    if kind in NUMBERS:
        return numbers(NUMBERS[kind])
    if pa.types.is_list(kind):
        return st.lists(values(kind.value_type), max_size=4)
    if kind == pa.int32():
        return st.integers(-(1 << 31), (1 << 31) - 1)
    return st.text(max_size=8)


@st.composite
def forgeries(draw: st.DrawFn) -> list[tuple[str, str, float, Any]]:
    """A few cells: (table, column, place as a part of the rows, value)."""
    made = []
    for _ in range(draw(st.integers(1, 3))):
        table = draw(st.sampled_from(["changes", "changes", "snapshots", "regions", "counters", "stacks", "strings"]))
        field = TABLES[table].field(draw(st.integers(0, len(TABLES[table]) - 1)))
        made.append((table, field.name, draw(st.floats(0, 0.999)), draw(values(field.type))))
    return made


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(cells=forgeries())
@example(cells=[("snapshots", "n_leaves", 0.5, (1 << 64) - 1)])
@example(cells=[("changes", "n_done", 0.9, 1 << 40), ("changes", "ret", 0.9, -12)])
@example(cells=[("stacks", "stack_id", 0.5, (1 << 32) - 1)])
def test_a_forged_cell_gets_an_answer_or_one_line(
    source: Path, tmp_path_factory: pytest.TempPathFactory, cells: list[tuple[str, str, float, Any]]
) -> None:
    target = tmp_path_factory.mktemp("forged") / "t"
    shutil.copytree(source, target)
    for name, column, part, value in cells:
        table = open_trace(target).table(name)
        cell_list = table[column].to_pylist()
        cell_list[int(part * len(table))] = value
        at = table.column_names.index(column)
        field = TABLES[name].field(at)
        rewrite(target, target, name, table.set_column(at, field, pa.array(cell_list, field.type)))
    answer(target)
    shutil.rmtree(target)


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    memory=st.fixed_dictionaries(
        {},
        optional={
            "max_pfn": numbers(40),
            "page_offset": st.one_of(numbers(64), st.text(max_size=3), st.none()),
            "rodata": st.one_of(st.lists(numbers(40), min_size=2, max_size=2), st.none()),
            "kfence_pool": st.one_of(st.lists(numbers(40), min_size=2, max_size=2), st.none()),
        },
    ),
    recorder=st.dictionaries(st.sampled_from(["pid", "tgid"]), st.one_of(numbers(64), st.text(max_size=3), st.none())),
)
def test_a_forged_manifest_gets_an_answer_or_one_line(
    source: Path, tmp_path_factory: pytest.TempPathFactory, memory: dict[str, Any], recorder: dict[str, Any]
) -> None:
    target = tmp_path_factory.mktemp("forged") / "t"
    answer(with_manifest(source, target, memory=memory, recorder=recorder))
    shutil.rmtree(target)


def answer(directory: Path) -> None:
    try:
        trace = open_trace(directory)
        rebuilt = rebuild(trace)
        verify(trace, rebuilt).to_json()
        attribute(trace, rebuilt)
    except TraceError as error:
        assert "\n" not in str(error)
        assert str(directory) in str(error) or "changes:" in str(error)
