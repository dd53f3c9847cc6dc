"""One trace under one policy, over the values of one or two of its parameters."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from collect.errors import TraceError
from replay.costs import Costs
from replay.measures import BASELINE
from replay.policies import Parameter, Policy
from replay.policies.choose import choose
from replay.policies.eager_merge import EagerMerge
from replay.pricing import costs_json
from replay.progress import Progress
from replay.run import run_chosen
from replay.side_by_side import Row, row

__all__ = ["MAX_OVER", "MAX_RUNS", "Axis", "Sweep", "sweep"]

MAX_RUNS = 256
"""Replays of one sweep."""

MAX_OVER = 2
"""Parameters of one sweep: one along a picture's axis, one a line each."""

_RANGE = re.compile(r"(\d{1,12}):(\d{1,12}):(\d{1,12})")


@dataclass(frozen=True)
class Axis:
    """A parameter, and the values that it takes in turn.

    Attributes:
        policy, name: whose parameter, and which.
        values: each once, in the order given; numbers where the parameter is one.
        unit: of a number.
    """

    policy: str
    name: str
    values: list[str | int]
    unit: str = ""

    @property
    def numeric(self) -> bool:
        return isinstance(self.values[0], int)

    @property
    def label(self) -> str:
        return f"{self.policy}.{self.name}"

    @property
    def titled(self) -> str:
        """The label with its unit."""
        unit = self.unit if self.unit[:1] in ("", "(") else f"[{self.unit}]"
        return f"{self.label} {unit}".rstrip()


@dataclass(frozen=True)
class Sweep:
    """What came of it.

    Attributes:
        policy: as it was named.
        axes: the parameters, in the order given.
        base: the policy that savings are held against.
        costs: by which all is priced, if any.
        points: values, one an axis, and the row for them; the last axis runs fastest.
    """

    policy: str
    axes: list[Axis]
    base: Row
    points: list[tuple[tuple[str | int, ...], Row]]
    costs: Costs | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "policy": self.policy,
            "over": [
                {"policy": axis.policy, "parameter": axis.name, "unit": axis.unit, "values": axis.values}
                for axis in self.axes
            ],
            **costs_json(self.costs),
            "base": self.base.to_json(),
            "points": [
                {"values": dict(zip([axis.label for axis in self.axes], values, strict=True)), **row.to_json()}
                for values, row in self.points
            ],
        }


def sweep(
    trace: Path,
    name: str,
    over: Sequence[str],
    *,
    against: str = BASELINE,
    settings: Sequence[str] = (),
    users: str | None = None,
    pressure: str | None = None,
    costs: Costs | None = None,
) -> Sweep:
    """Decode `trace` once, and replay it under the policy `name` for each combination of values.

    Args:
        over: one or two of `NAME.PARAMETER=V1,V2,...` or, of a number, `NAME.PARAMETER=LO:HI:STEP`, both ends included.
        against: the policy that savings are held against.
        settings, users, pressure: see `replay.run.run_policies`.
        costs: price every point.
    Raises TraceError for what does not exist, is set twice or is too much, before the trace is read; then whatever
    `replay.run.run_chosen` raises.
    """
    if not 1 <= len(over) <= MAX_OVER:
        raise TraceError(f"--over is given {len(over)} times; give one or two parameters")
    (plain,) = choose([name], settings)
    axes = [_axis(text, plain, name, settings) for text in over]
    if len({axis.label for axis in axes}) < len(axes):
        raise TraceError(f"--over {axes[0].label}: given twice; name two parameters, or all values in one")
    combinations = list(product(*(axis.values for axis in axes)))
    if len(combinations) > MAX_RUNS:
        raise TraceError(
            f"--over makes {len(combinations)} replays, more than {MAX_RUNS}; give fewer values or a wider step"
        )
    policies = [
        _set(name, [*settings, *(f"{axis.label}={value}" for axis, value in zip(axes, values, strict=True))])
        for values in combinations
    ]
    with Progress(1 + len(policies)) as progress:
        base, *results = run_chosen(
            trace, [*choose([against]), *policies], users=users, pressure=pressure, progress=progress
        )
    label = str(base.provenance["trace"])
    return Sweep(
        policy=plain.label,
        axes=axes,
        base=row(label, base, base, costs),
        points=[
            (values, row(label, base, result, costs)) for values, result in zip(combinations, results, strict=True)
        ],
        costs=costs,
    )


