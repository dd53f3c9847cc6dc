"""From what stands on the command line to policies: `NAME`, `NAME:parameter=value,...`, `NAME+merge`; `--set NAME.parameter=value`.

A package of somebody else's names its policies as entry points: in its pyproject.toml

    [project.entry-points."directmap.policies"]
    my-policy = "my_package:MyPolicy"

where `MyPolicy` is a subclass of `replay.policies.Policy` whose `name` is that of the entry point.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.metadata import entry_points

from collect.errors import HostError, TraceError
from replay.policies import CLASSES, Policy
from replay.policies.eager_merge import SUFFIX, EagerMerge

__all__ = ["GROUP", "choose", "known"]

GROUP = "directmap.policies"


def known() -> dict[str, type[Policy]]:
    """Every policy that can be chosen, ours first, then other packages'. Raises HostError where one of these is none."""
    there = dict(CLASSES)
    for entry in sorted(entry_points(group=GROUP), key=lambda e: e.name):
        if entry.name in there:
            raise HostError(f"policy {entry.name!r} of {entry.value} has the name of another; remove that package")
        try:
            policy = entry.load()
        except Exception as error:  # whatever a stranger's module raises when it is imported
            raise HostError(
                f"policy {entry.name!r} of {entry.value} cannot be loaded ({error}); mend or remove it"
            ) from None
        if not (isinstance(policy, type) and issubclass(policy, Policy)):
            raise HostError(
                f"policy {entry.name!r} of {entry.value} is no subclass of replay.policies.Policy; mend or remove it"
            )
        there[entry.name] = policy
    return there


def choose(names: Sequence[str] = (), settings: Sequence[str] = ()) -> list[Policy]:
    """The policies named, each once, in the order given; all known ones by default.

    Raises TraceError for a name, a parameter or a value that does not exist.
    """
    there = known()
    wanted = list(dict.fromkeys(names or there))
    given = _by_policy(settings, there)
    used = {name.partition(SUFFIX)[0].partition(":")[0] for name in wanted} | {
        EagerMerge.name for name in wanted if SUFFIX in name
    }
    unused = next((name for name in given if name not in used), None)
    if unused is not None:
        raise TraceError(f"--set {unused}.PARAMETER: this policy is not replayed; name it with --policy")
    return [_one(text, given, there) for text in wanted]


def _one(text: str, given: dict[str, dict[str, str]], there: dict[str, type[Policy]]) -> Policy:
    bare, merge, more = text.partition(SUFFIX)
    name, _, own = bare.partition(":")
    if name not in there:
        if os.path.isdir(text):  # noqa: PTH112  Path's raises where a name is too long
            raise TraceError(f"no policy is called {text[:60]!r}, it is a directory; put traces before --policy")
        raise TraceError(f"no policy is called {name[:60]!r}; choose from {', '.join(there)} (and {SUFFIX} behind any)")
    inline = _pairs(own, text)
    policy = there[name]({**given.get(name, {}), **inline})
    if own:
        policy.label = bare
    if not merge:
        return policy
    if more and not more.startswith(":"):
        raise TraceError(f"policy {text[:60]!r}: after {SUFFIX} comes nothing, or :parameter=value")
    return EagerMerge(policy, {**given.get(EagerMerge.name, {}), **_pairs(more[1:], text)})


def _pairs(text: str, whole: str) -> dict[str, str]:
    pairs = [part.partition("=") for part in text.split(",")] if text else []
    if any(not equals for _, equals, _ in pairs):
        raise TraceError(f"policy {whole[:60]!r}: parameters are given as NAME:parameter=value,parameter=value")
    return {name: value for name, _, value in pairs}


def _by_policy(settings: Sequence[str], there: dict[str, type[Policy]]) -> dict[str, dict[str, str]]:
    """Parameters by policy, from `NAME.parameter=value`."""
    found: dict[str, dict[str, str]] = {}
    for text in settings:
        left, equals, value = text.partition("=")
        name, dot, parameter = left.partition(".")
        if not equals or not dot:
            raise TraceError(f"--set {text[:60]!r}: give POLICY.PARAMETER=VALUE, as `policies` lists them")
        if name not in there and name != EagerMerge.name:
            raise TraceError(f"--set {text[:60]!r}: no policy is called {name[:60]!r}; choose from {', '.join(there)}")
        found.setdefault(name, {})[parameter] = value
    return found
