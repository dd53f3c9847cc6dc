"""README.md on clean Debian 12 and 13 userlands, to the letter; then the wheel and the sdist. As root, with debootstrap: `make test-install`.

The tests of a suite build on each other, in the order in which they stand here, as the page is read. The kernel is that of this
machine: where it lets nobody record, the recorder has to say so in one line, and a sample goes on in the recording's place. What
an installed wheel records on a kernel of Debian's is `test_guest.py`.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.install.clean_debian import HOME, UID, CleanDebian
from tests.install.readme import README, commands
from tests.vm import shell

ROOT = README.parent
SUITES = os.environ.get("DIRECTMAP_INSTALL_SUITES", "bookworm trixie").split()
SEE, RECORD = "See it: two commands", "Record your own machine"

pytestmark = [
    pytest.mark.install,
    pytest.mark.skipif(
        "DIRECTMAP_INSTALL" not in os.environ, reason="installs into clean userlands: make test-install"
    ),
]


@pytest.fixture(scope="module", params=SUITES)
def debian(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CleanDebian]:
    tree = tmp_path_factory.mktemp("userland") / request.param
    userland = CleanDebian(request.param, tree)
    userland.give(ROOT, "directmap")
    yield userland
    shutil.rmtree(tree)


def typed(debian: CleanDebian, command: str, *, status: int = 0, where: str = "directmap") -> str:
    """Type a command in the checkout, say yes to what it asks; what it printed."""
    done = debian.run(f"cd ~/{where} && {command}", typed="y\n" * 9)
    told = f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    assert done.returncode == status, told
    assert "Traceback" not in done.stdout + done.stderr, told
    return done.stdout


def in_checkout(debian: CleanDebian, name: str) -> Path:
    return debian.tree / HOME.lstrip("/") / "directmap" / name


def test_the_demo_is_made(debian: CleanDebian) -> None:
    (install,) = re.findall(
        r"`(sudo apt install [^`]*)`", README.read_text().partition("## " + SEE)[2].partition("## ")[0]
    )
    typed(debian, install, where="")
    page = typed(debian, "make demo").splitlines()[-1]
    assert page == f"{HOME}/directmap/demo/index.html"
    text = (debian.tree / page.lstrip("/")).read_text()
    assert all(sample in text for sample in ("5.10-bpf", "6.1-churn", "7.2-churn"))
    assert not re.findall(r'(?:src|href)="https?:', text)


@pytest.mark.skipif("DIRECTMAP_INSTALL_FULL" not in os.environ, reason="half an hour a suite: make test-install FULL=1")
def test_the_tests_pass(debian: CleanDebian) -> None:
    assert "make test" in commands(SEE)
    assert re.search(r"\d+ passed", typed(debian, "make test"))


def test_every_step_of_a_recording_works(debian: CleanDebian) -> None:
    steps = commands(RECORD)
    steps = steps[: next(i for i, step in enumerate(steps) if "pipx" in step)]
    done = dict.fromkeys(("apt", "venv", "check", "record", "verify", "summary", "report", "run"), False)
    works: list[str] = []
    for step in steps:
        (kind,) = {word for word in step.split() if word in done}
        if kind == "check":
            works = checked(debian, step)
        elif kind == "record" and "record" not in works:
            refused(debian, step)
            shutil.copytree(ROOT / "sample_traces" / "6.1-churn", trace := in_checkout(debian, "my-trace"))
            shell.run(["chown", "-R", f"{UID}:{UID}", trace], what="giving the sample away")
        else:
            said = typed(debian, step)
            assert kind != "verify" or said.startswith("exact: my-trace\n")
            assert kind != "summary" or said.startswith("my-trace: Linux ")
        done[kind] = True
    assert all(done.values()), done
    assert in_checkout(debian, "my-report/report.html").stat().st_uid == UID
    assert in_checkout(debian, "my-replay/split.png").is_file()
    if "record --only-pages" in works:
        records_page_events(debian, "sudo .venv/bin/directmap-collect")


def checked(debian: CleanDebian, command: str) -> list[str]:
    """Run `check`, which has to find the distribution's bcc; the recordings that would work here."""
    done = debian.run(f"cd ~/directmap && {command}")
    assert re.search(r"^ok +bcc: .*/usr/lib/python3/dist-packages/bcc", done.stdout, re.MULTILINE), (
        done.stdout + done.stderr
    )
    works = re.findall(r"^works +directmap-collect (.*)$", done.stdout, re.MULTILINE)
    assert done.returncode == (0 if "record" in works else 2)
    assert done.stderr == ""
    return works


def refused(debian: CleanDebian, command: str) -> None:
    """This kernel lets nobody record: one line says why, and nothing is left."""
    done = debian.run(f"cd ~/directmap && {command}")
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.fullmatch(r"directmap-collect: [^\n]+\n", done.stderr), done.stderr
    assert not in_checkout(debian, "my-trace").exists()


def records_page_events(debian: CleanDebian, collect: str) -> None:
    """What does work on this kernel, with this suite's Python and bcc: its files belong to who called sudo."""
    typed(debian, f"{collect} record --only-pages -o pages --force -- sleep 2")
    assert {file.stat().st_uid for file in in_checkout(debian, "pages").iterdir()} == {UID}
    assert '"complete": true' in typed(debian, ".venv/bin/directmap-analyze info pages --json")


def test_pipx_installs_what_the_page_says(debian: CleanDebian) -> None:
    steps = [step for step in commands(RECORD) if "pipx" in step or "~/.local/bin" in step]
    assert len(steps) == 3
    for step in steps[:2]:
        typed(debian, step)
    works = checked(debian, steps[2])
    assert typed(debian, "~/.local/bin/directmap-analyze verify my-trace").startswith("exact: my-trace\n")
    assert "none: as recorded" in typed(debian, "~/.local/bin/directmap-replay policies")
    if "record --only-pages" in works:
        records_page_events(debian, "sudo ~/.local/bin/directmap-collect")


@pytest.mark.parametrize("ending", [".whl", ".tar.gz"])
def test_a_plain_environment_holds_all_that_is_needed(debian: CleanDebian, dist: dict[str, Path], ending: str) -> None:
    archive = dist[ending]
    shutil.copy(archive, in_checkout(debian, archive.name))
    venv = f"plain{ending}"
    typed(debian, f"python3 -m venv ~/{venv} && ~/{venv}/bin/pip install -q ~/directmap/{archive.name}")
    # Away from the checkout: nothing may come from there.
    assert typed(debian, f"~/{venv}/bin/directmap-analyze verify directmap/my-trace", where="").startswith("exact")
    page = typed(debian, f"~/{venv}/bin/directmap-analyze report directmap/my-trace -o {venv}-report", where="").strip()
    assert (debian.tree / HOME.lstrip("/") / page).stat().st_size > 100_000
    typed(debian, f"~/{venv}/bin/directmap-replay run directmap/my-trace --policy none", where="")
    programs = typed(debian, f"cd ~/{venv}/lib/python3*/site-packages/collect/bpf && ls", where="").split()
    assert {path.name for path in (ROOT / "collect" / "bpf").glob("*.[ch]")} <= set(programs)
    for name in ("man/man1/directmap-analyze-verify.1", "bash-completion/completions/directmap-collect"):
        typed(debian, f"test -s ~/{venv}/share/{name}", where="")
    works = checked(debian, f"sudo ~/{venv}/bin/directmap-collect check")
    if "record --only-pages" in works:
        records_page_events(debian, f"sudo ~/{venv}/bin/directmap-collect")