def _set(name: str, settings: list[str]) -> Policy:
    (policy,) = choose([name], settings)
    return policy


def _axis(text: str, policy: Policy, named: str, settings: Sequence[str]) -> Axis:
    left, equals, values = text.partition("=")
    whose, dot, name = left.partition(".")
    parts = {one.name: one for one in ([policy.inner, policy] if isinstance(policy, EagerMerge) else [policy])}
    if not dot or not equals:
        raise TraceError(
            f"--over {text[:60]!r}: give NAME.PARAMETER=V1,V2,... or NAME.PARAMETER=LO:HI:STEP, such as {_example(policy, parts, text)}"
        )
    if whose not in parts:
        raise TraceError(f"--over {text[:60]!r}: the policy replayed is {' and '.join(parts)}; name a parameter of it")
    there = parts[whose].parameters
    if name not in there:
        known = ", ".join(there) or "none"
        raise TraceError(f"--over {text[:60]!r}: policy {whose} has no parameter {name[:60]!r}; it has: {known}")
    set_already = any(one.startswith(f"{left}=") for one in settings)
    if set_already or re.search(rf"[:,]{re.escape(name)}=", _own(named, whose)):
        raise TraceError(f"--over {left}: is set already by --set or in --policy; leave it to one of them")
    return Axis(whose, name, _values(values, there[name], left), there[name].unit)


def _own(named: str, whose: str) -> str:
    """The parameters that stand in `NAME:parameter=value+merge:parameter=value` itself, of the part `whose`."""
    first, _, merge = named.partition("+")
    return merge if whose == EagerMerge.name else first


def _values(text: str, parameter: Parameter, label: str) -> list[str | int]:
    """The values, each as the parameter takes it. Raises TraceError, which says what may be given."""
    span = _RANGE.fullmatch(text)
    if span and isinstance(parameter.default, int):
        lo, hi, step = (int(part) for part in span.groups())
        if not step or lo > hi:
            raise TraceError(f"--over {label}={text[:60]}: give LO:HI:STEP with LO up to HI and a step of 1 or more")
        if (hi - lo) // step >= MAX_RUNS:
            raise TraceError(
                f"--over {label}={text[:60]}: {(hi - lo) // step + 1} values, more than {MAX_RUNS}; give a wider step"
            )
        words = [str(value) for value in range(lo, hi + 1, step)]
    else:
        words = [word.strip() for word in text.split(",")]
    values = []
    for word in words:
        try:
            values.append(parameter.parse(word))
        except ValueError as error:
            ways = " (as V1,V2,... or LO:HI:STEP)" if isinstance(parameter.default, int) else ""
            raise TraceError(f"--over {label}: cannot be {word[:60]!r}; give {error}{ways}") from None
    return list(dict.fromkeys(values))


def _example(policy: Policy, parts: Mapping[str, Policy], text: str) -> str:
    """What could be given: what was, where only the policy's name is missing, else the policy's first parameter."""
    bare, equals, _ = text.partition("=")
    whose = next((whose for whose, part in parts.items() if equals and bare in part.parameters), None)
    if whose is not None:
        return f"{whose}.{text[:60]}"
    for name, parameter in policy.parameters.items():
        if parameter.choices:
            return f"{policy.name}.{name}={','.join(parameter.choices)}"
        step = max(1, (parameter.highest - parameter.lowest) // 8)
        return f"{policy.name}.{name}={parameter.lowest}:{parameter.highest}:{step}"
    return "gfp-unmapped.refill-order=0:9:1"
