"""`completion SHELL` of each program: what bash or zsh offers when Tab is pressed, made by shtab from the parser itself."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from collect.command_line import OneLineParser, Subparsers, add_command
from collect.errors import HostError

__all__ = ["SHELLS", "add_completion", "completion", "suggest"]

SHELLS = ("bash", "zsh")
COMMAND = "-- COMMAND"
"""Metavar of an argument that is a command line of its own."""

# Of what stands behind `--` the first word is a command, the others are its business: file names are the best guess.
PREAMBLE: Any = {
    "bash": """
_directmap_command() {
  local i
  for (( i = 1; i < COMP_CWORD; i++ )); do
    [[ ${COMP_WORDS[i]} == -- ]] && break
  done
  if (( i + 1 == COMP_CWORD )); then compgen -c -- "$1"; else compgen -f -- "$1"; fi
}
""",
    "zsh": """
_directmap_command() {
  if [[ ${words[CURRENT-1]} == -- ]]; then _command_names -e; else _files; fi
}
""",
}


def add_completion(commands: Subparsers, parser: OneLineParser) -> None:
    """Add the command `completion` to a program, of which `parser` is the whole."""
    name = parser.prog
    bash, zsh = f"~/.local/share/bash-completion/completions/{name}", f"~/.zfunc/_{name}"
    command = add_command(
        commands,
        "completion",
        "what bash or zsh completes this program's arguments with",
        (
            (
                f"{name} completion bash > {bash}",
                "for bash, from the next shell on (needs the package bash-completion)",
            ),
            (f"{name} completion zsh > {zsh}", "for zsh, where ~/.zshrc has `fpath+=~/.zfunc` before `compinit`"),
        ),
        more="It is printed, to be kept where the shell looks for it; make that directory first.",
    )
    command.add_argument("shell", choices=SHELLS, metavar="SHELL", help="bash or zsh")

    def run(options: argparse.Namespace, arguments: Sequence[str] = ()) -> int:
        print(completion(parser, options.shell))
        return 0

    command.set_defaults(run=run)


def suggest(action: argparse.Action, words: Callable[[], Sequence[str]]) -> None:
    """Offer words for an option that takes others too; they are asked for when the completion is made."""
    action.suggested = words  # type: ignore[attr-defined]


def completion(parser: argparse.ArgumentParser, shell: str) -> str:
    """The script for a shell of `SHELLS`; `parser` is of no use for help afterwards. Raises HostError where shtab is missing."""
    try:
        import shtab
    except ImportError:
        raise HostError("completion: needs the Python package shtab; pip install shtab") from None
    complete: Any
    for action in _actions(parser):
        if isinstance(action, argparse._SubParsersAction):
            for listed in action._choices_actions:  # zsh lists commands by their descriptions: a few words are enough
                action.choices[listed.dest].description = listed.help
            continue
        if suggested := getattr(action, "suggested", None):
            words = " ".join(sorted(suggested()))
            complete = shtab.cmd(f"echo {words}")
        elif action.metavar == COMMAND:
            complete = dict.fromkeys(SHELLS, "_directmap_command")
        elif action.type is Path:
            complete = shtab.FILE if action.metavar == "OUT" else shtab.DIRECTORY
        else:
            continue
        action.complete = complete  # type: ignore[attr-defined]
    text: str = shtab.complete(parser, shell, preamble=PREAMBLE)
    # shtab offers the rest of a line once; `--` itself is the first word of it, for zsh.
    return re.sub(r'"\(\*\)::([^"]*:_directmap_command)"', r'"*:\1"', text)


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)
