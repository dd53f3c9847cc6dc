"""What holds for the project as a whole: pins, imports that run one way, numbers that agree, commands that exist."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

import collect
from analyze.losses import ARRAY_PAGES, CLASSES
from collect.schema import FORMAT_VERSION, TABLES, TABLES_SINCE

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = ("collect", "analyze", "replay")
MODULES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
SAMPLES = sorted(path.parent for path in (ROOT / "sample_traces").glob("*/manifest.json"))
MAX_SAMPLE_BYTES = 3 << 20


def pins(name: str) -> dict[str, str]:
    """Package to version, of a requirements file."""
    lines = [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9A-Za-z.]+", line) for line in lines), "name==version, nothing else"
    return {name.lower().replace("_", "-"): version for name, version in (line.split("==") for line in lines)}


def test_every_dependency_is_pinned() -> None:
    runtime, test = pins("requirements.txt"), pins("requirements-test.txt")
    names = [re.split(r"[<>=~!]", item)[0].lower() for item in PROJECT["project"]["dependencies"]]
    assert set(names) <= set(runtime)
    assert set(PROJECT["project"]["optional-dependencies"]["test"]) <= set(test)
    assert "bcc" not in runtime | test, "the package of that name on PyPI is another thing"
    assert all(runtime[name] == test[name] for name in runtime.keys() & test.keys())


def test_the_changelog_knows_this_version_and_this_format() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    assert f"### {collect.__version__}" in text
    assert re.search(rf"## Trace format\n(.|\n)*### {FORMAT_VERSION}\n", text)


def test_the_changelog_names_what_this_format_has_and_the_samples_have_not() -> None:
    """The samples are of format 1: classes of loss, tables and the recorder's counters that came since."""
    told = (ROOT / "CHANGELOG.md").read_text().partition("## Trace format")[2]
    first = json.loads((SAMPLES[0] / "manifest.json").read_text())
    assert first["format_version"] == 1
    new = (
        (set(CLASSES) - {ARRAY_PAGES} - set(first["losses"])) | (set(TABLES) - set(first["tables"])) | set(TABLES_SINCE)
    )
    counters = {name for path in MODULES for name in re.findall(r"recorder/[a-z_]+", path.read_text())}
    assert len(new) > 4 and len(counters) > 6
    assert {name for name in new | counters if f"`{name}`" not in told} == set()


def test_a_wheel_would_hold_every_package() -> None:
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in MODULES if path.name == "__init__.py"} | {
        "collect.bpf"
    }
    assert found == set(PROJECT["tool"]["setuptools"]["packages"])


@pytest.mark.parametrize(
    ("package", "begin"), [("analyze", "The modules of `analyze/`"), ("collect", "And those of `collect/`")]
)
def test_every_module_has_its_place_in_the_layout(package: str, begin: str) -> None:
    table = (
        (ROOT / "CONTRIBUTING.md")
        .read_text()
        .partition(begin)[2]
        .partition("| for | modules |")[2]
        .partition("\n\n")[0]
    )
    named = [name for name in re.findall(r"`([a-z0-9_/.*]+)`", table) if not name.endswith("/")]
    files = [path.relative_to(ROOT / package).with_suffix("") for path in (ROOT / package).rglob("*.py")]
    modules = {str(file) for file in files if not file.name.startswith("_")}
    folders = tuple(name[:-1] for name in named if name.endswith("/*"))
    alone = [name for name in named if not name.endswith("/*") and ".c" not in name]
    assert len(set(alone)) == len(alone)
    assert {name for name in modules if not folders or not name.startswith(folders)} == set(alone)
    assert all(any(name.startswith(folder) for name in modules) for folder in folders)


def imported(path: Path, *, at_import_only: bool) -> set[str]:
    """Top-level names of the packages that a module imports; or only those that it imports when it is imported."""
    tree = ast.parse(path.read_text())
    nodes: list[ast.AST] = list(ast.walk(tree))
    if at_import_only:
        inside = {
            id(inner)
            for node in nodes
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            for inner in ast.walk(node)
        }
        nodes = [node for node in nodes if id(node) not in inside]
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    """replay -> analyze -> collect; and nobody imports bcc, or the tests, by being imported."""
    package = path.relative_to(ROOT).parts[0]
    forbidden = {"collect": {"analyze", "replay"}, "analyze": {"replay"}, "replay": set()}[package] | {"tests"}
    assert not imported(path, at_import_only=False) & forbidden
    assert "bcc" not in imported(path, at_import_only=True)


def test_no_file_is_a_drawer_of_leftovers() -> None:
    drawers = {"utils", "util", "helpers", "common", "misc"}
    assert not [path for path in MODULES if path.stem in drawers]


def test_commands_exist() -> None:
    for command, target in PROJECT["project"]["scripts"].items():
        module, function = target.split(":")
        source = (ROOT / Path(*module.split("."))).with_suffix(".py").read_text()
        assert f"def {function}(" in source, command


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_knows_what_the_readme_names() -> None:
    readme = (ROOT / "README.md").read_text()
    targets = sorted(set(re.findall(r"(?:^    |`)make ([a-z][a-z-]+)", readme, re.MULTILINE)))
    assert {"demo", "test", "lab"} <= set(targets)
    for target in targets:
        subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True)


def test_the_readme_is_short_and_its_links_lead_somewhere() -> None:
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) < 200
    for link in re.findall(r"\]\(([^)#:]+)\)", readme):
        assert (ROOT / link).exists(), link


def test_the_ci_script_parses() -> None:
    subprocess.run(["bash", "-n", str(ROOT / ".ci" / "run")], check=True)


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.name)
def test_a_sample_is_small_and_says_where_it_comes_from(sample: Path) -> None:
    names = sorted(path.name for path in sample.iterdir())
    assert sum(path.stat().st_size for path in sample.iterdir()) <= MAX_SAMPLE_BYTES
    foreign = {name for name in names if not re.fullmatch(rf"({'|'.join(TABLES)})-\d+\.parquet|manifest\.json", name)}
    assert foreign and foreign <= {"PROVENANCE.md", "provenance.md", "provenance.txt", "provenance.json", "lab.json"}
    assert all((sample / name).read_text().strip() for name in foreign)
