"""What the three programs have in common: help, one line for whatever goes wrong, on stderr, and the exit status."""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from collect import __version__
from collect.errors import HostError, TraceError
from collect.progress import Working, terminal

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction["OneLineParser"]
else:
    Subparsers = Any

__all__ = ["DONE", "ENDED", "FAILED", "Example", "OneLineParser", "Subparsers", "add_command", "program", "run_program"]

Example = tuple[str, str]
"""A command line that parses as it stands, and what it does."""

COLUMNS = 79
_REQUIRED = "the following arguments are required: "
"""How argparse begins when one is missing."""

DONE = {0: "done"}
FAILED = "could not be done; one line on stderr says what was found, where, and what to do"
ENDED = {130: "aborted by Ctrl-C", 141: "whoever read our output went away"}


class OneLineParser(argparse.ArgumentParser):
    """Says in one line what is wrong with the arguments, where argparse says it below a list of them all.

    Its help begins with what the command does and examples, and ends with its exit statuses. The same text makes the
    manual pages (`collect.manual`).

    Attributes:
        examples: see `Example`.
        exits: meaning of each exit status but those in `ENDED`.
        stray: what to do with values that no argument takes, if that can be told.
    """

    examples: Sequence[Example] = ()
    exits: Mapping[int, str] = DONE
    stray: str = ""
    _given: Sequence[str] = ()

    def error(self, message: str) -> NoReturn:
        if message.startswith(_REQUIRED):
            message += self._swallowed()
        message = "".join(c if c.isprintable() else "?" for c in message).encode("ascii", "backslashreplace").decode()
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's, but that a command says itself what it does not know: argparse leaves it to the program, whose help
        does not tell what the command takes."""
        self._given = list(sys.argv[1:] if args is None else args)
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown:
            hint = f"; {self.stray}" if self.stray and not any(word.startswith("-") for word in unknown) else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return parsed, unknown

    def _swallowed(self) -> str:
        """Where an argument is missing: the directory that an option of several values took for one of its own, if any."""
        many = {flag for action in self._actions if action.nargs == "+" for flag in action.option_strings}
        option = ""
        for word in self._given:
            if word.startswith("-"):
                option = word if word in many else ""
            elif option and os.path.isdir(word):  # noqa: PTH112  Path's raises where a name is too long
                return f"; {option} took {word} for one of its values: put it before {option}"
        return ""

    def format_help(self) -> str:
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, self._actions, self._mutually_exclusive_groups)
        for group in self._action_groups:
            formatter.start_section(group.title)
            formatter.add_text(group.description)
            formatter.add_arguments(group._group_actions)
            formatter.end_section()
        return "\n\n".join(
            [
                "\n".join(textwrap.wrap(self.description or "", COLUMNS)),
                "\n".join(["examples:", *aligned(self.examples)]),
                formatter.format_help().strip("\n"),
                "\n".join(["exit status:", *aligned([(str(n), text) for n, text in self.all_exits().items()])]) + "\n",
            ]
        )

    def all_exits(self) -> dict[int, str]:
        """Every exit status with its meaning, in order."""
        return dict(sorted({2: FAILED, **ENDED, **self.exits}.items()))


def aligned(pairs: Sequence[tuple[str, str]], indent: int = 2) -> list[str]:
    """Lines of two columns; where a left one is long and a right one does not fit beside it, of one below the other."""
    begin = indent + max((len(left) for left, _ in pairs), default=0) + 2
    beside = begin <= COLUMNS // 2 or all(begin + len(right) <= COLUMNS for _, right in pairs)
    lines = []
    for left, right in pairs:
        if not beside:
            lines.append(" " * indent + left)
        column = begin if beside else indent + 4
        wrapped = textwrap.wrap(right, COLUMNS, initial_indent=" " * column, subsequent_indent=" " * column)
        if beside:
            wrapped[0] = (" " * indent + left).ljust(column) + wrapped[0].lstrip()
        lines += wrapped
    return lines


def program(name: str, does: str, examples: Sequence[Example]) -> tuple[OneLineParser, Subparsers]:
    """The parser of a program, and where its commands go (`add_command`)."""
    parser = OneLineParser(prog=name, description=does)
    parser.examples = examples
    parser.add_argument("--version", action="version", version=f"directmap {__version__}")
    return parser, parser.add_subparsers(title="commands", required=True, metavar="COMMAND", parser_class=OneLineParser)


def add_command(
    commands: Subparsers,
    name: str,
    does: str,
    examples: Sequence[Example],
    *,
    more: str = "",
    exits: Mapping[int, str] = DONE,
) -> OneLineParser:
    """A command of a program.

    Args:
        does: in a few words, for the list of commands and the first line of its help.
        examples: at least one; each must parse.
        more: sentences that follow `does` in its own help and manual page.
        exits: meaning of its exit statuses, where there is more to say than that 0 means done.
    """
    about = f"{does[0].upper()}{does[1:]}.{f' {more}' if more else ''}"
    parser = commands.add_parser(name, help=does, description=about)
    parser.examples = examples
    parser.exits = exits
    return parser


def run_program(name: str, run: Callable[[], int], *, tell: bool = True) -> int:
    """Run a command of the program `name`; returns the exit status.

    Where stderr is a terminal it is told that a long command is at work, unless `tell` is False: the command does it better.
    2 after one line on stderr; 141 where the reader of stdout went away (what a shell says of SIGPIPE), 130 after Ctrl-C.
    """
    try:
        with _checked_stdout(), Working() if tell else nullcontext():
            return run()
    except (HostError, TraceError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        return 141
    except MemoryError:
        print(f"{name}: out of memory; use a machine with more", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: aborted", file=sys.stderr)
        return 130


class _Checked:
    """stdout, whose failures (a full disk) are a HostError of one line; that its reader went away stays BrokenPipeError."""

    def __init__(self, inner: TextIO) -> None:
        self._inner = inner

    def write(self, text: str) -> int:
        terminal.clear()
        with _told():
            return self._inner.write(text)

    def flush(self) -> None:
        with _told():
            self._inner.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise HostError(f"standard output cannot be written ({error.strerror}); send it elsewhere") from None


@contextmanager
def _checked_stdout() -> Iterator[None]:
    """Everything is written when this is left; where it could not be, nobody tries again when the interpreter ends."""
    inner: TextIO | None = sys.stdout
    if inner is None:  # closed by whoever called us: there is nobody to tell
        yield
        return
    checked: Any = _Checked(inner)
    sys.stdout = checked
    try:
        yield
        checked.flush()
    except BaseException:
        _flush_or_drop(inner)
        raise
    finally:
        sys.stdout = inner


def _flush_or_drop(inner: TextIO) -> None:
    try:
        inner.flush()
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, inner.fileno())
        os.close(null)
