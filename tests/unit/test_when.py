"""TIME: what a command line may say, and which nanosecond that is."""

from __future__ import annotations

import argparse

import pytest

from analyze.when import Span, parse

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
    ["", "x", "-1", "1e3", "nan", "inf", "101%", "%", "@", "@1.5", "@-1", "1 ", "5 %", "Start", "9" * 40, "٣", "1.2.3"],
)
def test_what_is_no_time_is_refused_with_what_would_be_one(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is no time; give seconds since the start"):
        parse(text)


def test_escape_codes_are_not_repeated() -> None:
    with pytest.raises(argparse.ArgumentTypeError) as caught:
        parse("\x1b[31m" + "x" * 200)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_the_text_of_a_moment_leads_back_to_it() -> None:
    for ns in (SPAN.first_ns, SPAN.last_ns, 6_123_456_789):
        assert parse(SPAN.text(ns)).ns(SPAN) == ns
