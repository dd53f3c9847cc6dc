"""The commands: exit statuses, and one clear line for every damage."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from analyze.__main__ import main
from collect.schema import TABLES
from collect.trace import open_trace
from tests.machine import write_trace
from tests.machine.rewrite import with_cell, with_manifest


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_trace(tmp_path_factory.mktemp("machine") / "trace", 41, scale=0.02)


@pytest.fixture
def copy(source: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(source, tmp_path / "copy"))


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """Run a command that must be refused; its one line."""
    assert main([str(argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("directmap-analyze: ")
    assert len(err) < 500
    return err


def test_verify_says_exact_and_leaves_with_0(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(source)]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("exact: trace\n")
    assert max(len(line) for line in out.splitlines()) < 80
    assert err == ""


def test_verify_json_is_strict(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--json", str(source)]) == 0

    def refuse(name: str) -> None:
        raise AssertionError(name)

    assert json.loads(capsys.readouterr().out, parse_constant=refuse)["exact"] is True


def test_verify_leaves_with_1_and_shows_the_pages_when_not_exact(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = open_trace(source).table("snapshots").to_pandas()
    row = int(rows[(rows["moment"] == 2) & (rows["level"] == 1)].index[0])
    wrong = with_cell(source, tmp_path / "t", "snapshots", "attrs", row, int(rows["attrs"][row]) ^ 2)
    assert main(["verify", str(wrong)]) == 1
    out = capsys.readouterr().out
    assert out.startswith("NOT EXACT")
    assert "pfn 0x" in out
    assert max(len(line) for line in out.splitlines()) < 80


def test_info_tells_what_was_recorded(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(source)]) == 0
    out = capsys.readouterr().out
    assert "6.1.0-synthetic" in out
    assert all(name in out for name in TABLES)
    assert main(["info", "--json", str(source)]) == 0
    assert json.loads(capsys.readouterr().out)["rows"]["changes"] > 0


def test_escape_codes_in_a_manifest_do_not_reach_the_terminal(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = with_manifest(source, tmp_path / "t", kernel={"release": "6.1\x1b[31m\nroot"}, created="\x07now")
    assert main(["info", str(evil)]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\x07" not in out


def test_a_manifest_of_odd_values_is_shown_or_refused_in_one_line(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = with_manifest(
        source, tmp_path / "t", probes={"missing": 7}, cpu={"model": None}, kernel={"release": ["\ud800"]}
    )
    assert main(["info", str(odd)]) == 0
    nan = with_manifest(source, tmp_path / "nan", cpu={"model": float("nan")})
    capsys.readouterr()
    assert "not finite" in refused(capsys, "info", nan)


def test_a_rule_mismatch_is_shown_with_both_answers_and_its_stack(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = open_trace(source).table("changes").to_pandas()
    row = int(changes[(changes["space"] == 0) & (changes["level_first"] == 1) & (changes["stack_id"] > 0)].index[-30])
    wrong = with_cell(source, tmp_path / "t", "changes", "level_first", row, 2)
    assert main(["verify", str(wrong)]) == 1
    out = capsys.readouterr().out
    assert "predicted 4K: " in out
    assert "observed  2M: " in out
    assert "__change_page_attr_set_clr" in out
    assert max(len(line) for line in out.splitlines()) < 80


def test_help_starts_with_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert capsys.readouterr().out.split("\n\n")[1].startswith("examples:")


@pytest.mark.parametrize("command", ["verify", "info"])
def test_what_is_no_trace(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such directory" in refused(capsys, command, tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    assert "not a directory" in refused(capsys, command, tmp_path / "file")
    (tmp_path / "empty").mkdir()
    assert "missing" in refused(capsys, command, tmp_path / "empty")


@pytest.mark.parametrize("table", TABLES)
def test_a_missing_truncated_or_foreign_file_is_named(
    table: str, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = copy / f"{table}-00000.parquet"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    assert file.name in refused(capsys, "verify", copy)
    file.write_bytes(b"\x89PNG\r\n\x1a\n".ljust(len(whole), b"\0"))
    assert file.name in refused(capsys, "verify", copy)
    file.write_bytes(b"")
    assert file.name in refused(capsys, "verify", copy)
    file.unlink()
    assert file.name in refused(capsys, "verify", copy)


@pytest.mark.parametrize("table", TABLES)
def test_the_file_of_another_table_is_named(table: str, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = "strings" if table != "strings" else "stacks"
    shutil.copy(copy / f"{other}-00000.parquet", copy / f"{table}-00000.parquet")
    believe_sizes(copy)
    assert f"{table}-00000.parquet" in refused(capsys, "verify", copy)


@pytest.mark.parametrize("table", ["strings", "counters"])
def test_a_file_cut_at_any_byte_is_refused_also_where_the_manifest_was_cut_to_fit(
    table: str, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = copy / f"{table}-00000.parquet"
    whole = file.read_bytes()
    for size in range(0, len(whole), 1 if len(whole) < 1500 else 3):
        file.write_bytes(whole[:size])
        believe_sizes(copy)
        assert file.name in refused(capsys, "info", copy)


def test_a_manifest_cut_at_any_byte_is_refused(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = copy / "manifest.json"
    whole = manifest.read_bytes().rstrip()
    for size in range(len(whole)):
        manifest.write_bytes(whole[:size])
        assert "manifest.json" in refused(capsys, "info", copy)


def test_a_bit_flipped_anywhere_in_the_rows_is_noticed_or_harmless(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = copy / "changes-00000.parquet"
    whole = bytearray(file.read_bytes())
    statuses = set()
    for at in range(0, len(whole), max(1, len(whole) // 150)):
        whole[at] ^= 0x10
        file.write_bytes(whole)
        statuses.add(main(["verify", str(copy)]))
        err = capsys.readouterr().err
        assert err.count("\n") <= 1
        whole[at] ^= 0x10
    assert statuses <= {0, 1, 2}
    assert 2 in statuses


def believe_sizes(directory: Path) -> None:
    """Let the manifest state the sizes that the files have."""
    manifest = json.loads((directory / "manifest.json").read_text())
    for segments in manifest["tables"].values():
        for segment in segments:
            segment["bytes"] = (directory / segment["file"]).stat().st_size
    (directory / "manifest.json").write_text(json.dumps(manifest))
