"""The decay of a state over the rows of a chunk: products over spans, in the log where there is one.

A separable decay is a product of parts, each the same for the whole state or different along one of its dims.
With d_j the part at row j, a chunk needs four things: the product over rows s+1..t for every
pair (t, s), over all rows up to t, over all rows after s, and over the whole chunk.  In the log
they are sums and every exponent is formed as a sum over its own span, so nothing cancels; a
decay given as a number, the same for the whole state, is multiplied out, so that 0, signs and growth are exact, and its
gradient is formed without dividing by it (`derivatives._segprod`).  Products of vectors for all pairs of rows would be
dear: one of size 1 at most is exp(log_size(d)) times its sign, where log_size takes a 0 for 2^-60.  Each term of the
gradient of log_size(d) has d as a factor, and none cancels (`span_crossing`), so that it may be divided by d.

A complex decay exp(a + i b) is the decay exp(a) and a turn: with B the running sum of b within the chunk, the factor
from s to t is exp(i B[t]) exp(-i B[s]), of modulus 1, and goes with what is read and with what is written.  One that is
given as a number is its modulus and its angle.
"""

from __future__ import annotations

import cmath
import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import reduce
from typing import Protocol

from mixc.ir.build import at_col, contract, cumprod, cumsum, exp, expand, maybe_mul, product, repeated, total, where
from mixc.ir.node import COL, ROW, Node, is_number, make, number
from mixc.ir.ranges import bounds
from mixc.passes.separate import factors_of, unrepeated

Dims = tuple[str, ...]
Sums = Callable[[Node], Node]
# exp(FORGET) is exactly 0 in fp32 and fp64, and sums of it stay finite: -inf as a log decay
FORGET = -1.0e4
GRAIN = 2.0 ** -10


class Lift(Protocol):
    """From a token's value to those of all rows; `planes`: a token's value as real and imaginary part (None: 0).
    `by_rows`: see `chunk`.  `endless`: the groups whose state may be given what is infinite."""

    by_rows: bool
    endless: frozenset[tuple[str, ...]]

    def __call__(self, node: Node) -> Node: ...

    def planes(self, node: Node) -> tuple[Node | None, Node | None]: ...


def log_of(d: Node) -> Node | None:
    """log(d) where d was written as an exponential (then no digits are lost), else None."""
    if d.op == "exp":
        return d.args[0]
    if d.op == "sigmoid":
        return make("logsigmoid", d.args[0])
    if d.op == "sub" and is_number(d.args[0], 1.0) and d.args[1].op == "sigmoid":
        return make("logsigmoid", -d.args[1].args[0])
    if d.op == "number" and isinstance(d.attr("value"), complex):
        return number(cmath.log(d.attr("value"))) if d.attr("value") else number(FORGET)
    if d.op == "neg" and d.kind == "complex":
        a = log_of(d.args[0])
        return None if a is None else a + number(complex(0.0, math.pi))
    if d.op == "conj":
        a = log_of(d.args[0])
        return None if a is None else make("conj", a)
    if d.op == "number" and d.attr("value") >= 0:
        return number(math.log(d.attr("value")) if d.attr("value") else FORGET)
    if d.op == "mul":
        a, b = log_of(d.args[0]), log_of(d.args[1])
        return None if a is None or b is None else a + b
    if d.op == "ipow":
        a = log_of(d.args[0])
        return None if a is None else a * float(d.attr("n"))
    if d.op == "where":
        a, b = log_of(d.args[1]), log_of(d.args[2])
        return None if a is None or b is None else where(d.args[0], a, b)
    return None


