"""Token context as inputs: what a step reads of earlier tokens' inputs, and of the position.

before: y = sum[W](c * lag[W](x));  a = cos(pos * w[K])
after:  in x_lag1[D], x_lag2[D], a[K];  y = c[0] * x + c[1] * x_lag1 + c[2] * x_lag2

A lag is a shifted read of a tensor that exists, and what depends on the position alone is a table formed once, in
fp64: neither is a state, and behind this pass nothing but the tokens' own values is left.  A window of known size
that is only summed over becomes single lags (views of one tensor), another one an input with its dim.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass, replace

from mixc.ir.build import total
from mixc.ir.node import Node, depends, first_below, make, number, postorder, substitute
from mixc.ir.norms import norm_over
from mixc.ir.ops import OPS
from mixc.ir.program import Decl, Program, Range, free, once_a_program
from mixc.ir.ranges import INF, bounds, proving

_EXACT = ("number", "size", "const", "index", "pos")


@dataclass(frozen=True, eq=False)
class Context:
    """A step without lags and positions.

    Attributes:
        step: the same with them.
        given: by name of an in that `program` has and the step has not: the step's value that it holds.
    """

    step: Program
    program: Program
    given: dict[str, Node]


def has_context(step: Program) -> bool:
    return any(n.op in ("lag", "window", "pos") for n in postorder(step.values()))


def counts_tokens(step: Program) -> bool:
    return any(n.op == "pos" for n in postorder(step.values()))


def exact_nodes(order: Iterable[Node]) -> set[Node]:
    """What depends on nothing but pos, index, numbers, sizes and consts; `order`: arguments first."""
    exact: set[Node] = set()
    for n in order:
        if n.op in _EXACT or (n.args and n.op not in ("lag", "window") and all(a in exact for a in n.args)):
            exact.add(n)
    return exact


def context(step: Program, sizes: dict[str, int] | None = None) -> Context:
    """The step with lags and positions as inputs; `sizes`: of the dims of windows, where known."""
    values = substitute(step.values(), _summed_windows(step.values(), {**step.fixed, **(sizes or {})}))
    order = list(postorder(values))
    exact = exact_nodes(order)
    placed = depends(values, [n for n in order if n.op == "pos"]) & exact
    made = _Made(step)
    leaves = {n: made.leaf(n) for n in first_below(values, lambda n: n in placed or n.op in ("lag", "window"))}
    decls = [d for d in step.decls if d.role == "in"] + made.decls + [d for d in step.decls if d.role != "in"]
    return Context(step, replace(step.with_values(substitute(values, leaves)), decls=tuple(decls)), made.given)


class _Made:
    def __init__(self, step: Program):
        self.step, self.decls, self.given = step, list[Decl](), dict[str, Node]()
        self.taken = step.names

    def leaf(self, n: Node) -> Node:
        if n.op == "lag":
            base = f"{name_of(n)}_lag{n.attr('n')}"
        else:
            base = f"{name_of(n)}_window" if n.op == "window" else "position" if n.op == "pos" else f"{n.op}_of_pos"
        name = free(base, self.taken)
        kind = "real" if n.kind == "bool" else n.kind
        decl = Decl("in", name, n.dims, kind, _ranges(self.step, n), span=n.span, ago=self._ago(n),
                    table=n.op not in ("lag", "window"))
        self.decls.append(decl)
        self.given[name] = n
        return make("lt", number(0.5), decl.leaf()) if n.kind == "bool" else decl.leaf()


    def _ago(self, n: Node) -> tuple[str, int] | None:
        """Whose rows it is a shifted view of; an input that may be infinite is read through a filter."""
        x = n.args[0] if n.op == "lag" else n
        plain = n.op == "lag" and x.op == "in" and n.kind != "bool" and not self.step.decl(x.attr("name")).open_ended
        return (x.attr("name"), n.attr("n")) if plain else None


def name_of(lag: Node) -> str:
    """The name of x in a `lag` node: what the state dict calls its history."""
    name = lag.attr("name") or lag.args[0].attr("name")
    assert isinstance(name, str), lag
    return name


def looked_back(step: Program) -> dict[str, tuple[Node, int, tuple[str, ...]]]:
    """By name of x in `lag(x, n)` and `lag[W](x)`: its node, the largest n (0: none), and the dims W."""
    found: dict[str, tuple[Node, int, tuple[str, ...]]] = {}
    for node in postorder(step.values()):
        if node.op in ("lag", "window"):
            x, most, windows = found.get(name_of(node), (node.args[0], 0, ()))
            n, dim = (node.attr("n"), ()) if node.op == "lag" else (0, (node.attr("dim"),))
            found[name_of(node)] = x, max(most, int(n)), tuple(dict.fromkeys((*windows, *dim)))
    return found


def _ranges(step: Program, n: Node) -> tuple[Range, ...]:
    """A lag of an input lies where the input does, and at 0; any other value where it is proved to lie."""
    if n.op != "lag" or n.args[0].op != "in":
        return proved(step, n)
    def holds_zero(r: Range) -> bool:
        if r.low_open or r.high_open or any(b is not None and b.op != "number" for b in (r.low, r.high)):
            return False
        return (r.low is None or r.low.attr("value") <= 0) and (r.high is None or r.high.attr("value") >= 0)
    return tuple(filter(holds_zero, step.decl(n.args[0].attr("name")).ranges))


def proved(step: Program, n: Node) -> tuple[Range, ...]:
    """What decays are asked for: is it between -1 or 0, and 1? (Of one end alone the other would count as infinite.)
    And what keys are: is its norm over a dim bounded?"""
    looks_back = n.op in ("lag", "window")  # where there is nothing to see yet, it sees 0
    x = n.args[0] if looks_back else n
    if n.kind == "complex":
        return ()
    with proving(step):
        found, norms = bounds(x), norm_ranges(x)
    low, high = (min(found.low, 0.0), max(found.high, 0.0)) if looks_back else (found.low, found.high)
    entries = () if found.infinite or low < -1 or high > 1 else (
        Range("x", low=number(0 if low >= 0 else -1), high=number(1)),)
    return (*entries, *norms)


def norm_ranges(x: Node) -> tuple[Range, ...]:
    """The norms of a value over a dim that are bounded."""
    norms = {d: norm_over(x, frozenset([d])) for d in x.dims}
    return tuple(Range("norm", (d,), high=number(most)) for d, most in norms.items() if most < INF)


# ---------------------------------------------------------------- windows
@once_a_program
def windows_of(step: Program) -> frozenset[str]:
    """The dims that go over the latest tokens."""
    return frozenset(n.attr("dim") for n in postorder(step.values()) if n.op == "window")


def _summed_windows(values: list[Node], sizes: dict[str, int]) -> dict[Node, Node]:
    """sum[W](c * lag[W](x)) = c[0] * x + c[1] * lag(x, 1) + ..., for windows of known size.  What reads a state stays
    one product: a correction by the last W keys is one of rank W."""
    found: dict[Node, Node] = {}
    reads = depends(values, [n for n in postorder(values) if n.op == "state"])
    for n in postorder(values):
        if n.op not in ("sum", "contract") or n in reads:
            continue
        inner = n.args[0] if n.op == "sum" else n.args[0] * n.args[1]
        summed = [d for d in inner.dims if d not in n.dims]
        windows = {x.attr("dim") for x in _factors(inner) if x.op == "window"}
        for dim in [d for d in summed if d in sizes and d in windows][:1]:
            rest = tuple(d for d in summed if d != dim)
            terms = [total(_at(inner, dim, w), rest) for w in range(sizes[dim])]
            found[n] = functools.reduce(lambda a, b: a + b, terms)
    return found


def _factors(x: Node) -> list[Node]:
    """x through elementwise operations."""
    return [x] if not OPS[x.op].elementwise else [y for a in x.args for y in _factors(a)]


def _at(x: Node, dim: str, w: int) -> Node:
    """x at place w along a dim; of a window that is a lag."""
    if dim not in x.dims:
        return x
    if x.op == "window" and x.attr("dim") == dim:
        label = {"name": x.attr("name")} if x.attr("name") else {}
        return make("lag", x.args[0], span=x.span, n=w, **label) if w else x.args[0]
    if OPS[x.op].elementwise:
        return x.on(*(_at(a, dim, w) for a in x.args))
    return make("pick", x, dim=dim, i=w)
