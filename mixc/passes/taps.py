"""Gradients of an input that is weighed token by token: rows once, and the weights apart.

before: dx = z * c[0], dx_lag1 = z * c[1], dx_lag2 = z * c[2]       each a store of all rows
after:  dx_later = z                                                and x gets c[0] z[t] + c[1] z[t+1] + c[2] z[t+2]

So it is in a convolution over time, whose weights c are entries of a param.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import NamedTuple

from mixc.ir.launch import Launch, Store
from mixc.ir.node import Node


@dataclass(frozen=True)
class Taps:
    """Of an input: the param that weighs it, the axis of its entries, and the entry for each input some tokens ago, by
    name; `own`: the one for the token itself (None: its gradient is a store of its own)."""

    param: str
    axis: int
    entries: dict[str, int]
    own: int | None


def taps_apart(launch: Launch) -> tuple[Launch, dict[str, Taps]]:
    """The launch with such rows stored once, and by input what they are weighed with."""
    decls, stores = {f"d{d.name}": d for d in launch.program.ins}, list(launch.stores)
    groups, found = defaultdict[str, list[tuple[str, Store]]](list), dict[str, Taps]()
    for s in stores:
        if launch.reverse and s.name in decls and (ago := decls[s.name].ago) is not None:
            groups[ago[0]].append((decls[s.name].name, s))
    for x, lags in groups.items():
        if f"d{x}" not in decls:  # it is an input of another part
            continue
        all_of = {d.name for d in launch.program.ins if d.ago is not None and d.ago[0] == x}
        weighed = {n: w for n, s in lags if (w := _weighed(s)) is not None}
        if len(weighed) < 2 or {*weighed} != all_of or len({(w.rows, w.param, w.dim) for w in weighed.values()}) > 1:
            continue
        first = next(iter(weighed.values()))
        own = next((s for s in stores if s.name == f"d{x}"), None)
        taken = _weighed(own) if own is not None else None
        if taken is None or taken[:3] != first[:3]:
            own = taken = None
        axis = 1 + launch.program.decl(first.param).dims.index(first.dim)
        found[x] = Taps(first.param, axis, {n: w.entry for n, w in weighed.items()}, taken and taken.entry)
        stores[stores.index(lags[0][1])] = replace(lags[0][1], name=f"d{x}_later", value=first.rows)
        gone = [s for _, s in lags[1:]] + [own]
        stores = [s for s in stores if s not in gone]
    return replace(launch, stores=tuple(stores)) if found else launch, found


class _Weighed(NamedTuple):
    """Rows times an entry of a param."""

    rows: Node
    param: str
    dim: str
    entry: int


def _weighed(s: Store) -> _Weighed | None:
    if s.value.op == "mul" and len(s.dims) == 1 and not s.at:
        for rows, w in (s.value.args, s.value.args[::-1]):
            if w.op == "param" and w.dims == s.dims and len(w.attr("at", ())) == 1:
                return _Weighed(rows, w.attr("name"), *w.attr("at")[0])
    return None
