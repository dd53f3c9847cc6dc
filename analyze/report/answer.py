"""The answer in two sentences, what it is about, and where it comes from."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from analyze.analysis import Analysis
from analyze.report.checks import attached_probes
from analyze.report.page import UserView, plain
from analyze.words.numbers import duration, enumeration, memory, number, share
from analyze.words.numbers import splits as splits_text
from collect.schema import LEAF_PAGES, Level

__all__ = ["answer", "headline", "mapped_pages", "provenance", "subtitle", "title"]


_NOBODY = "nobody split an entry of the direct map"


def title(analysis: Analysis) -> str:
    """Name of the trace."""
    return plain(analysis.trace.path.absolute().name)


def subtitle(analysis: Analysis) -> str:
    """Kernel, memory, when and how long."""
    manifest = analysis.trace.manifest
    n_pages = sum(end - first for first, end in manifest["memory"]["ranges"])
    emulated = " · emulated CPUs" if manifest["cpu"].get("emulated") else ""
    return plain(
        f"Linux {manifest['kernel'].get('release')} · {memory(n_pages)} of memory · recorded "
        f"{str(manifest['created'])[:10]} for {duration(analysis.duration_s)}{emulated}"
    )


def headline(analysis: Analysis, happened: str) -> str:
    """The first sentence of the answer for a picture that stands alone: with kernel and memory in front."""
    manifest = analysis.trace.manifest
    pages = sum(end - first for first, end in manifest["memory"]["ranges"])
    release = plain(str(manifest["kernel"].get("release")), 60)
    return f"Linux {release} with {memory(pages)}: {happened[:1].lower()}{happened[1:]}"


def answer(analysis: Analysis, users: Sequence[UserView]) -> tuple[str, str]:
    """What was split and by whom, and what that left of the map: a sentence each.

    Where changes were lost, splits are a lower bound: one that was not seen is missing, or found at a later change of its entry.
    """
    found = analysis.verification
    bound = bool(found["lost_events_of_map"] or found["unfinished_calls"])
    happened = _what_was_split(users, duration(analysis.duration_s), bound=bound)
    return happened, _what_is_left(analysis.rebuilt.levels)


def _what_was_split(users: Sequence[UserView], how_long: str, *, bound: bool) -> str:
    n_2m, n_1g = sum(user.n_2m for user in users), sum(user.n_1g for user in users)
    if not users:
        seen = "no split of an entry of the direct map was seen, but changes were lost" if bound else _NOBODY
        return f"In {how_long} {seen}."
    if len(users) == 1:
        by_whom = f", all by {users[0].label}"
    else:
        by_whom = ": " + enumeration([f"{user.label} {splits_text(user.n_2m, user.n_1g)}" for user in users])
    whole = "its" if n_2m else "the direct map's"
    parts = [f"{number(n_2m)} of the direct map's 2M entries"] * bool(n_2m)
    parts += [f"{number(n_1g)} of {whole} 1G entries"] * bool(n_1g)
    verb = "was" if n_2m + n_1g == 1 else "were"
    least = "at least " if bound else ""
    return f"In {how_long}, {least}{enumeration(parts)} {verb} split{by_whom}."


def _what_is_left(levels: pd.DataFrame) -> str:
    first, last = levels.iloc[0], levels.iloc[-1]
    before, after = mapped_pages(first), mapped_pages(last)
    k4_first, k4_last, g1_first, g1_last = (int(row[column]) for column in ("k4", "g1") for row in (first, last))
    if g1_first == g1_last:
        large = f"and all 1G entries ({number(g1_last)}) stayed whole" if g1_last else "and there were no 1G entries"
    else:
        large = f"and 1G entries went from {number(g1_first)} to {number(g1_last)}"
    if k4_first == k4_last and before == after:
        small = f"4K entries mapped {memory(k4_last)} ({share(k4_last, after)}) of this machine's {memory(after)} throughout"
    else:
        small = (
            f"4K entries mapped {memory(k4_first)} ({share(k4_first, before)}) of this machine's {memory(before)} at the "
            f"start and {memory(k4_last)} ({share(k4_last, after)}){f' of {memory(after)}' * (before != after)} at the end"
        )
    return f"{small}, {large}."


def mapped_pages(levels: pd.Series[int]) -> int:
    """Pages of 4 KiB that so many entries (k4, m2, g1) map: at the end another number than at the start where memory came or went."""
    return int(levels["k4"] + levels["m2"] * LEAF_PAGES[Level.M2] + levels["g1"] * LEAF_PAGES[Level.G1])


def provenance(analysis: Analysis) -> list[tuple[str, str]]:
    trace, manifest = analysis.trace, analysis.trace.manifest
    kernel, cpu, ram = manifest["kernel"], manifest["cpu"], manifest["memory"]
    pages = sum(end - first for first, end in ram["ranges"])
    emulated = ", emulated: times mean nothing" if cpu.get("emulated") else ""
    return [
        ("kernel", plain(f"{kernel.get('release')} {kernel.get('version')}", 300)),
        ("booted with", plain(str(kernel.get("cmdline", "")), 400)),
        ("machine", plain(f"{cpu.get('n_online')} × {cpu.get('model')}{emulated}")),
        ("memory", f"{memory(pages)} in {len(ram['ranges'])} ranges, {ram['paging_levels']}-level page tables"),
        ("recorded", plain(f"{manifest['created']}, for {duration(analysis.duration_s)}")),
        ("command", plain(" ".join(map(str, manifest["command"])), 400)),
        ("recorder", plain(f"directmap {manifest['tool_version']}, trace format {manifest['format_version']}")),
        ("probes", plain(", ".join(attached_probes(manifest)), 900) or "none"),
        ("rows", ", ".join(f"{name} {number(trace.n_rows(name))}" for name in ("changes", "regions", "pages", "snapshots"))),
    ]  # fmt: skip
