"""What all commands of all programs have in common: help that begins with examples, the same options, a manual page."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from importlib import import_module
from pathlib import Path

import pytest

from collect.command_line import OneLineParser
from collect.manual import manual_pages

PROGRAMS = ("collect", "analyze", "replay")

PRINTS_NO_NUMBERS = {"record", "recover", "export", "completion", "manual"}
"""On stdout: a path, a script, a page, or nothing (what a recording did goes to stderr; `info --json` has it)."""
WRITES_NOTHING = {"check"}
"""Its -o says where a recording would go."""


def parser_of(program: str) -> OneLineParser:
    parser: OneLineParser = import_module(f"{program}.__main__")._parser()
    return parser


def commands_of(parser: OneLineParser) -> dict[str, OneLineParser]:
    (choices,) = [action.choices for action in parser._actions if isinstance(action.choices, dict)]
    return dict(choices)


PARSERS = {program: parser_of(program) for program in PROGRAMS}
COMMANDS = {
    f"{program} {name}": (PARSERS[program], command)
    for program in PROGRAMS
    for name, command in commands_of(PARSERS[program]).items()
}
EVERY_PARSER = {**{program: (parser, parser) for program, parser in PARSERS.items()}, **COMMANDS}
PAGES = {name: page for parser in PARSERS.values() for name, page in manual_pages(parser).items()}


def options_of(parser: OneLineParser) -> set[str]:
    return {option for action in parser._actions for option in action.option_strings}


@pytest.mark.parametrize("name", EVERY_PARSER)
def test_help_begins_with_what_it_does_and_examples(name: str) -> None:
    _, parser = EVERY_PARSER[name]
    about, examples, *rest = parser.format_help().split("\n\n")
    assert about[0].isupper() and about.endswith(".")
    assert examples.startswith("examples:\n  directmap-")
    assert rest[0].startswith("usage: ")
    assert rest[-1].startswith("exit status:\n  0 ")
    copied = {command for command, _ in parser.examples}
    assert all(len(line) < 80 or line.strip() in copied for line in parser.format_help().splitlines())


@pytest.mark.parametrize("name", EVERY_PARSER)
def test_every_example_parses_and_is_of_its_command(name: str) -> None:
    program, parser = EVERY_PARSER[name]
    assert parser.examples
    for example, does in parser.examples:
        assert does and not does.endswith(".")
        words = shlex.split(example)
        assert example.startswith(parser.prog)
        # what stands behind a pipe or a redirection is the shell's
        arguments = words[1 : min(words.index(sign) if sign in words else len(words) for sign in ("|", ">"))]
        options = program.parse_args(arguments)
        assert callable(options.run)


@pytest.mark.parametrize("name", EVERY_PARSER)
def test_every_argument_is_explained(name: str) -> None:
    _, parser = EVERY_PARSER[name]
    for action in parser._actions:
        assert action.help or action.choices, f"{name}: {action.dest}"


@pytest.mark.parametrize("name", COMMANDS)
def test_whatever_prints_numbers_prints_them_as_json_too(name: str) -> None:
    _, parser = COMMANDS[name]
    assert ("--json" in options_of(parser)) is (name.split()[1] not in PRINTS_NO_NUMBERS)


@pytest.mark.parametrize("name", COMMANDS)
def test_whatever_writes_is_told_where_by_o_and_replaces_by_force_alone(name: str) -> None:
    _, parser = COMMANDS[name]
    options = options_of(parser)
    assert ("-o" in options) is ("--output" in options)
    if name.split()[1] not in WRITES_NOTHING:
        assert ("-o" in options) is ("--force" in options)
    assert not options & {"--out", "--overwrite", "--quiet", "--verbose", "--format-json"}


def test_a_command_is_told_the_same_thing_by_the_same_option() -> None:
    """One type and one metavar for each option, wherever it is found."""
    met: dict[str, set[tuple[object, ...]]] = {}
    for _, parser in COMMANDS.values():
        for action in parser._actions:
            for option in action.option_strings:
                if option.startswith("--") and option != "--output":  # OUT is a file or a directory, DIR a directory
                    met.setdefault(option, set()).add((str(action.type), action.metavar))
    assert {option: forms for option, forms in met.items() if len(forms) > 1} == {}


@pytest.mark.parametrize("page", PAGES)
def test_a_manual_page_says_what_the_help_says(page: str) -> None:
    program, _, command = page.removesuffix(".1").removeprefix("directmap-").partition("-")
    _, parser = EVERY_PARSER[f"{program} {command}".strip()]
    text = read(PAGES[page])
    for section in ("NAME", "SYNOPSIS", "DESCRIPTION", "EXAMPLES", "OPTIONS", "EXIT STATUS", "SEE ALSO"):
        assert f"\n{section}\n" in text
    flat = " ".join(text.split())
    for example, _ in parser.examples:
        assert example in text
    for action in parser._actions:
        if action.help != "==SUPPRESS==":
            assert all(option in text for option in action.option_strings)
    for number, meaning in parser.all_exits().items():
        assert f"{number} {meaning[0].upper()}{meaning[1:]}" in flat


def read(page: str) -> str:
    """A page as a terminal shows it, too wide for anything to be broken."""
    if shutil.which("mandoc"):
        command = ["mandoc", "-T", "ascii", "-O", "width=300"]
    elif shutil.which("man"):
        command = ["man", "-E", "ascii", "-l", "-"]
    else:
        pytest.skip("neither mandoc nor man is installed: apt install mandoc")
    done = subprocess.run(
        command,
        input=page,
        capture_output=True,
        text=True,
        check=True,
        env={"MANWIDTH": "300", "PATH": "/usr/bin:/bin"},
    )
    return "\n".join(line.strip() for line in strip_overstrikes(done.stdout).splitlines())


def strip_overstrikes(text: str) -> str:
    shown: list[str] = []
    for character in text:
        if character == "\b":
            shown.pop()
        else:
            shown.append(character)
    return "".join(shown)


@pytest.mark.skipif(shutil.which("mandoc") is None, reason="mandoc is not installed: apt install mandoc")
@pytest.mark.parametrize("page", PAGES)
def test_mandoc_finds_nothing_wrong_with_a_page(page: str, tmp_path: Path) -> None:
    (tmp_path / page).write_text(PAGES[page])
    done = subprocess.run(["mandoc", "-T", "lint", tmp_path / page], capture_output=True, text=True, check=False)
    said = [line for line in (done.stdout + done.stderr).splitlines() if "missing date" not in line]
    assert [line for line in said if "STYLE: input text line longer" not in line] == []


@pytest.mark.skipif(shutil.which("man") is None, reason="man is not installed: apt install man-db")
def test_man_db_shows_every_page_without_a_warning(tmp_path: Path) -> None:
    for name, page in PAGES.items():
        (tmp_path / name).write_text(page)
    done = subprocess.run(
        ["man", "--warnings=mac,break,escape", "-l", *PAGES], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""


def test_manual_pages_are_written_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main = import_module("collect.__main__").main
    assert main(["manual", "-o", str(tmp_path / "man1")]) == 0
    written = sorted(path.name for path in (tmp_path / "man1").iterdir())
    assert written == sorted(name for name in PAGES if name.startswith("directmap-collect"))
    capsys.readouterr()
    assert main(["manual", "-o", str(tmp_path / "man1")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "--force" in error
    assert main(["manual", "-o", str(tmp_path / "man1"), "--force"]) == 0


def test_a_page_without_output_goes_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert import_module("analyze.__main__").main(["manual"]) == 0
    assert capsys.readouterr().out == PAGES["directmap-analyze.1"]