@dataclass(frozen=True)
class Part:
    """One factor of a decay over a chunk, [_t] or [_t, dim]: a logarithm or the number itself."""

    dims: Dims
    log: Node | None = None
    value: Node | None = None

    def _by(self, sums: Sums, products: Sums) -> Node:
        if self.log is not None:
            return exp(sums(self.log))
        assert self.value is not None
        return products(self.value)

    def span(self, reach: str) -> Node:
        """[_t, _s, dim]: the decay from s to t, 0 where t does not reach s.

        reach: "incl" (rows s+1..t, s <= t), "strict" (the same, s < t), "excl" (s+1..t-1, s < t)."""
        return self._by(lambda x: make("segsum", by_rows(x), reach=reach), lambda x: make("segprod", x, reach=reach))

    def up_to(self, exclusive: bool) -> Node:
        """[_t, dim]: the decay of rows up to t (exclusive: before t)."""
        return self._by(lambda x: cumsum(x, exclusive=exclusive), lambda x: cumprod(x, exclusive=exclusive))

    def after(self) -> Node:
        """[_t, dim]: the decay of the rows after t."""
        return self._by(lambda x: cumsum(x, reverse=True, exclusive=True),
                        lambda x: cumprod(x, reverse=True, exclusive=True))

    def whole(self) -> Node:
        """[dim]: the decay of all rows."""
        return self._by(lambda x: total(x, (ROW,)), lambda x: make("prod", x, over=(ROW,)))


@dataclass(frozen=True)
class Turn(Part):
    """The same for a turn by `phase`, [_t] or [_t, dim], a row: factors of modulus 1, nothing masked.

    A phase is the sum of a multiple of GRAIN and a rest below it.  Sums of the first are exact (of 64 rows to 256 rad
    each, in fp32), those of the second small: no angle is off by the rounding of a long sum."""

    phase: Node | None = None

    def _by(self, sums: Sums, products: Sums) -> Node:
        assert self.phase is not None
        coarse = make("stop_gradient", self.phase - make("mod", self.phase, number(GRAIN)))
        return product(exp(number(1j) * sums(x)) for x in (coarse, self.phase - coarse)) or number(1)

    def back(self) -> Node:
        """[_t, dim]: what undoes the turns of rows up to t."""
        return make("conj", self.up_to(False))

    def span(self, reach: str) -> Node:
        return self.up_to(reach == "excl") * at_col(self.back())


@dataclass(frozen=True)
class Sign(Turn):
    """The same for a sign a row: where there is a -1, `negative` is 1."""

    negative: Node | None = None

    def _by(self, sums: Sums, products: Sums) -> Node:
        assert self.negative is not None
        return 1.0 - 2.0 * make("mod", sums(self.negative), number(2))

    def back(self) -> Node:
        return self.up_to(False)


