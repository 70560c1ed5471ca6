"""Lower bounds of a cost over domains: interval arithmetic on floats, compiled to closures once."""

from __future__ import annotations

from collections.abc import Callable
from math import inf, isnan
from typing import Any

from mixc.autotune.domain import INF
from mixc.autotune.propagate import Domains, Network
from mixc.autotune.terms import Term

Span = tuple[float, float]
Eval = Callable[[Domains], Span]


class Bounder:
    """`bounder(domains)` is at most the cost of every point in them, and the cost itself at a point."""

    def __init__(self, network: Network, cost: Term):
        self.network, self.nodes = network, set[int]()
        self._made: dict[int, Eval] = {}
        self._span = self._compile(cost)

    def __call__(self, at: Domains) -> float:
        return self._span(at)[0]

    def _compile(self, t: Term) -> Eval:
        if id(t) not in self._made:
            self._made[id(t)] = self._closure(t)
        return self._made[id(t)]

    def _closure(self, t: Term) -> Eval:
        if t.op == "const":
            fixed = float(t.value), float(t.value)
            return lambda at: fixed
        if t.op == "var":
            n = self.network.variables[t.name]
            self.nodes.add(n)
            return lambda at: (at[n].lo, at[n].hi)
        if t.op == "where":
            return self._where(t)
        a, b = map(self._compile, t.args)
        f = _SPANS[t.op]
        return lambda at: f(a(at), b(at))

    def _where(self, t: Term) -> Eval:
        """The hull of both sides, or the side that a point takes."""
        from mixc.autotune.search import variables

        condition, yes, no = t.args
        names = {v.name: self.network.variables[v.name] for v in variables(condition)}
        self.nodes.update(names.values())
        a, b = self._compile(yes), self._compile(no)

        def span(at: Domains) -> Span:
            if all(at[n].fixed for n in names.values()):
                return (a if condition.holds({name: at[n].lo for name, n in names.items()}) else b)(at)
            x, y = a(at), b(at)
            return min(x[0], y[0]), max(x[1], y[1])
        return span


def _corners(f: Callable[[float, float], float]) -> Callable[[Span, Span], Span]:
    def span(x: Span, y: Span) -> Span:
        found = [f(a, b) for a in x for b in y]
        if any(map(isnan, found)):
            return -inf, inf
        return min(found), max(found)
    return span


def _mul(x: Span, y: Span) -> Span:
    if x[0] >= 0 and y[0] >= 0 and x[1] < INF and y[1] < INF:
        return x[0] * y[0], x[1] * y[1]
    return _corners(lambda a, b: a * b)(x, y)


def _divided(f: Callable[[float, float], float]) -> Callable[[Span, Span], Span]:
    inner = _corners(f)

    def span(x: Span, y: Span) -> Span:
        return (-inf, inf) if y[0] <= 0 <= y[1] else inner(x, y)
    return span


def _mod(x: Span, y: Span) -> Span:
    if x[0] == x[1] and y[0] == y[1] != 0:
        return x[0] % y[0], x[0] % y[0]
    return min(0, y[0]), max(0, y[1])


def _pow(x: Span, y: Span) -> Span:
    if x[0] == x[1] and y[0] == y[1]:
        return x[0] ** y[0], x[0] ** y[0]
    return _corners(lambda a, b: a ** b)(x, y) if x[0] >= 0 and y[0] >= 0 else (-inf, inf)


_SPANS: dict[str, Any] = {
    "add": lambda x, y: (x[0] + y[0], x[1] + y[1]), "sub": lambda x, y: (x[0] - y[1], x[1] - y[0]), "mul": _mul,
    "div": _divided(lambda a, b: a / b), "floordiv": _divided(lambda a, b: a // b),
    "cdiv": _divided(lambda a, b: -(-a // b)), "mod": _mod, "pow": _pow,
    "min": lambda x, y: (min(x[0], y[0]), min(x[1], y[1])), "max": lambda x, y: (max(x[0], y[0]), max(x[1], y[1])),
}
