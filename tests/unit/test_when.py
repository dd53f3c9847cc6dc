"""TIME: what a command line may say, and which nanosecond that is."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from analyze.when import Span, parse, within
from collect.errors import TraceError

SPAN = Span(zero_ns=5_000_000_000, first_ns=5_000_000_100, last_ns=9_000_000_003)


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("0", 5_000_000_000),
        ("2.5", 7_500_000_000),
        ("0.000000001", 5_000_000_001),
        ("3.999999999", 8_999_999_999),
        ("start", 5_000_000_100),
        ("end", 9_000_000_003),
        ("0%", 5_000_000_100),
        ("100%", 9_000_000_003),
        ("50%", 7_000_000_052),
        ("@7000000001", 7_000_000_001),
    ],
)
def test_a_time_is_one_nanosecond(text: str, ns: int) -> None:
    assert parse(text).ns(SPAN) == ns


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "-1",
        "1e3",
        "nan",
        "inf",
        "x101%",
        "%",
        "@",
        "@1.5",
        "@-1",
        "1 ",
        "5 %",
        "Start",
        "9" * 40,
        "٣",
        "1.2.3",
    ],
)
def test_what_is_no_time_is_refused_with_what_would_be_one(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is no time; give seconds since the start"):
        parse(text)


@pytest.mark.parametrize("text", ["101%", "100.1%", "150%"])
def test_a_percentage_is_told_how_far_it_goes(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=f"'{text}': a percentage goes from 0% to 100%"):
        parse(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("200", "--to 200 s is after the end (4.0 s); give a time from 0.000000100 to 4.000000003 s, or a percentage"),
        ("0", "--to 0 s is before the start (0.0 s); give a time from 0.000000100 "),
        ("@5", "--to @5 is before the start (@5000000100); "),
        ("@9000000004", "--to @9000000004 is after the end (@9000000003); "),
    ],
)
def test_a_moment_outside_is_told_with_its_option(text: str, says: str) -> None:
    with pytest.raises(TraceError) as caught:
        within(parse(text), SPAN, "--to", Path("my-trace"))
    assert str(caught.value).startswith(f"my-trace: {says}")


@pytest.mark.parametrize("text", ["start", "50%", "end", "@9000000003"])
def test_a_moment_inside_is_taken(text: str) -> None:
    assert within(parse(text), SPAN, "--to", Path("my-trace")) == parse(text).ns(SPAN)


def test_escape_codes_are_not_repeated() -> None:
    with pytest.raises(argparse.ArgumentTypeError) as caught:
        parse("\x1b[31m" + "x" * 200)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_the_text_of_a_moment_leads_back_to_it() -> None:
    for ns in (SPAN.first_ns, SPAN.last_ns, 6_123_456_789):
        assert parse(SPAN.text(ns)).ns(SPAN) == ns