@dataclass(frozen=True)
class Decay:
    """The parts of a decay over a chunk."""

    parts: tuple[Part, ...] = ()

    @staticmethod
    def of(factors: Iterable[Node], dims: Iterable[str], lift: Lift, apart: Collection[str] = ()) -> Decay:
        """From the factors of one row's decay, each with one of `dims` at most; along `apart` one state lies beside the
        other, and a number is multiplied out for each."""
        found: list[defaultdict[Dims, list[Node]]] = [defaultdict(list) for _ in range(4)]
        logs_, turns_, signs_, values_ = found

        def own(x: Node) -> Dims:  # a modulus may lack the dim of a phase, and the other way round
            return tuple(d for d in x.dims if d in dims)
        for f in factors:
            log = g = log_of(f)
            turn: Node | None = None
            if log is not None and log.kind == "complex":
                g, turn = (x and unrepeated(x) for x in lift.planes(log))
            elif log is None and f.kind == "complex":
                f, turn = _polar(*lift.planes(f))
            if turn is not None:
                turns_[own(turn)].append(turn)
            if log is None and {*own(f)} - {*apart} and _at_most_one(f):
                g = make("log_size", f)
                if bounds(f).low < 0:
                    signs_[own(f)].append(make("stop_gradient", where(make("lt", f, number(0)), 1.0, 0.0)))
            if g is not None:
                logs_[own(g)].append(g)
            elif log is None:
                values_[own(f)].append(f)
        logs, turns, signs = ({d: reduce(Node.__add__, xs) for d, xs in of.items() if xs} for of in found[:3])
        values = {d: reduce(Node.__mul__, xs) for d, xs in values_.items()}
        if () in logs and len(logs) > 1:  # what is the same for all joins what is not
            dim = next(d for d in logs if d)
            logs[dim] = logs[dim] + logs.pop(())
        return Decay((*(Part(d, log=_log_rows(lift(g))) for d, g in logs.items()),
                      *(Part(d, value=make("live", by_rows(lift(x)), fill=1.0)) for d, x in values.items()),
                      *(Turn(d, phase=make("live", expand(lift(x), (ROW,)), fill=0.0)) for d, x in turns.items()),
                      *(Sign(d, negative=make("live", by_rows(lift(x)), fill=0.0)) for d, x in signs.items())))

    def along(self, dims: Iterable[str]) -> Decay:
        """The parts that differ along one of `dims`."""
        return Decay(tuple(p for p in self.parts if set(p.dims) & set(dims)))

    def not_along(self, dims: Iterable[str]) -> Decay:
        return Decay(tuple(p for p in self.parts if not set(p.dims) & set(dims)))

    @property
    def scalar(self) -> bool:
        """Is it the same for the whole state?"""
        return not any(p.dims for p in self.parts)

    def up_to(self, exclusive: bool) -> Node | None:
        return product(p.up_to(exclusive) for p in self.parts)

    def after(self) -> Node | None:
        return product(p.after() for p in self.parts)

    def whole(self) -> Node | None:
        return product(p.whole() for p in self.parts)

    def span(self, reach: str) -> Node | None:
        moduli, turns = self._taken_apart()
        if turns and not moduli.parts:  # which are nowhere 0
            return product([moduli.over(None, reach), *(t.span(reach) for t in turns)])
        return product(p.span(reach) for p in self.parts)

    def _taken_apart(self) -> tuple[Decay, list[Turn]]:
        turns = [p for p in self.parts if isinstance(p, Turn)]
        return Decay(tuple(p for p in self.parts if not isinstance(p, Turn))) if turns else self, turns

    def scores(self, query: Node | None, keys: Node | None, summed: Iterable[str], reach: str) -> Node:
        """[_t, _s, ...]: sum over `summed` of query[t] * keys[s] * the decay from s to t, but for its parts along other
        dims; 0 where t does not reach s.  None stands for ones."""
        moduli, turns = self._taken_apart()
        alike = [t for t in turns if not t.dims]  # of one token's read and write: nothing is left, and nothing rounded
        for turn in turns:
            if turn.dims and set(turn.dims) <= set(summed):
                query, keys = maybe_mul(query, turn.up_to(reach == "excl")), maybe_mul(keys, turn.back())
        if turns:
            return product([moduli.scores(query, keys, summed, reach), *(t.span(reach) for t in alike)]) or number(1)
        has = {*self._dims(), *(d for x in (query, keys) if x is not None for d in x.dims)}
        for d in sorted(summed):
            if d not in has:  # the same for every entry along it
                query = maybe_mul(query, make("size", dim=d))
        summed = sorted(d for d in summed if d in has)
        mine = [d for d in summed if d in self._dims()] or summed[:1]
        apart = by_dim(query, keys, summed=summed)
        if apart is not None and len(mine) < len(apart):  # a number for each of the other dims
            (q, k), rest = apart[mine[0]], [d for d in apart if d not in mine]
            for d in mine[1:]:
                q, k = (product(f for f in x if f is not None) for x in zip((q, k), apart[d], strict=True))
            found = self.scores(q, k, mine, reach)
            pairs = (_pair(apart[d][0], apart[d][1], summed) for d in rest)
            return product([found, *(p for p in pairs if p is not None)]) or found
        inside, same = self.along(summed), self.not_along(self._dims())
        if not inside.parts:
            pair = _pair(query, keys, summed)
            if self.parts and not same.parts:  # parts along other dims are 0 where t does not reach s
                return repeated(pair, (ROW, COL))
            return same.over(pair, reach)
        q, k = repeated(query, (ROW, *inside._dims())), at_col(repeated(keys, (ROW, *inside._dims())))
        q, k = (total(x, [d for d in x.dims if d in summed and d not in y.dims and d not in inside._dims()])
                for x, y in ((q, k), (k, q)))
        out = (*(d for d in q.dims if d not in summed), *(d for d in k.dims if d not in (*summed, *q.dims)))
        (first, *others) = inside.parts
        if first.log is not None and not others:
            found = make("span_contract", q, k, first.log, out=out, reach=reach)
        else:
            span = inside.span(reach)
            assert span is not None
            found = contract(q * span, k, out)
        return same.over(found, reach) if same.parts else found

    def over(self, scores: Node | None, reach: str) -> Node:
        """scores[t, s] times the decay from s to t, 0 where t does not reach s."""
        factor = self.span(reach)
        if factor is not None:
            return factor if scores is None else scores * factor
        ones = repeated(None, (ROW, COL)) if scores is None else scores
        return make("mask", ones, keep="strict" if reach == "excl" else reach)

    def spread(self, scores: Node, values: Node | None, out: Dims, reach: str) -> Node:
        """[_t, out...]: scores[t, s] applied to the values written at s, under the parts along dims of `out`."""
        moduli, turns = self._taken_apart()
        if turns:
            here = [t for t in turns if set(t.dims) & set(out)]
            for turn in here:
                values = maybe_mul(values, turn.back())
            return product([moduli.spread(scores, values, out, reach), *(t.up_to(reach == "excl") for t in here)]) or (
                number(1))
        kept = self.along(out)
        scores = total(scores, [d for d in scores.dims if d not in (ROW, COL, *out) and (
            values is None or d not in values.dims)])  # else with the values
        if not kept.parts and values is None:
            return expand(total(scores, (COL,)), (ROW, *out))
        if values is not None:
            values = total(values, [d for d in values.dims if d not in (ROW, *out, *scores.dims)])
        column = at_col(repeated(values, (ROW, *kept._dims())))
        present = tuple(d for d in out if d in scores.dims or d in column.dims)
        if not kept.parts:
            return expand(contract(scores, column, (ROW, *present)), (ROW, *out))
        (first, *others) = kept.parts
        if first.log is not None and not others and not {*scores.dims} & {*first.dims}:
            found = make("span_contract", scores, column, first.log, out=(ROW, *present), reach=reach)
        else:
            span = kept.span(reach)
            assert span is not None
            found = contract(scores * span, column, (ROW, *present))
        return expand(found, (ROW, *out))

    def _dims(self) -> Dims:
        return tuple(dict.fromkeys(d for p in self.parts for d in p.dims))


