"""`directmap-collect`: one line and exit status 2 for whatever it cannot do; help with examples; light imports."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from collect import check, privileges, recorder
from collect.__main__ import main
from collect.check import would_work
from collect.errors import HostError
from collect.kernel import Kernel
from collect.pagetables import Leaves
from collect.probes import Features
from collect.trace import open_trace
from tests.unit.test_json_keys import expanded, pattern, printed

ROOT = Path(__file__).parents[2]
JSON_KEYS = (ROOT / "docs" / "json.md").read_text()
Capture = pytest.CaptureFixture[str]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "collect", *arguments], cwd=ROOT, capture_output=True, text=True)


def refused(capsys: Capture, *arguments: str | Path) -> str:
    """Run a command that must be refused; its one line."""
    try:
        status: int | str | None = main([str(argument) for argument in arguments])
    except SystemExit as leaving:
        status = leaving.code
    out, err = capsys.readouterr()
    assert status == 2
    assert out == ""
    assert err.count("\n") == 1 and err.endswith("\n")
    assert err.startswith("directmap-collect")
    assert len(err) < 500
    return err


def assert_documented(command: str, told: object) -> None:
    """docs/json.md names every key that is printed, and no other."""
    (section,) = re.findall(rf"^## collect {command}\n(.*?)(?=^## |\Z)", JSON_KEYS, re.DOTALL | re.MULTILINE)
    rows = re.findall(r"^\| (`.*?`) \| ", section, re.MULTILINE)
    paths = {path for row in rows for cell in re.findall(r"`([^`]+)`", row) for path in expanded(cell)}
    met = {path: {name for name in paths if pattern(name).fullmatch(path)} for path, _ in printed(told)}
    assert [path for path, names in met.items() if not names] == []
    assert set().union(*met.values()) == paths


@pytest.fixture
def as_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(privileges, "held", lambda: frozenset())


@pytest.fixture
def as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that would do, up to the moment when the directory is made."""
    monkeypatch.setattr(recorder, "ask", lambda wanted: None)
    monkeypatch.delenv("SUDO_UID", raising=False)
    memory = {"max_pfn": 8, "paging_levels": 4, "ranges": [[1, 8]], "physical_mask": None}
    kernel = Kernel(None, Features(), memory, 0, {"PHYS_MASK": 0})  # type: ignore[arg-type]
    monkeypatch.setattr(recorder, "kernel_for_changes", lambda *, all_pages: kernel)


