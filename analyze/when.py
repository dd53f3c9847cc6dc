"""TIME on a command line: one way to name a moment of a trace.

12.5          seconds since the start of the recording
start, end    the first and last moment that the trace covers
50%           so much of the way from start to end
@1234567890   nanoseconds since boot, as `ts_ns` in every table
"""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from collect.errors import TraceError

__all__ = ["FORMS", "Span", "When", "add_when", "parse", "within"]

FORMS = "seconds since the start (12.5), start, end, a percentage (50%%) or @NANOSECONDS since boot"
"""For help texts of argparse, which wants its per cent signs twice."""

_NUMBER = re.compile(r"[0-9]{1,12}(\.[0-9]{0,12})?")


class Span(NamedTuple):
    """What a trace covers: moments for which the state is known.

    Attributes:
        zero_ns: where its seconds count from.
        first_ns, last_ns: the first and last moment covered.
    """

    zero_ns: int
    first_ns: int
    last_ns: int

    def seconds(self, ts_ns: int) -> float:
        """A moment as seconds of the trace."""
        return (ts_ns - self.zero_ns) / 1e9

    def text(self, ts_ns: int) -> str:
        """The same with all nine places, so that it can be given back as TIME."""
        sign, since = ("-", self.zero_ns - ts_ns) if ts_ns < self.zero_ns else ("", ts_ns - self.zero_ns)
        return f"{sign}{since // 10**9}.{since % 10**9:09}"


@dataclass(frozen=True)
class When:
    """A moment, not yet of a certain trace.

    Attributes:
        unit: "s" (since the start), "%" (from start to end) or "@" (nanoseconds since boot).
        text: as it was given.
    """

    unit: str
    value: Fraction
    text: str

    def ns(self, span: Span) -> int:
        """Nanoseconds since boot. Whether the trace covers that moment, whoever asks for the state there says."""
        if self.unit == "@":
            return int(self.value)
        if self.unit == "s":
            return span.zero_ns + round(self.value * 10**9)
        return span.first_ns + round(self.value * (span.last_ns - span.first_ns) / 100)

    def __str__(self) -> str:
        return self.text

    def outside(self, span: Span) -> str:
        """What is wrong with a moment that the trace does not cover; empty where it covers it."""
        ts_ns = self.ns(span)
        if span.first_ns <= ts_ns <= span.last_ns:
            return ""
        which, edge = ("before the start", span.first_ns) if ts_ns < span.first_ns else ("after the end", span.last_ns)
        first, last = (f"@{edge}", "") if self.unit == "@" else (f"{span.seconds(edge):.1f} s", " s")
        return (
            f"{self.text}{last} is {which} ({first}); give a time from {span.text(span.first_ns)} to "
            f"{span.text(span.last_ns)} s, or a percentage"
        )


def within(when: When, span: Span, flag: str, path: Path) -> int:
    """Nanoseconds since boot of the TIME that an option was given, of the trace at `path`. Raises TraceError where it is outside."""
    wrong = when.outside(span)
    if wrong:
        raise TraceError(f"{path}: {flag} {wrong}")
    return when.ns(span)


def parse(text: str) -> When:
    """Read a TIME. Raises ArgumentTypeError for what is none."""
    if text in ("start", "end"):
        return When("%", Fraction(0 if text == "start" else 100), text)
    unit, number = "s", text
    if text.startswith("@"):
        unit, number = "@", text[1:]
        if re.fullmatch(r"[0-9]{1,19}", number):
            return When(unit, Fraction(number), text)
    elif text.endswith("%"):
        unit, number = "%", text[:-1]
    shown = "".join(c if c.isprintable() else "?" for c in text[:30])
    if unit == "%" and _NUMBER.fullmatch(number) and Fraction(number) > 100:
        raise argparse.ArgumentTypeError(f"{shown!r}: a percentage goes from 0% to 100%")
    if unit == "@" or not _NUMBER.fullmatch(number):
        raise argparse.ArgumentTypeError(f"{shown!r} is no time; give {FORMS.replace('%%', '%')}")
    return When(unit, Fraction(number), text)


def add_when(parser: argparse.ArgumentParser, flag: str, what: str, default: str | None = None) -> None:
    """An option that takes a TIME; required where there is no default."""
    parser.add_argument(
        flag,
        type=parse,
        metavar="TIME",
        required=default is None,
        default=parse(default) if default is not None else None,
        help=f"{what}: {FORMS}" + (f"; {default} if not given" if default is not None else ""),
    )
