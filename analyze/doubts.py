"""The lines that a command puts on top of what it prints, where what was lost puts that in doubt."""

from __future__ import annotations

from analyze.losses import CONCLUSIONS, Doubt, loss_of
from analyze.words.terminal import counted, wrapped
from collect.trace import Trace

__all__ = ["clock", "warnings"]


def clock(trace: Trace) -> list[str]:
    """What has to stand beside times, where the CPUs were emulated."""
    emulated = trace.manifest["cpu"].get("emulated")
    return ["  times    of an emulated CPU: their order is real, their length is not"] if emulated else []


def warnings(trace: Trace, about: Doubt = Doubt.MAP | Doubt.WHO) -> list[str]:
    """Lines for the top of a command's output where losses put in doubt what it says; none where nothing does.

    Looks at the manifest alone, so it costs nothing.

    Args:
        about: the conclusions that the output is about.
    """
    losses = {
        str(name): int(n) for name, n in trace.manifest["losses"].items() if n and loss_of(str(name)).doubt & about
    }
    lines = []
    if losses:
        doubted = [text for doubt, text in CONCLUSIONS.items() if any(loss_of(n).doubt & doubt & about for n in losses)]
        lines += wrapped(
            f"in doubt: {'; '.join(doubted)}: {counted(sum(losses.values()), 'event')} lost (see health)", hang=2
        )
    if not trace.manifest["complete"]:
        lines += wrapped("in doubt: the recording lacks its end (see health)", hang=2)
    return lines
