"""The report as text: fit for a mail whatever the trace holds, and saying what the page and the numbers say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from analyze.__main__ import main
from analyze.words.numbers import as_ascii, count, duration, memory, number
from analyze.words.terminal import clean, table, wrapped
from tests.machine import write_trace
from tests.machine.rewrite import with_manifest, with_strings

SAMPLES = Path(__file__).parents[2] / "sample_traces"


def summary(capsys: pytest.CaptureFixture[str], trace: Path) -> str:
    assert main(["summary", str(trace)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def summary_json(capsys: pytest.CaptureFixture[str], trace: Path) -> dict[str, Any]:
    assert main(["summary", "--json", str(trace)]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def fits_a_mail(text: str) -> bool:
    return all(line.isascii() and len(line) < 80 and (line == "" or line.isprintable()) for line in text.split("\n"))


@pytest.mark.parametrize("sample", ["5.10-bpf", "6.1-churn", "7.2-churn"])
def test_a_sample_in_a_mail_says_what_its_numbers_say(sample: str, capsys: pytest.CaptureFixture[str]) -> None:
    text, found = summary(capsys, SAMPLES / sample), summary_json(capsys, SAMPLES / sample)
    assert fits_a_mail(text)
    joined = " ".join(text.split())
    assert " ".join(as_ascii(found["answer"]).split()) in joined
    assert f"Health: {found['health']['verdict']}" in joined
    for user in found["users"]:
        assert f" {user['splits_2m']} {user['splits_1g']} " in joined
    for size, n in found["leaf_entries"]["end"].items():
        assert re.search(rf"{size} +[\d,]+ .* {n:,} ", joined)
    assert f"4K entries map {found['kept']['frames']['split']} frames of 2M" in joined
    for limit in found["limits"]:
        assert " ".join(as_ascii(limit).split()) in joined


def test_what_a_sample_says(capsys: pytest.CaptureFixture[str]) -> None:
    text = summary(capsys, SAMPLES / "7.2-churn")
    assert "split: modules 79 x 2M, secretmem 50 x 2M and 1 x 1G and BPF 7 x 2M.\n" in text
    assert "  - These 27 pages keep 4 frames in 4K: module usbcore.\n" in text
    assert "  4K  7,642  29.9 MiB   0.4 %  77,274  302 MiB   3.7 %\n" in text
    assert "[ok] exact: 2,097,114 pages compared" in text


def test_shares_are_of_the_memory_there_was_at_that_time(capsys: pytest.CaptureFixture[str]) -> None:
    text = summary(capsys, Path(__file__).parents[1] / "recordings" / "hotplug-7.2")  # 6 GiB, to which 1 GiB came
    joined = " ".join(text.split())
    assert "(0.5 %) of this machine's 6.0 GiB at the start and 47.9 MiB (0.7 %) of 7.0 GiB at the end" in joined
    assert re.search(r"1G +2 +2\.0 GiB +33\.3 % +3 +3\.0 GiB +42\.9 %", text)


def test_health_is_the_first_thing_said(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    trace = with_manifest(
        write_trace(tmp_path / "a", 8, scale=0.02), tmp_path / "b", losses={"changes_ring_full": 5, "calls_map_full": 0}
    )
    text = summary(capsys, trace)
    assert "Health: in doubt: 5 events were lost" in text
    assert re.search(r"at\s+least\s+\d+\s+of\s+the\s+direct\s+map's\s+2M\s+entries", text)
    assert text.index("Health: ") < text.index("In ") < text.index("What may be concluded")


def test_hostile_names_fit_a_mail_too(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    evil = "é\x1b[2J\u202e" + "長" * 50
    trace = with_strings(write_trace(tmp_path / "evil", 5, scale=0.03), evil)
    trace = with_manifest(
        trace, trace, kernel={"release": evil, "cmdline": evil}, created=evil, command=[evil], cpu={"model": evil}
    )
    assert fits_a_mail(summary(capsys, trace))


def test_nobody_is_said(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = summary(capsys, write_trace(tmp_path / "quiet", 5, scale=0.0))
    assert fits_a_mail(text)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.25, "250 ms"),
        (9.6, "10 seconds"),
        (154.9, "155 seconds"),
        (599, "599 seconds"),
        (600, "10 minutes"),
        (7200, "2.0 hours"),
    ],
)
def test_a_length_of_time_loses_nothing_that_a_reader_looks_for(seconds: float, said: str) -> None:
    assert as_ascii(duration(seconds)) == said


def test_numbers_are_written_in_one_way_and_fit_a_mail() -> None:
    assert number(1234567) == as_ascii(number(1234567)) == f"{1234567:,}" == "1,234,567"
    assert count(6441, "page event") == "6,441 page events"
    assert as_ascii(f"{number(1234)} × 2M – “x”") == '1,234 x 2M - "x"'
    assert as_ascii(memory(7642)) == "29.9 MiB"
    assert as_ascii("a · b") == "a, b"


def test_cut_text_is_ascii_and_no_longer_than_asked() -> None:
    assert clean("x" * 70) == "x" * 57 + "..."
    assert clean("é\n\x1b[1m") == "\\xe9??[1m"
    assert all(len(clean("abcdefgh", n)) <= n for n in range(1, 9))
    assert clean("長" * 100, 20).isascii()


def test_a_table_cuts_its_first_column_and_aligns_the_rest() -> None:
    lines = table(["name", "n"], [["x" * 200, "1"], ["b", "12,345"]])
    assert all(len(line) < 80 for line in lines)
    assert len({len(line) for line in lines}) == 1
    assert lines[1].endswith("...       1")
    assert wrapped("a" * 200) == ["a" * 79, "a" * 79, "a" * 42]
