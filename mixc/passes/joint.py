"""Step -> Step: a state of three dims, two of which are always read together, is a matrix with both in one dim.

before: S[N, K, V] = exp(g[N]) * S + w[N] * k[K] * v[V];   o[V] = u[N] @ (q[K] @ S)
after:  S[N*K, V] = exp(g) * S + (w k) * v;                o = (u q) @ S         g, w, u repeated along K, k, q along N

So memories beside each other that are read as one, features of a product, are a matrix and its keys: what is derived of
matrices serves them.  A dim `N*K` has the entries of N and K, those of K next to each other, as the state's tensor has.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

from mixc.ir.build import contract, expand, maybe_mul, number, total
from mixc.ir.node import JOINT, Node, fold, make
from mixc.ir.ops import OPS
from mixc.ir.program import Dim, Program


def joint(step: Program) -> Program | None:
    """The step with two dims of its states of three in one; None where they are not always read together."""
    many = [s.dims for s in step.states if len(s.dims) > 2]
    for pair in dict.fromkeys(p for dims in many for p in itertools.pairwise(dims)):
        try:
            found = _joined(step, pair)
        except _Apart:
            continue
        if all(len(s.dims) < 3 for s in found.states):
            return found
    return None


class _Apart(Exception):
    """A value needs one of the two dims alone."""


@dataclass(frozen=True)
class _Half:
    """A value that is summed over one dim of the pair: the sum of base * factor over it (None: 1)."""

    base: Node
    factor: Node | None
    summed: str


Value = Node | _Half


def _joined(step: Program, pair: tuple[str, str]) -> Program:
    one, both = JOINT.join(pair), {*pair}
    states = {s.name: tuple(d for x in s.dims for d in ((one,) if x == pair[0] else () if x == pair[1] else (x,)))
              for s in step.states if both <= {*s.dims}}
    if any(pair not in itertools.pairwise(s.dims) for s in step.states if s.name in states):
        raise _Apart  # their entries lie otherwise
    decls = tuple(replace(d, dims=states[d.name]) if d.role == "state" and d.name in states else d for d in step.decls)
    writer = _Writer(pair)
    for s in step.states:
        if s.name in states:
            writer.joined[s.leaf()] = replace(s, dims=states[s.name]).leaf()
    results = []
    for r in step.results:
        value, own = writer.value(r.value), r.role == "next" and r.name in states
        if isinstance(value, _Half) or (one in value.dims and not own):
            raise _Apart
        results.append(replace(r, value=writer.spread(value, deep=True) if own else value))
    at = next(i for i, d in enumerate(step.dims) if d.name in both)
    return replace(step, decls=decls, results=tuple(results), dims=(*step.dims[:at], Dim(one), *step.dims[at:]))


class _Writer:
    """Values of a step under states that have the two dims in one."""

    def __init__(self, pair: tuple[str, str]):
        self.pair, self.both, self.one = pair, {*pair}, JOINT.join(pair)
        self.joined: dict[Node, Value] = {}

    def value(self, root: Node) -> Value:
        return fold([root], self._of, self.joined)[0]

    def _of(self, n: Node, args: list[Value]) -> Value:
        changed = any(isinstance(x, _Half) or x is not a for x, a in zip(args, n.args, strict=True))
        return self._made(n, args) if changed else n

    def spread(self, x: Node, deep: bool = False) -> Node:
        """A value along the dim that is both.

        deep: and what it is a function of entry by entry: the log of a decay is found below its exponential."""
        if self.one in x.dims or not x.dims:
            return x
        if (both := self.both & {*x.dims}) and OPS[x.op].elementwise and (deep or both == self.both):
            return x.on(*(self.spread(a, deep) for a in x.args))
        if not both:
            return x
        return make("flatten", expand(x, self.pair), of=self.pair)

    def _along(self, x: Value) -> bool:
        return isinstance(x, Node) and self.one in x.dims

    def _made(self, n: Node, args: list[Value]) -> Value:
        halves = [x for x in args if isinstance(x, _Half)]
        if not halves and not any(map(self._along, args)):  # what was read of them, over both
            return n.on(*args)  # type: ignore[arg-type]
        if n.op == "contract":
            return self._contract(n, *args)
        if n.op == "sum":
            return self._read(args[0], None, n.attr("over"), n.dims)
        if halves:
            return self._of_halves(n, args, halves)
        if not OPS[n.op].elementwise:
            raise _Apart
        return n.on(*(self.spread(x, deep=True) for x in args))  # type: ignore[arg-type]

    def _of_halves(self, n: Node, args: list[Value], halves: list[_Half]) -> _Half:
        """Factors go into the sum, if they lack the dim that is summed over."""
        half = halves[0]
        others = [x for x in args if x is not half]
        if n.op == "neg":
            return replace(half, factor=number(-1) if half.factor is None else -half.factor)
        x = others[0] if n.op == "mul" and others else None  # y * y has none
        if isinstance(x, Node) and half.summed not in x.dims and not self._along(x):
            return replace(half, factor=maybe_mul(half.factor, self.spread(x)))
        raise _Apart

    def _contract(self, n: Node, a: Value, b: Value) -> Value:
        of, by, old = (a, b, n.args[1]) if isinstance(a, _Half) or self._along(a) else (b, a, n.args[0])
        if isinstance(by, _Half) or self._along(by):
            raise _Apart
        return self._read(of, by, [d for d in old.dims if d not in n.dims], n.dims)

    def _read(self, of: Value, by: Node | None, over: list[str] | tuple[str, ...], out: tuple[str, ...]) -> Value:
        """The sum of a value, times another's, over dims."""
        summed = self.both & {*over}
        if isinstance(of, _Half):
            rest, = self.both - {of.summed}
            if summed != {rest} or {*over} != {rest} or (by is not None and of.summed in by.dims):
                raise _Apart
            factor = maybe_mul(of.factor, None if by is None else self.spread(by))
            return total(of.base, (self.one,)) if factor is None else contract(factor, of.base, out)
        assert isinstance(of, Node)
        if len(summed) == 1 and len(over) == 1:
            return _Half(of, None if by is None else self.spread(by), next(iter(summed)))
        if len(summed) == 1 or (by is None and not summed):
            raise _Apart
        kept = out if summed else tuple(self.one if d == self.pair[0] else d for d in out if d != self.pair[1])
        if by is None:
            return total(of, [d for d in of.dims if d not in kept])
        return contract(self.spread(by), of, kept)
