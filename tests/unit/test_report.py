"""The report of a whole trace: files, numbers, words; on a synthetic machine, whose truth is known."""

from __future__ import annotations

import contextlib
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analyze.analysis import analyse
from analyze.report.checks import checks, verdict
from analyze.report.writer import claim_output, write_report
from collect.errors import HostError, TraceError
from collect.manifest import MANIFEST
from collect.schema import TABLES
from replay.demo import SHOWN, main
from tests.machine import write_trace

EVIL = "<img src=x onerror=alert(1)>\x1b[31m$x^2$"
SCALE = 0.1


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_trace(tmp_path_factory.mktemp("trace") / "synthetic", 3, scale=SCALE)


@pytest.fixture(scope="module")
def report(trace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    page = write_report(trace, tmp_path_factory.mktemp("report") / "out")
    return page.parent


def numbers(report: Path) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    found: dict[str, Any] = json.loads((report / "report.json").read_text(), parse_constant=refuse)
    return found


def text_of(page: Path) -> str:
    class Text(HTMLParser):
        text = ""

        def handle_data(self, data: str) -> None:
            self.text += data

    parser = Text()
    parser.feed(page.read_text())
    return re.sub(r"\s+", " ", parser.text)


def set_strings(trace: Path, text: str) -> None:
    """Give every process, module and program of a trace another name."""
    content = json.loads((trace / MANIFEST).read_text())
    for segment in content["tables"]["strings"]:
        path = trace / segment["file"]
        table = pq.read_table(path)
        names = pa.array([text] * table.num_rows, pa.string())
        pq.write_table(pa.table([table["string_id"], names], schema=TABLES["strings"]), path)
        segment["bytes"] = path.stat().st_size
    content["kernel"] |= {"release": text, "cmdline": [text, 1e308]}
    content["cpu"]["model"] = "\ud800"
    content["probes"]["missing"] = [{"name": text, "why": text, "costs": text}, 3]
    content["probes"]["attached"] = 5
    (trace / MANIFEST).write_text(json.dumps(content))


def test_the_report_is_one_page_with_its_pictures_and_numbers_beside_it(report: Path) -> None:
    pictures = {
        f"{name}{suffix}" for name in ("overview", "levels", "map", "free") for suffix in (".svg", ".pdf", ".png")
    }
    assert {path.name for path in report.iterdir()} == {"report.html", "report.json"} | pictures
    assert all(path.stat().st_size for path in report.iterdir())


def test_an_exact_trace_is_called_exact_and_the_numbers_add_up(report: Path) -> None:
    found = numbers(report)
    assert found["verification"]["exact"] is True
    n_2m, n_1g = (sum(user[key] for user in found["users"]) for key in ("splits_2m", "splits_1g"))
    start, end = found["leaf_entries"]["start"], found["leaf_entries"]["end"]
    assert n_2m > 0 and end["4K"] - start["4K"] == 512 * n_2m
    assert start["1G"] - end["1G"] == n_1g
    assert n_2m <= found["verification"]["splits"]["found_2m"], "the counters' time is a little longer"
    for user in found["users"]:
        assert user["splits_2m"] == sum(row["splits_2m"] for row in user["names"])


def test_the_page_says_what_the_numbers_say(report: Path) -> None:
    found, text = numbers(report), text_of(report / "report.html")
    assert re.sub(r"\s+", " ", found["answer"]) in text
    assert "0 unexplained" in text
    assert f"{found['verification']['pages_compared']:,} pages" in text
    for limit in found["limits"]:
        assert limit in text


def test_the_page_has_its_health_beside_the_answer_and_says_what_keeps_frames_split(report: Path) -> None:
    found, text = numbers(report), text_of(report / "report.html")
    assert found["health"]["verdict"] == "sound"
    answer, sound = text.index(re.sub(r"\s+", " ", found["answer"])[:40]), text.index("Every check that could be made")
    assert answer < sound < text.index("What happened, and when")
    kept = found["kept"]["frames"]
    assert f"At the end 4K entries map {kept['split']} frames of 2M" in text
    assert kept["split"] == sum(kept[state] for state in ("kept", "residue", "alike", "never_whole"))
    assert text.count(" in 4K: ") == len(found["kept"]["healing"]["steps"])


def test_the_page_says_whether_each_split_was_seen(report: Path) -> None:
    seen = numbers(report)["verification"]["splits_observed"]
    text = text_of(report / "report.html")
    assert ("Splits were not observed one by one" in text) is (seen is None)
    assert ("Each split was seen as it was done" in text) is (seen is not None)


def test_the_answer_is_two_sentences(report: Path) -> None:
    assert len(re.findall(r"\.(?= [A-Z0-9]|$)", numbers(report)["answer"])) == 2


def test_the_same_trace_gives_the_same_report(trace: Path, report: Path, tmp_path: Path) -> None:
    write_report(trace, tmp_path / "again")
    for path in report.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name


def test_an_output_in_use_is_refused_without_force_and_never_emptied(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(HostError, match="--force"):
        claim_output(tmp_path, force=False)
    claim_output(tmp_path, force=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    with pytest.raises(HostError, match="is a file"):
        claim_output(tmp_path / "notes.txt", force=True)


def test_a_damaged_trace_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(TraceError):
        write_report(tmp_path / "nothing", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_trace_of_hostile_names_is_shown_and_does_nothing(tmp_path: Path) -> None:
    trace = write_trace(tmp_path / "evil", 5, scale=0.03)
    set_strings(trace, EVIL)
    page = write_report(trace, tmp_path / "out")
    source = page.read_text()
    assert "<img" not in source and "<script" not in source and "\x1b" not in source
    assert EVIL.replace("\x1b", "\N{REPLACEMENT CHARACTER}") in text_of(page)
    assert "\x1b" not in (tmp_path / "out" / "levels.svg").read_text()


def test_a_kernel_that_does_not_count_splits_is_not_called_wrong(tmp_path: Path) -> None:
    analysis = analyse(write_trace(tmp_path / "old", 4, scale=0.03, kernel_style="5.10"))
    counters = next(c for c in checks(analysis.verification, analysis.trace.manifest) if "counters" in c.name)
    assert counters.state == "none" and "does not count splits" in counters.text
    assert verdict(analysis.verification).name == "exact"


# --- the demo page ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    traces, out = tmp_path_factory.mktemp("traces"), tmp_path_factory.mktemp("demo") / "demo"
    write_trace(traces / "a-5.10", 1, scale=0.05, kernel_style="5.10")
    write_trace(traces / "b-6.1", 2, scale=0.05)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main(["--traces", str(traces), "-o", str(out)]) == 0
    assert printed.getvalue() == f"{(out / 'index.html').resolve()}\n", "ends with the path and prints nothing else"
    return out / "index.html"


def test_the_demo_shows_every_trace_with_its_checks_and_every_policy(demo: Path) -> None:
    text = text_of(demo)
    for part in ("a-5.10", "b-6.1", "gfp-unmapped", "prog-pack", "A __GFP_UNMAPPED cache"):
        assert part in text
    assert text.count("Can these numbers be trusted?") == 2
    assert text.count("What a cache would have saved") == 2


def test_the_demo_says_each_answer_once_and_at_the_top_two_numbers_that_lead_to_it(demo: Path) -> None:
    text, source = text_of(demo), demo.read_text()
    top = text[: text.index("2M frames split, by policy")]
    for slug, name in (("t1", "a-5.10"), ("t2", "b-6.1")):
        (lead,) = re.findall(r'<p class="answer">(.*?)</p>', (demo.parent / name / "report.html").read_text())
        assert "__GFP_UNMAPPED" in lead and source.count(lead) == 1 and lead[:40] not in top
        short = re.search(rf'<a href="#{slug}" class="\w+">([^<]+)</a>', source)
        assert short and short[1] in top
        assert re.fullmatch(r"[a-z ,]+: [\d,–]+ → [\d,–]+", short[1])


def test_the_demo_s_table_begins_with_what_the_others_are_compared_with(demo: Path) -> None:
    (head,) = re.findall(r'<table class="glance">\s*<thead><tr>(.*?)</tr>', demo.read_text(), re.DOTALL)
    columns = re.findall(r"<th[^>]*>([^<]+)</th>", head)
    assert columns[:4] == ["recording", "none", "gfp-unmapped", "clairvoyant"]
    assert sorted(columns[1:]) == sorted(SHOWN)


def test_the_demo_page_is_one_file_whose_links_lead_to_files_beside_it(demo: Path) -> None:
    source = demo.read_text()
    assert "<script" not in source and " src=" not in source
    ids = re.findall(r'\bid="([^"]+)"', source)
    assert len(ids) == len(set(ids)), "an id that stands twice breaks the pictures"
    for link in re.findall(r'<a href="([^"]+)"', source):
        assert link[1:] in ids if link.startswith("#") else (demo.parent / link).is_file(), link


def test_the_demo_holds_a_report_and_a_replay_of_each_trace(demo: Path) -> None:
    for name in ("a-5.10", "b-6.1"):
        assert (demo.parent / name / "report.html").is_file()
        results = json.loads((demo.parent / name / "results.json").read_text())["results"]
        assert results[0]["policy"] == "none"
        one = text_of(demo.parent / name / "report.html")
        assert "What a cache would have saved" in one and "Where in memory" in one, "report and replay in one page"


def test_a_demo_is_not_written_over_without_force(
    demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_trace(tmp_path / "traces" / "only", 6, scale=0.02)
    assert main(["--traces", str(tmp_path / "traces"), "-o", str(demo.parent)]) == 2
    assert "--force" in capsys.readouterr().err


def test_a_demo_of_nothing_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--traces", str(tmp_path), "-o", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "holds no trace" in error and error.count("\n") == 1
