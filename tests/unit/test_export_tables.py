"""The tables of an export: complete, joined right, the same in both formats; and the documented examples, as documented."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from analyze.__main__ import main
from analyze.analysis import Analysis, analyse
from analyze.enriched import ENRICHED, attrs_text
from analyze.export.tables import BATCH_ROWS
from collect.schema import Pte
from collect.trace import open_trace
from tests.machine import write_trace
from tests.machine.rewrite import with_strings

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "sample_traces" / "7.2-churn"
EXAMPLES = re.findall(r"```python\n(.*?)```\n+```text\n(.*?)```", (ROOT / "docs" / "tables.md").read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    return analyse(SAMPLE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the examples run: `trace` and `out` stand in it."""
    folder = tmp_path_factory.mktemp("examples")
    (folder / "trace").symlink_to(SAMPLE)
    assert main(["export", str(SAMPLE), "-o", str(folder / "out"), "--format", "parquet"]) == 0
    return folder


def test_there_are_three_examples_for_each_of_three_libraries() -> None:
    for library in ("pandas", "duckdb", "polars"):
        assert sum(f"import {library}" in code for code, _ in EXAMPLES) == 3


@pytest.mark.parametrize(("code", "printed"), EXAMPLES, ids=[f"{i}" for i in range(len(EXAMPLES))])
def test_an_example_prints_what_stands_under_it(code: str, printed: str, folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "TZ": "UTC"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout == printed


def test_every_table_and_column_is_documented(analysis: Analysis) -> None:
    text = (ROOT / "docs" / "tables.md").read_text()
    for name, make in ENRICHED.items():
        assert f"| `{name}` |" in text
        for column in set(make(analysis).column_names) & {"call", "stack", "residue", "kept", "since_ns", "split_by"}:
            assert f"`{column}`" in text


def test_changes_are_those_of_the_trace_with_names_for_numbers(analysis: Analysis) -> None:
    changes, raw = ENRICHED["changes"](analysis).to_pandas(), open_trace(SAMPLE).table("changes").to_pandas()
    for column in ("ts_ns", "duration_ns", "call_id", "parent_id", "address", "pfn", "n_pages", "pid", "tgid", "cpu"):
        assert (changes[column] == raw[column]).all(), column
    strings = open_trace(SAMPLE).table("strings").to_pandas().set_index("string_id")["text"]
    assert (changes["comm"].astype(str) == raw["comm_id"].map(strings)).all()
    nested = raw["parent_id"] != 0
    assert (changes["call"][nested & (raw["stack_id"] == 0)] == "alias of its parent call").all()
    assert (changes["stack"][nested].astype(str) != "").all(), "a nested call has its parent's stack"


def test_frames_and_special_pages_fit_each_other(analysis: Analysis) -> None:
    frames, pages = (ENRICHED[name](analysis).to_pandas() for name in ("split_frames", "special_pages"))
    assert len(frames) == 151 and len(pages) == 6181
    held = pages[~pages["residue"]].groupby("frame").size().reindex(frames["frame"], fill_value=0)
    assert held.tolist() == frames["n_special"].tolist()
    assert (frames["kept"] == (frames["n_special"] > 0)).all()
    assert ((pages["since_ns"] == 0) == (pages["stack"] == "")).all(), "no change that we saw touched it"
    own = pages[~pages["residue"] & (pages["user"] == "module")]
    assert (own["name"] != "").all() and set(own["region"]) <= {"module", "execmem", "rox_block", "module_alloc", ""}


def test_both_formats_hold_the_same(tmp_path: Path, folder: Path) -> None:
    assert main(["export", str(SAMPLE), "-o", str(tmp_path / "csv"), "--format", "csv"]) == 0
    for name in ENRICHED:
        of_csv = pd.read_csv(tmp_path / "csv" / f"{name}.csv", keep_default_na=False, dtype=str)
        of_parquet = pd.read_parquet(folder / "out" / f"{name}.parquet").astype(str)
        for column in of_parquet:
            assert (of_csv[column].str.lower() == of_parquet[column].str.lower()).all(), (name, column)


def test_texts_are_written_a_batch_at_a_time(folder: Path) -> None:
    file = pq.ParquetFile(folder / "out" / "changes.parquet")
    assert file.metadata.num_row_groups == -(-file.metadata.num_rows // BATCH_ROWS) == 2
    assert file.schema_arrow.field("stack").type == "string"


def test_names_from_a_trace_hold_no_escapes(tmp_path: Path) -> None:
    trace = with_strings(write_trace(tmp_path / "evil", 5, scale=0.03), 'a"\x1b[31m\n')
    assert main(["export", str(trace), "-o", str(tmp_path / "out"), "--format", "csv"]) == 0
    table = pd.read_csv(tmp_path / "out" / "changes.csv")
    assert set(table["comm"]) == {'a"\N{REPLACEMENT CHARACTER}[31m\N{REPLACEMENT CHARACTER}'}


def test_a_table_with_no_rows_is_a_table(tmp_path: Path) -> None:
    trace = write_trace(tmp_path / "quiet", 5, scale=0.0)
    for kind in ("csv", "parquet"):
        assert main(["export", str(trace), "-o", str(tmp_path / kind), "--format", kind]) == 0
    assert (
        list(pd.read_csv(tmp_path / "csv" / "splits.csv").columns)
        == pq.read_schema(tmp_path / "parquet" / "splits.parquet").names
    )


def test_attribute_words_are_read_bit_by_bit() -> None:
    assert attrs_text(0) == ""
    assert attrs_text(int(Pte.P | Pte.RW | Pte.NX)) == "P RW NX"
    assert attrs_text(1 << 40 | 1) == "P 0x10000000000"