def test_recording_without_privileges_is_refused_with_their_names(
    as_user: None, tmp_path: Path, capsys: Capture
) -> None:
    said = refused(capsys, "record", "-o", tmp_path / "trace", "-d", "1")
    assert "CAP_BPF" in said and "CAP_SYS_RAWIO" in said and "run it as root (sudo)" in said and "setpriv" in said
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "COMMAND"),
        (("rekord",), "rekord"),
        (("record",), "-o/--output"),
        (("record", "-o", "x", "--pages", "some"), "--pages"),
        (("record", "-o", "x", "--only-pages", "--pages", "none"), "nothing is left to record"),
        (("record", "-o", "x", "--sample", "3", "--pages", "all"), "power of two"),
        (("record", "-o", "x", "--sample", "4"), "goes with --pages all"),
        (("record", "-o", "x", "--max-overhead", "0"), "above 0"),
        (("record", "-o", "x", "-d", "soon"), "--duration"),
        (("record", "-o", "x", "-d", "0"), "greater than 0"),
        (("record", "-o", "x", "-d", "-3"), "greater than 0"),
        (("record", "-o", "x", "-d", "nan"), "greater than 0"),
        (("record", "-o", "x", "-d", "inf"), "greater than 0"),
        (("recover",), "DIR"),
        (("snapshot", "--csv"), "--csv"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(arguments: tuple[str, ...], told: str, capsys: Capture) -> None:
    assert told in refused(capsys, *arguments)


def test_the_process_says_it_in_one_line_too() -> None:
    done = run("record", "-d", "1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "directmap-collect record: the following arguments are required: -o/--output; "
        "see directmap-collect record --help\n"
    )


def test_an_output_that_cannot_be_written_is_refused(as_root: None, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "file").write_text("mine")
    for output in (tmp_path / "file", tmp_path / "file" / "trace"):
        assert "choose another -o" in refused(capsys, "record", "-o", output, "-d", "1")
    assert (tmp_path / "file").read_text() == "mine"


def test_what_is_not_ours_is_never_replaced(as_root: None, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    for force in ((), ("--force",)):
        assert "thesis.tex" in refused(capsys, "record", "-o", tmp_path, *force)
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_a_trace_is_replaced_by_force_only(as_root: None, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    assert "--force to replace it" in refused(capsys, "record", "-o", tmp_path)
    assert (tmp_path / "manifest.json").read_text() == "{}"


def failing(monkeypatch: pytest.MonkeyPatch, error: Exception, *, recording: bool) -> None:
    def fail(self: recorder.Recorder, *arguments: object) -> None:
        self._recording = recording
        raise error

    monkeypatch.setattr(recorder.Recorder, "_run", fail)


def test_what_breaks_while_recording_leaves_the_journal_and_one_line(
    as_root: None, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, OSError(5, "Input/output error"), recording=True)
    told = refused(capsys, "record", "-o", tmp_path / "broken")
    assert "Input/output error" in told and f"recover {tmp_path / 'broken'}" in told
    assert (tmp_path / "broken" / "journal" / "manifest.json").is_file()
    failing(monkeypatch, HostError("make: cannot be run"), recording=True)
    refused(capsys, "record", "-o", tmp_path / "command")
    assert (tmp_path / "command" / "journal" / "manifest.json").is_file()


def test_a_full_disk_ends_a_recording_with_a_trace(
    as_root: None, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, OSError(28, "No space left on device"), recording=True)
    told = refused(capsys, "record", "-o", tmp_path / "full")
    assert "No space left on device" in told and "is saved up to there" in told
    assert open_trace(tmp_path / "full").manifest["ended"] == "the disk was full"


def test_what_breaks_before_anything_was_recorded_leaves_nothing_behind(
    as_root: None, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, HostError("the BPF programs do not load here: no kernel headers"), recording=False)
    for _ in range(2):
        assert "do not load here" in refused(capsys, "record", "-o", tmp_path / "trace")
        assert not (tmp_path / "trace").exists()


def test_there_is_nothing_to_recover_where_nothing_was_recorded(tmp_path: Path, capsys: Capture) -> None:
    assert "no journal here" in refused(capsys, "recover", tmp_path)
    assert "missing: no such directory; give" in refused(capsys, "recover", tmp_path / "missing")
    (tmp_path / "manifest.json").write_text("{}")
    assert "nothing to recover" in refused(capsys, "recover", tmp_path)


def test_ctrl_c_leaves_with_130_and_no_traceback(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("collect.recovery.recover", interrupted)
    assert main(["recover", "x"]) == 130
    assert capsys.readouterr().err == "directmap-collect: aborted\n"


@pytest.fixture
def kcore(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of two 2M leaves and one page, in two zones."""
    leaves = Leaves(np.array([0, 512, 1024], np.uint64), np.array([2, 2, 1], np.uint8), np.full(3, 3, np.uint64))
    none = Leaves(*(column[:0] for column in leaves))
    walker = namedtuple("walker", ["direct_map", "kernel_image"])(lambda between: leaves, lambda: none)
    monkeypatch.setattr("collect.kcore.Kcore", lambda: None)
    monkeypatch.setattr("collect.kallsyms.Kallsyms", lambda: None)
    monkeypatch.setattr("collect.host.physical_mask", lambda kcore, symbols: 0)
    monkeypatch.setattr("collect.host.zone_ranges", lambda: {"node 0 DMA": (0, 512), "node 0 Normal": (512, 1024)})
    monkeypatch.setattr("collect.pagetables.Walker", lambda kcore, mask: walker)
    claimed = {"meminfo/DirectMap4k": 8, "meminfo/DirectMap2M": 4096}
    monkeypatch.setattr("collect.counters.read_counters", lambda: claimed)


def test_a_snapshot_shows_the_page_tables_beside_meminfo_and_where_they_differ(kcore: None, capsys: Capture) -> None:
    assert main(["snapshot"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["DirectMap4k", "4", "kB", "8", "kB", "4", "kB", "more"] in rows
    assert ["DirectMap2M", "4096", "kB", "4096", "kB", "the", "same"] in rows
    assert ["DirectMap1G", "0", "kB", "-", "kB", "-"] in rows
    assert ["node", "0", "Normal", "0", "kB", "2048", "kB", "0", "kB"] in rows
    assert ["outside", "0", "kB", "0", "kB", "4", "kB"] in rows


def test_a_snapshot_as_json_is_strict(kcore: None, capsys: Capture) -> None:
    assert main(["snapshot", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["levels"] == {
        "DirectMap4k": {"page_tables_kb": 4, "meminfo_kb": 8, "difference_kb": 4},
        "DirectMap2M": {"page_tables_kb": 4096, "meminfo_kb": 4096, "difference_kb": 0},
        "DirectMap1G": {"page_tables_kb": 0, "meminfo_kb": None, "difference_kb": None},
    }
    assert told["zones"]["node 0 DMA"] == {"DirectMap4k": 0, "DirectMap2M": 2048, "DirectMap1G": 0}
    assert_documented("snapshot", told)


def test_check_names_everything_that_is_missing_and_what_mends_it(
    as_user: None, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(what: str) -> Callable[[], None]:
        def look() -> None:
            raise HostError(f"{what}: missing; look elsewhere")

        return look

    for name in ("Kallsyms", "Btf", "Kcore", "import_bcc"):
        monkeypatch.setattr(f"collect.check.{name}", missing(name))
    assert main(["check"]) == 2
    out, err = capsys.readouterr()
    assert err == ""
    for name in ("Kallsyms", "Btf", "Kcore", "import_bcc"):
        assert f"{name}: missing; look elsewhere" in out
    assert "MISSING privileges: uid 1000, has none, lacks cap_bpf" in out
    assert "-> run it with sudo" in out
    assert "no      directmap-collect record\n" in out
    assert main(["check", "--json"]) == 2
    told = json.loads(capsys.readouterr().out)
    rows = {row["what"]: row for row in told["findings"]}
    assert not rows["bcc"]["ok"] and rows["bcc"]["needed"] and rows["bcc"]["mend"]
    assert told["would_work"] == {"record": False, "record --only-pages": False}
    assert_documented("check", told)


def test_each_program_is_tried_and_what_the_kernel_refuses_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def compiled(bcc: object, text: str, flags: object) -> namedtuple:  # type: ignore[valid-type]
        if "KFUNC" in text:
            raise HostError("the BPF programs do not load here: Permission denied")
        bpf = SimpleNamespace(cleanup=lambda: None, attach_kprobe=lambda **where: None)
        return SimpleNamespace(bpf=bpf)  # type: ignore[return-value]

    monkeypatch.setattr("collect.check.compile_program", compiled)
    monkeypatch.setattr("collect.check.import_bcc", lambda: SimpleNamespace(__file__="/usr/lib/bcc/__init__.py"))
    rows = {row.what: row for row in check.findings()}
    assert rows["raw tracepoints"].ok and rows["kprobes"].ok
    assert not rows["fentry"].ok and "Permission denied" in rows["fentry"].found
    assert "--only-pages" in rows["fentry"].mend
    assert not would_work(list(rows.values()))["record"]


@pytest.mark.parametrize(
    ("release", "command"),
    [
        ("ID=debian\n", "sudo apt install python3-bpfcc"),
        ('ID=linuxmint\nID_LIKE="ubuntu debian"\n', "sudo apt install python3-bpfcc"),
        ('ID="rocky"\nID_LIKE="rhel centos fedora"\n', "sudo dnf install python3-bcc"),
    ],
)
def test_bcc_is_installed_by_the_distributions_own_command(
    release: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "read_text", lambda self, **how: release)
    assert check._install() == command


@pytest.mark.parametrize("arguments", [("--help",), ("record", "--help"), ("--version",)])
def test_help_and_version_go_to_stdout(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.returncode == 0
    assert done.stderr == ""
    assert done.stdout


def test_help_shows_examples_that_parse(capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    examples = [
        line.split("  ")[1].split()[1:] for line in text.splitlines() if line.startswith("  directmap-collect ")
    ]
    assert {example[0] for example in examples} == {"check", "record", "snapshot", "recover"}
    from collect.__main__ import _parser

    for example in examples:
        options = _parser().parse_args(example)
        if "--" in example:
            assert options.command == example[example.index("--") + 1 :]


@pytest.mark.parametrize("module", ["collect", "collect.__main__", "collect.recorder", "collect.trace"])
def test_what_is_imported_is_light(module: str) -> None:
    code = f"import sys, {module}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "collect" in loaded
    assert not loaded & {"bcc", "numba", "pandas", "matplotlib", "rich", "analyze", "replay"}
    if module in ("collect", "collect.__main__"):
        assert not loaded & {"numpy", "pyarrow"}
