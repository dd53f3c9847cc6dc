"""`manual` of each program: manual pages, made from the same text as the help (`collect.command_line`).

One page for the program and one for each command, as git has them: directmap-analyze(1), directmap-analyze-who(1). They
are written in the macros of man(7), the few that man-db, mandoc and groff agree on.
"""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from collect import __version__
from collect.command_line import OneLineParser, Subparsers, add_command
from collect.errors import HostError

__all__ = ["add_manual", "manual_pages"]

LICENCE = "Apache-2.0; the BPF programs GPL-2.0-only or Apache-2.0."


def add_manual(commands: Subparsers, parser: OneLineParser) -> None:
    """Add the command `manual` to a program, of which `parser` is the whole."""
    name = parser.prog
    command = add_command(
        commands,
        "manual",
        "manual pages, printed or written into a directory",
        (
            (f"{name} manual | man -l -", "read the page of this program"),
            (f"{name} manual -o ~/.local/share/man/man1", "keep all of them where man(1) finds them"),
        ),
    )
    command.add_argument("-o", "--output", type=Path, metavar="DIR", help="write a page a command into this directory")
    command.add_argument("--force", action="store_true", help="write over pages that are there")

    def run(options: argparse.Namespace, arguments: Sequence[str] = ()) -> int:
        pages = manual_pages(parser)
        if options.output is None:
            print(pages[f"{name}.1"], end="")
            return 0
        _write(pages, options.output, force=options.force)
        return 0

    command.set_defaults(run=run)


def manual_pages(parser: OneLineParser) -> dict[str, str]:
    """Every page of a program in the macros of man(7), by the name of its file."""
    commands = _commands(parser)
    pages = {f"{parser.prog}.1": _page(parser, commands)}
    for command in commands.values():
        pages[f"{command.prog.replace(' ', '-')}.1"] = _page(command, {})
    return pages


def _write(pages: dict[str, str], folder: Path, *, force: bool) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        there = [name for name in pages if (folder / name).exists()]
        if there and not force:
            raise HostError(f"{folder / there[0]}: exists; choose another -o, or --force to write over it")
        for name, text in pages.items():
            (folder / name).write_text(text)
    except OSError as error:
        raise HostError(f"{folder}: cannot be written ({error.strerror}); choose another -o") from None
    for name in pages:
        print(folder / name)


def _commands(parser: OneLineParser) -> dict[str, OneLineParser]:
    """By name, in the order in which they were added."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def _page(parser: OneLineParser, commands: dict[str, OneLineParser]) -> str:
    name = parser.prog.replace(" ", "-")
    does = (parser.description or "").partition(". ")[0].rstrip(".")
    does = does[0].lower() + does[1:]
    lines = [
        f'.TH {name.upper()} 1 "" "directmap {__version__}" "directmap"',
        *(".ad l", ".nh"),  # commands and options are to be copied: no stretched spaces, no hyphens of ours
        *(".SH NAME", f"{name} \\- {_text(does)}"),
        *(".SH SYNOPSIS", *_synopsis(parser)),
        *(".SH DESCRIPTION", *_sentences(parser.description or "")),
        *(".SH EXAMPLES", *_examples(parser)),
    ]
    if commands:
        lines.append(".SH COMMANDS")
        for command, its in commands.items():
            about = (its.description or "").partition(". ")[0].rstrip(".") + "."
            lines += [".TP", f".BR {_text(its.prog.replace(' ', '-'))} (1)", *_sentences(about)]
            assert command in its.prog
    lines += _arguments(parser)
    lines.append(".SH EXIT STATUS")
    for number, text in parser.all_exits().items():
        lines += [".TP", f".B {number}", *_sentences(_sentence(text))]
    lines += [
        ".SH ENVIRONMENT",
        ".TP",
        ".B NO_COLOR",
        "No colours, and no table that is drawn over.",
        ".SH LICENSE",
        LICENCE,
    ]
    lines += [".SH SEE ALSO", *_see_also(parser, commands)]
    return "\n".join(lines) + "\n"


def _synopsis(parser: OneLineParser) -> list[str]:
    plain = re.sub(r"\x1b\[[0-9;]*m", "", parser.format_usage())  # Python 3.14 colours it where stdout is a terminal
    usage = " ".join(plain.split()).removeprefix("usage: ").removeprefix(parser.prog).strip()
    # In usage lines words in capitals stand for something, all else is typed as it is.
    words = re.sub(r"[A-Z][A-Z_]+", lambda word: f"\\fI{word[0]}\\fR", _text(usage))
    return [f".B {_text(parser.prog)}", words]


def _examples(parser: OneLineParser) -> list[str]:
    lines = []
    for command, does in parser.examples:
        shown = [".PP", ".in +4n", ".nf", f"\\fB{_text(command)}\\fR", ".fi", ".in"]
        lines += [".PP", *_sentences(_sentence(does)[:-1] + ":"), *shown]
    return lines[1:]


def _arguments(parser: OneLineParser) -> list[str]:
    lines: list[str] = []
    formatter = parser._get_formatter()
    for title, optional in (("ARGUMENTS", False), ("OPTIONS", True)):
        actions = [
            action
            for action in parser._actions
            if bool(action.option_strings) is optional
            and action.help != argparse.SUPPRESS
            and not isinstance(action, argparse._SubParsersAction)
        ]
        if actions:
            lines.append(f".SH {title}")
        for action in actions:
            lines += [".TP", _named(action), *_sentences(_sentence(formatter._expand_help(action)))]
    return lines


def _named(action: argparse.Action) -> str:
    metavar = str(action.metavar or ("{" + ",".join(map(str, action.choices)) + "}" if action.choices else action.dest))
    if not action.option_strings:
        return f"\\fI{_text(metavar)}\\fR"
    value = "" if action.nargs == 0 else f" \\fI{_text(metavar)}\\fR" + (" ..." if action.nargs == "+" else "")
    return ", ".join(f"\\fB{_text(option)}\\fR" for option in action.option_strings) + value


def _see_also(parser: OneLineParser, commands: dict[str, OneLineParser]) -> list[str]:
    programs = {"directmap-collect", "directmap-analyze", "directmap-replay"}
    name = parser.prog.partition(" ")[0]
    if commands:
        programs.discard(name)
    return [", ".join(f"\\fB{_text(one)}\\fR(1)" for one in sorted(programs))]


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _sentences(text: str) -> Iterator[str]:
    """Each sentence begins a line, as man(7) wants it: the space between them is the formatter's."""
    for sentence in re.split(r"(?<=\.) (?=[A-Z])", text):
        for line in textwrap.wrap(sentence, 72, break_long_words=False, break_on_hyphens=False):
            yield _text(line)


def _text(text: str) -> str:
    """Plain text as it is printed: no backslash escapes, hyphens that can be copied, no line that is a request."""
    text = (
        text.replace("\\", "\\(rs")
        .replace("-", "\\-")
        .replace("~", "\\(ti")
        .replace("^", "\\(ha")
        .replace("`", "\\(ga")
    )
    return "\\&" + text if text.startswith((".", "'")) else text
