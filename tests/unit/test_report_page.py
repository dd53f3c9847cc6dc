"""The page: names from a trace cannot become markup or escape sequences, and nothing is asked of any other place."""

from __future__ import annotations

import html
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from markupsafe import Markup

from analyze.report.page import (
    Check,
    HealthView,
    KeeperRow,
    KeepersView,
    Layer,
    LegendView,
    MapBlock,
    MapView,
    PagesView,
    Picture,
    Spot,
    StackView,
    TableView,
    TraceView,
    UserRow,
    UserView,
    plain,
    render,
)
from collect import __version__

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>{{ 7*7 }}{% raw %}&amp;"


def trace_view(text: str = "churn") -> TraceView:
    """A view in which every field that can hold words of a trace holds `text`."""
    picture = Picture(Markup('<svg viewBox="0 0 1 1"></svg>'), text, [text])
    return TraceView(
        slug="t1",
        title=text,
        subtitle=text,
        happened=text,
        left=text,
        health=HealthView(Check(text, "bad", text), [Check(text, "good", text)], [(text, text)]),
        verdict=Check(text, "good", text),
        checks=[Check(text, "bad", text), Check(text, "none", text)],
        levels=picture,
        map=MapView(
            [MapBlock(text, [Layer("user-bpf", "M0 0h1v1h-1z", "M0 0m.5 .5h.1")], [Spot(3, 4, text)], True)],
            [LegendView("user-bpf", "m.5 .5h.1", text)],
            text,
            text,
            5,
            True,
            [text],
        ),
        overview=[text],
        users=[UserView("bpf", text, 3, 1, text, [UserRow(text, text, 3, 1, text)], text)],
        users_note=text,
        pages=PagesView([text], [TableView([text, text], [[text, text]])], picture),
        kept=KeepersView(text, [KeeperRow("bpf", text, text, text, text)], text, [text]),
        stacks=[StackView("bpf", text, [text, text])],
        limits=[text],
        provenance=[(text, text)],
    )


class Seen(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_hostile_words_are_shown_and_do_nothing() -> None:
    seen = Seen(render("report.html", view=trace_view(EVIL)))
    assert not [tag for tag, _ in seen.tags if tag in ("script", "img", "iframe", "object", "base", "form")]
    assert not [name for _, attrs in seen.tags for name in attrs if name.startswith("on")]
    assert seen.text.count(EVIL) >= 34, "shown as they are"
    assert "49" not in seen.text, "not taken for a template"


def test_the_page_asks_nothing_of_anywhere() -> None:
    page = render("report.html", view=trace_view())
    for _, attrs in Seen(page).tags:
        for name in ("src", "srcset", "action", "data", "poster"):
            assert name not in attrs
        assert not re.match(r"(https?:)?//", attrs.get("href") or "")
    assert "@import" not in page and "url(http" not in page
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', page)
    assert policy and "default-src 'none'" in html.unescape(policy[1]), "and a browser holds it to that"


def test_the_page_has_both_themes_a_phone_and_a_printer_in_mind() -> None:
    page = render("report.html", view=trace_view())
    assert "prefers-color-scheme: dark" in page and "@media print" in page and "max-width: 40rem" in page
    assert '<meta name="viewport" content="width=device-width' in page
    assert f"directmap {__version__}" in page


def test_whatever_scrolls_sideways_is_reached_by_keys_and_says_what_it_is() -> None:
    tags = Seen(render("report.html", view=trace_view())).tags
    scrolled = [attrs for tag, attrs in tags if tag == "div" and attrs.get("class") in ("scroll", "frame")]
    assert len(scrolled) == 5, "two pictures, and tables of users, of what keeps it split, and of page events"
    for attrs in scrolled:
        assert attrs["tabindex"] == "0" and attrs["role"] in ("region", "group") and attrs["aria-label"]


def test_files_beside_the_page_are_said_to_stay_behind_when_it_is_mailed() -> None:
    text = Seen(render("report.html", view=trace_view())).text
    assert text.count("do not travel with it") == 1, "once a page"
    assert "As files beside this page:" in text


def test_a_finger_is_told_what_to_do_with_a_cell() -> None:
    assert "Point at or tap a cell" in Seen(render("report.html", view=trace_view())).text


def test_our_recorder_s_row_comes_last_and_alone_is_enough_for_a_table() -> None:
    own = KeeperRow("collector", "OUR RECORDER", "2", "2", "13")
    view = trace_view()
    text = Seen(
        render("report.html", view=replace(view, kept=KeepersView("", view.kept.rows, "AND MORE", [], own)))
    ).text
    assert text.index("AND MORE") < text.index("OUR RECORDER") < text.index("Alone: frames")
    text = Seen(render("report.html", view=replace(view, kept=KeepersView("", [], "", [], own)))).text
    assert "kept by" in text and "OUR RECORDER" in text


def test_the_answer_comes_before_everything_else() -> None:
    text = Seen(render("report.html", view=replace(trace_view(""), happened="THE ANSWER", limits=["A LIMIT"]))).text
    places = [
        text.index(part) for part in ("THE ANSWER", "trusted", "What happened", "Where in memory", "Who split it")
    ]
    assert places == sorted(places)
    assert text.index("A LIMIT") < text.index("Where this comes from")


def test_a_trace_in_which_nobody_split_anything() -> None:
    text = Seen(render("report.html", view=replace(trace_view(), users=[], stacks=[]))).text
    assert "no entry was split" in text


@pytest.mark.parametrize(
    ("found", "shown"),
    [
        ("kworker/0:1", "kworker/0:1"),
        ("\x1b[31mred\x1b[0m", "\ufffd[31mred\ufffd[0m"),
        ("two\nlines\r\tand a tab", "two\ufffdlines\ufffd\ufffdand a tab"),
        ("\u202egnirts\u202c", "\ufffdgnirts\ufffd"),
        ("zero\u200bwidth", "zero\ufffdwidth"),
        ("\x9b31m", "\ufffd31m"),
        ("grün", "grün"),
        ("x" * 500, "x" * 199 + "…"),
        ("\udc80", "\ufffd"),
        ("", ""),
    ],
)
def test_words_of_a_trace_hold_no_control_characters(found: str, shown: str) -> None:
    assert plain(found) == shown