def _at_most_one(f: Node) -> bool:
    """Is it a real number of size 1 at most, so that what is left of its log after a chunk does not grow?"""
    return f.kind == "real" and bounds(f).low >= -1 and bounds(f).high <= 1


def _polar(re: Node | None, im: Node | None) -> tuple[Node, Node | None]:
    """Modulus and angle of a number, the angle without gradient: what it would have, an imaginary part of the modulus
    has, which is 0 (see `tangent`)."""
    re = number(0) if re is None else re
    if im is None:
        return re, None
    angle = make("stop_gradient", make("angle", im, re))
    c, s = make("cos", angle), make("sin", angle)
    return (c * re + s * im) + number(1j) * (c * im - s * re), angle


def by_rows(x: Node) -> Node:
    """x with the time axis in front, which a param's dims may stand before."""
    return x if x.dims[:1] == (ROW,) else repeated(None, (ROW,)) * x


def _log_rows(g: Node) -> Node:
    """The logarithms of all rows: finite, and 0 on rows that are no tokens."""
    if bounds(g).infinite:
        g = where(make("lt", number(FORGET), g), g, FORGET)
    return make("live", expand(g, (ROW,)), fill=0.0)


def by_dim(*values: Node | None, summed: Iterable[str]) -> dict[str, list[Node | None]] | None:
    """Of every dim that is summed over the factors of each value that have it, those without such a dim with the first;
    None if there is one dim, or a value does not separate."""
    dims = sorted(summed)
    factors = [[] if x is None else factors_of(x, dims) for x in values]
    if len(dims) < 2 or any(f is None for f in factors):
        return None
    return {d: [product(f for f in fs or () if d in f.dims or (d == dims[0] and not set(dims) & set(f.dims)))
                for fs in factors] for d in dims}


def _pair(query: Node | None, keys: Node | None, over: Collection[str]) -> Node | None:
    """query[t] . keys[s] -> [_t, _s, dims that are kept]; None is 1."""
    if query is None and keys is None:
        return None
    q, k = repeated(query, (ROW,)), at_col(repeated(keys, (ROW,)))
    return contract(q, k, dict.fromkeys(d for d in (*q.dims, *k.dims) if d not in over))
