"""What the declared ranges prove: an interval for every value, by walking the DAG once.

`bounds(x)` is an interval [low, high] that holds whenever every input lies in its range.
`infinite` says whether the value itself may be infinite there: an input declared `g <= 0` may
be -inf ("forget everything"); an input without a range is unbounded but finite.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from mixc.ir.node import ROW, Node, depends, fold, is_number, make, substitute
from mixc.ir.program import Program, Range

INF = math.inf


@dataclass(frozen=True)
class Interval:
    low: float = -INF
    high: float = INF
    infinite: bool = False

    @property
    def nonnegative(self) -> bool:
        return self.low >= 0

    @property
    def nonpositive(self) -> bool:
        return self.high <= 0


ANY = Interval()


class _Here(threading.local):
    """What is known in a thread: another one may compile another spec at the same time."""

    def __init__(self) -> None:
        self.declared: WeakKeyDictionary[Node, Interval] = WeakKeyDictionary()
        self.known: WeakKeyDictionary[Node, Interval] = WeakKeyDictionary()
        # over which dims, at most
        self.norms: WeakKeyDictionary[Node, tuple[frozenset[str], float]] = WeakKeyDictionary()


_here = _Here()


class proving:
    """`with proving(program): ...` — the ranges of its declarations hold inside the block.

    Leaves are interned over all specs, so what is known about them is scoped."""

    def __init__(self, program: Program):
        self.facts = {d.leaf(): _of_decl(d.ranges) for d in program.decls if d.role in ("in", "param")}
        for d in program.ins:  # the same input of every row of a chunk
            self.facts[make("in", name=d.name, dims=(ROW, *d.dims), kind=d.kind)] = _of_decl(d.ranges)
        self.norms = {leaf: norm for d in program.decls if d.role in ("in", "param") and (norm := _norm_of(d.ranges))
                      for leaf in (d.leaf(), make("in", name=d.name, dims=(ROW, *d.dims), kind=d.kind))}
        for d in program.consts:
            self.facts[d.leaf()] = Interval()
        for d in program.states:  # one that starts at -inf may still be there
            if d.init is not None and bounds(d.init).infinite:
                self.facts[d.leaf()] = Interval(infinite=True)

    def __enter__(self) -> None:
        self.saved, self.saved_norms = dict(_here.declared), dict(_here.norms)
        _here.known.clear()
        _here.declared.update(self.facts)
        _here.norms.update(self.norms)

    def __exit__(self, *exc: object) -> None:
        _here.known.clear()
        _here.declared.clear()
        _here.declared.update(self.saved)
        _here.norms.clear()
        _here.norms.update(self.saved_norms)


def _value(bound: Node | None, otherwise: float) -> float:
    """A bound that is a plain number (others prove nothing but a sign we do not know)."""
    if bound is None:
        return otherwise
    if bound.op == "number":
        return float(bound.attr("value"))
    if bound.op == "neg" and bound.args[0].op == "number":
        return -float(bound.args[0].attr("value"))
    return otherwise


def _of_decl(ranges: tuple[Range, ...]) -> Interval:
    low, high, infinite = -INF, INF, False
    for r in ranges:
        if r.of == "x":
            low, high = max(low, _value(r.low, -INF)), min(high, _value(r.high, INF))
            infinite = infinite or (r.low is None) != (r.high is None)
        else:  # abs(x) <= c and norm(x) <= c both bound every entry
            top = _value(r.high, INF)
            low, high = max(low, -top), min(high, top)
    return Interval(low, high, infinite and (low == -INF or high == INF))


def bounds(x: Node) -> Interval:
    """An interval that holds for x under the ranges of the enclosing `proving` block."""
    return _here.known[x] if x in _here.known else fold([x], _interval, _here.known)[0]


def _interval(n: Node, a: list[Interval]) -> Interval:
    found = (_here.declared.get(_tensor(n)) if not n.args else None) or RULES.get(n.op, _any)(n, a)
    if n.op in ("mul", "div") and found.high > 1 and _in_own_sum(n):
        return Interval(max(found.low, 0.0), 1.0, found.infinite)
    return _by_ends(n, found) if n.op in ("add", "sub") else found


def _in_own_sum(n: Node) -> bool:
    """Is it a value of at least 0 over a sum that has it among what it adds up: b * k^2 / (1 + b * sum(k^2))?"""
    over, under = _factors(n)
    if len(under) != 1 or not _nonnegative(over):
        return False
    terms = [under[0]]
    for t in terms:  # which grows
        terms += t.args if t.op in ("add", "expand") else ()
    terms = [t for t in terms if t.op not in ("add", "expand")]
    return any(_sums_up(t, over) for t in terms) and all(bounds(t).low >= 0 for t in terms)


def _sums_up(t: Node, over: Counter[Node]) -> bool:
    """Is t a sum over dims of the product of `over`, what has none of them standing before it?"""
    factors, below = _factors(t)
    for s in [f for f in factors if f.op in ("sum", "contract")]:
        body = Counter(s.args) if s.op == "contract" else _factors(s.args[0])[0]
        if not below and factors - Counter([s]) + body == over:
            return True
    return False


def _factors(n: Node) -> tuple[Counter[Node], list[Node]]:
    """What it is a product of, and what that is divided by."""
    over, under, left = Counter[Node](), list[Node](), [n]
    for x in left:  # which grows
        if x.op in ("mul", "expand"):
            left += x.args
        elif x.op == "square":
            left += [*x.args, *x.args]
        elif x.op == "div":
            left.append(x.args[0])
            under.append(x.args[1])
        elif not is_number(x, 1.0):
            over[x] += 1
    return over, under


def _nonnegative(factors: Counter[Node]) -> bool:
    return all(x.kind == "real" and (count % 2 == 0 or bounds(x).low >= 0) for x, count in factors.items())


_AFFINE = ("add", "sub", "neg", "mul")
_FEW = 16  # values that a sum is looked through for


def _by_ends(n: Node, found: Interval) -> Interval:
    """Of a sum that reads a value more than once, and is affine in it, no entry lies outside of what it is where that
    value is at an end of its range: x + (1 - x) * y of two between 0 and 1 does."""
    region, uses = [n], Counter[Node]()
    for m in region:  # which grows
        if m.op in _AFFINE:
            region += [x for x in m.args if x not in uses]
            uses.update(m.args)
        if len(region) > _FEW:
            return found
    for x in [x for x, count in uses.items() if count > 1 and x.op != "number"]:
        own = bounds(x)
        if -INF < own.low < own.high < INF and _degree(n, x, depends([n], [x])) == 1:
            ends = [bounds(substitute([n], {x: _repeated(v, x.dims)})[0]) for v in (own.low, own.high)]
            low, high = min(e.low for e in ends), max(e.high for e in ends)
            found = Interval(max(found.low, low), min(found.high, high), found.infinite)
    return found


def _repeated(v: float, dims: tuple[str, ...]) -> Node:
    x = make("number", value=v)
    return make("expand", x, dims=dims) if dims else x


def _degree(n: Node, x: Node, reads: set[Node]) -> int:
    """In x; 2 where it is not affine."""
    if n is x or n not in reads:
        return int(n is x)
    degrees = [_degree(a, x, reads) for a in n.args]
    return 2 if n.op not in _AFFINE else sum(degrees) if n.op == "mul" else max(degrees)


def _tensor(n: Node) -> Node:
    """The leaf of which this one is an entry: it lies in the same range."""
    if n.attr("of") is None:
        return n
    return make(n.op, **{k: v for k, v in n.attrs if k not in ("of", "at")} | {"dims": n.attr("of")})


def _norm_of(ranges: tuple[Range, ...]) -> tuple[frozenset[str], float] | None:
    found = [(frozenset(r.over), _value(r.high, INF)) for r in ranges if r.of == "norm"]
    return found[0] if found else None


def declared_norm(x: Node) -> tuple[frozenset[str], float]:
    """The dims over which a norm of x is declared, and its bound."""
    return _here.norms.get(x, (frozenset[str](), INF))


def _any(n: Node, a: list[Interval]) -> Interval:
    return Interval(infinite=any(i.infinite for i in a) and n.op in ("rename", "flatten", "expand", "sum", "cumsum"))


def _within(a: list[Interval], low: float, high: float) -> Interval:
    """Infinite where an argument is."""
    return Interval(low, high, any(i.infinite for i in a))


def safe_product(x: float, y: float) -> float:
    return 0.0 if x == 0 or y == 0 else x * y


def _mul(n: Node, a: list[Interval]) -> Interval:
    if n.args[0] is n.args[1]:
        top = max(safe_product(a[0].low, a[0].low), safe_product(a[0].high, a[0].high))
        return Interval(0.0, top, a[0].infinite)
    ends = [safe_product(x, y) for x in (a[0].low, a[0].high) for y in (a[1].low, a[1].high)]
    return _within(a, min(ends), max(ends))


def _div(n: Node, a: list[Interval]) -> Interval:
    low, high = a[1].low, a[1].high
    if low > 0 or high < 0:
        inverse = sorted([1 / low if low else INF, 1 / high if high else -INF])
        ends = [safe_product(x, y) for x in (a[0].low, a[0].high) for y in inverse]
        return Interval(min(ends), max(ends), a[0].infinite)
    return Interval(infinite=False)


def _monotone(fn: Callable[[float], float], finite_at_minus_inf: bool = True,
              top_infinite: bool = True) -> Callable[[Node, list[Interval]], Interval]:
    def rule(n: Node, a: list[Interval]) -> Interval:
        low, high = fn(a[0].low), fn(a[0].high)
        infinite = a[0].infinite and ((a[0].high == INF and high == INF and top_infinite)
                                      or (a[0].low == -INF and not finite_at_minus_inf))
        return Interval(low, high, infinite)
    return rule


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else INF


def _softplus(x: float) -> float:
    return x if x > 30 else math.log1p(_exp(x))


def _sigmoid(x: float) -> float:
    return 1 / (1 + _exp(-x))


def _sum(n: Node, a: list[Interval]) -> Interval:
    return _within(a, 0.0 if a[0].low >= 0 else -INF, 0.0 if a[0].high <= 0 else INF)


def _contract(n: Node, a: list[Interval]) -> Interval:
    """Also under decays, which are at least 0."""
    positive = min(a[0].low, a[1].low) >= 0 or n.args[0] is n.args[1]
    return _within(a[:2], 0.0 if positive else -INF, INF)


def _abs(n: Node, a: list[Interval]) -> Interval:
    low, high = a[0].low, a[0].high
    return Interval(0.0 if low <= 0 <= high else min(abs(low), abs(high)), max(abs(low), abs(high)), a[0].infinite)


def _square(n: Node, a: list[Interval]) -> Interval:
    i = _abs(n, a)
    return Interval(safe_product(i.low, i.low), safe_product(i.high, i.high), i.infinite)


def _scan(n: Node, a: list[Interval]) -> Interval:
    """Infinite where it starts so; what a scan takes the maximum with bounds it."""
    of = n.attr("combine")
    low = a[1].low if of in ("max+", "maxx", "log+") else -INF
    high = a[1].high if of in ("min+", "minx") else INF
    positive = of == "affine" and min(x.low for x in a) >= 0
    return Interval(0.0 if positive else low, high, a[1].infinite or a[2].infinite)


def _covers(top: Node, x: Node) -> bool:
    """Is top >= x by what it is: the larger of two, a sum of exponentials, or a scan of either (whose row may be no
    token: it leaves what the row before left)?"""
    if top is x:
        return True
    if top.op in ("maximum", "logaddexp"):
        return any(_covers(t, x) for t in top.args)
    if top.op != "scan" or top.attr("combine") not in ("max+", "log+"):
        return False
    a, b = (y.args[0] if y.op == "live" else y for y in top.args[:2])
    moved = x.args if x.op == "add" else (x, make("number", value=0.0))
    return _covers(b, x) or (bounds(a).nonpositive and any(
        y is a and z.op == "previous" and z.args[0] is top for y, z in (moved, moved[::-1])))


def _sub(n: Node, a: list[Interval]) -> Interval:
    high = a[0].high - a[1].low
    if not a[0].infinite and _covers(n.args[1], n.args[0]):  # of two that are -inf the difference is no number
        high = min(high, 0.0)
    return _within(a, a[0].low - a[1].high, high)


def _where(n: Node, a: list[Interval]) -> Interval:
    """where(c < x, x, y): there x is a number, and more than c."""
    cond, x, _ = n.args
    yes, no = a[1], a[2]
    if cond.op == "lt" and cond.args[1] is x and cond.args[0].op == "number":
        high = min(yes.high, 0.0) if x.op == "sub" and _covers(x.args[1], x.args[0]) else yes.high
        yes = Interval(max(yes.low, bounds(cond.args[0]).low), high, yes.infinite and high == INF)
    return Interval(min(yes.low, no.low), max(yes.high, no.high), yes.infinite or no.infinite)


def _number(n: Node, a: list[Interval]) -> Interval:
    v = n.attr("value")
    return ANY if isinstance(v, complex) else Interval(v, v, math.isinf(v))


def _log(x: float) -> float:
    return math.log(x) if 0 < x < INF else -INF if x <= 0 else INF


def _sqrt(x: float) -> float:
    return math.sqrt(max(x, 0.0))


def _rsqrt(n: Node, a: list[Interval]) -> Interval:
    low, high = _sqrt(a[0].low), _sqrt(a[0].high)
    return Interval(1 / high if high else INF, 1 / low if low else INF)


RULES: dict[str, Callable[[Node, list[Interval]], Interval]] = {
    "number": _number,
    "size": lambda n, a: Interval(1.0, INF),
    **dict.fromkeys(("pos", "index"), lambda n, a: Interval(0.0, INF)),
    "add": lambda n, a: _within(a, a[0].low + a[1].low, a[0].high + a[1].high),
    "sub": _sub,
    "neg": lambda n, a: Interval(-a[0].high, -a[0].low, a[0].infinite),
    "mul": _mul,
    "div": _div,
    "exp": _monotone(_exp),
    "expm1": _monotone(lambda x: _exp(x) - 1),
    "softplus": _monotone(_softplus),
    "sigmoid": _monotone(_sigmoid),
    "logsigmoid": _monotone(lambda x: -_softplus(-x), finite_at_minus_inf=False, top_infinite=False),
    "tanh": _monotone(math.tanh),
    "relu": _monotone(lambda x: max(x, 0.0)),
    "elu": _monotone(lambda x: x if x > 0 else _exp(x) - 1),
    "sqrt": _monotone(_sqrt),
    "rsqrt": _rsqrt,
    "log": _monotone(_log, finite_at_minus_inf=False),
    "log_size": lambda n, a: Interval(-60 * math.log(2), _log(max(-a[0].low, a[0].high))),
    "abs": _abs,
    "square": _square,
    "norm": lambda n, a: _within(a, 0.0, INF),
    **dict.fromkeys(("sum", "mean", "cumsum"), _sum),
    "segsum": lambda n, a: Interval(-INF, 0.0 if a[0].high <= 0 else INF, True),  # -inf where t does not reach s
    "segprod": lambda n, a: Interval(min(a[0].low, 0.0), 1.0) if a[0].low >= -1 and a[0].high <= 1 else Interval(),
    "contract": _contract,
    "span_contract": _contract,
    "maximum": lambda n, a: _within(a, max(a[0].low, a[1].low), max(a[0].high, a[1].high)),
    "minimum": lambda n, a: _within(a, min(a[0].low, a[1].low), min(a[0].high, a[1].high)),
    "clamp": lambda n, a: Interval(a[1].low, max(a[1].low, a[2].high)),
    "where": _where,
    **dict.fromkeys(("softmax", "to_number"), lambda n, a: Interval(0.0, 1.0)),
    **dict.fromkeys(("stop_gradient", "rename", "flatten", "unflatten", "expand", "pick"), lambda n, a: a[0]),
    "previous": lambda n, a: _within(a, min(a[0].low, a[1].low), max(a[0].high, a[1].high)),
    "scan": _scan,
    "live": lambda n, a: Interval(min(a[0].low, n.attr("fill")), max(a[0].high, n.attr("fill")), a[0].infinite),
}
