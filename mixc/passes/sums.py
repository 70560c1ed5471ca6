"""Chunk -> Chunk: sums of running sums as one running sum, what they have in common as one factor.

before: cumsum(k * a) + (cumsum(k * b + q * c) - q * c), and a + b for another purpose
after:  own = k * (a + b);  exclusive cumsum(own + q * c) + own

So the gradient of a decay is formed of the gradients of what it decays, which are there anyway, and not of their parts:
fewer products with ones, and fewer tiles that wait for one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import reduce

from mixc.ir.build import contract, cumsum, expand, product, renamed_at_once
from mixc.ir.node import COL, ROW, Node, make, number, postorder, substitute

SUMS = ("add", "sub", "neg")
Term = tuple[bool, Node]  # is it subtracted?


def gather_sums(roots: list[Node]) -> list[Node]:
    """`roots` with their running sums gathered, and what these have in common used wherever it is part of a sum."""
    sums = _Sums(roots)
    new = sums.rewritten(sums.gathered)
    if not sums.common:
        return new
    again = _Sums(new)
    again.common = sums.common
    return again.rewritten(again.regrouped)


class _Sums:
    """The sums of a program: trees of `SUMS` whose inner nodes have one use.

    Attributes:
        common: the terms of sums that a factor was put in front of."""

    def __init__(self, roots: list[Node]):
        self.roots, self.order, self.common = roots, list(postorder(roots)), dict[Node, list[Term]]()
        self.uses = Counter(a for n in self.order for a in n.args)
        self.uses.update(roots)

    def rewritten(self, rule: Callable[[list[Term]], list[Term] | None]) -> list[Node]:
        inner = {a for n in self.order if n.op in SUMS for a in n.args if self.uses[a] == 1}
        done: dict[Node, Node] = {}
        for n in self.order:
            found = rule(self.terms(n)) if n.op in SUMS and n not in inner else None
            if found and (new := _added(found)).dims == n.dims:
                done[n] = substitute([new], done)[0]
            else:
                done[n] = n.on(*(done[a] for a in n.args))
        return [done[r] for r in self.roots]

    def terms(self, n: Node, minus: bool = False, top: bool = True) -> list[Term]:
        """What a sum adds up; rows that are renamed are so in each of its terms."""
        if n.op in SUMS and (top or self.uses[n] == 1):
            signs = (not minus,) if n.op == "neg" else (minus, minus != (n.op == "sub"))
            return [t for a, m in zip(n.args, signs, strict=True) for t in self.terms(a, m, False)]
        if n.op == "rename" and self.uses[n] == 1:
            return [(m, renamed(t, n)) for m, t in self.terms(n.args[0], minus, False)]
        return [(minus, n)]

    def gathered(self, terms: list[Term]) -> list[Term] | None:
        """With one running sum a direction; None where there is none to add to another. One that has its own row is an
        exclusive one and that row: nothing is subtracted that was added before."""
        left, changed = terms, False
        for back in (False, True):
            group = [t for t in left if t[1].op == "cumsum" and t[1].attr("reverse") is back and self.uses[t[1]] == 1]
            if len(group) < 2:
                continue
            left, changed = [t for t in left if t not in group], True
            own, rest = list[Term](), list[Term]()
            for minus, c in group:
                (rest if c.attr("exclusive") else own).extend(self.terms(c.args[0], minus, False))
            for minus, x in list(left):
                if (not minus, x) in own:
                    left.remove((minus, x))
                    own.remove((not minus, x))
                    rest.append((not minus, x))
            own, rest = self.factored(own), self.factored(rest)
            if not rest:
                left = [*left, (False, cumsum(_added(own), reverse=back))]
            else:
                row = [(False, _added(own))] if own else []
                left = [*left, (False, cumsum(_added(row + rest), reverse=back, exclusive=True)), *row]
        return left if changed else None

    def factored(self, terms: list[Term]) -> list[Term]:
        """x * a + x * b as x * (a + b)."""
        counts = Counter(f for _, t in terms if t.op == "mul" for f in {*t.args} if f.op != "number")
        best = max((f for _, t in terms if t.op == "mul" for f in t.args), key=lambda f: counts[f], default=None)
        if best is None or counts[best] < 2:
            return terms
        of = [t for t in terms if t[1].op == "mul" and best in t[1].args]
        others = [(m, t.args[t.args[0] is best]) for m, t in of]
        minus = all(m for m, _ in others)
        others = [(m != minus, x) for m, x in others]
        both = _added(others)
        self.common[both] = others
        return [(minus, both * best), *self.factored([t for t in terms if t not in of])]

    def regrouped(self, terms: list[Term]) -> list[Term] | None:
        """With sums in common as one term."""
        new = terms
        for both, parts in self.common.items():
            for minus in (False, True):
                wanted = [(m != minus, x) for m, x in parts]
                if all(t in new for t in wanted) and len(new) > len(wanted):
                    new = [*(t for t in new if t not in wanted), (minus, both)]
        return None if new is terms else new

    def read_at_once(self, terms: list[Term]) -> list[Term] | None:
        """With one product of pairs of rows for every value they are multiplied with, and one sum of such pairs for
        every decay."""
        new = terms
        for i, (minus, a) in enumerate(terms):
            for sub, b in terms[i + 1:]:
                if self.uses[a] == self.uses[b] == 1 and (minus, a) in new and (sub, b) in new and (
                        both := self._at_once(a, b, minus != sub)) is not None:
                    new = [(minus, both) if t == (minus, a) else t for t in new if t != (sub, b)]
                    a = both
        return None if new is terms else new

    def _at_once(self, a: Node, b: Node, sub: bool) -> Node | None:
        if a.dims != b.dims:
            return None
        if {*a.dims} == {ROW, COL}:
            return _pairs(a, b, sub)
        same = {*a.args} & {*b.args} if a.op == b.op == "contract" else set()
        if len(same) != 1:
            return None
        (x,), (A,), (B,) = same, {*a.args} - same, {*b.args} - same
        if {*A.dims} != {ROW, COL} or {*B.dims} != {ROW, COL} or max(self.uses[A], self.uses[B]) > 1:
            return None
        return contract(_pairs(A, B, sub) or (A - B if sub else A + B), x, a.dims)


def _pairs(a: Node, b: Node, sub: bool) -> Node | None:
    """[_t, _s]: a + b, what masks or decays pairs of rows being one factor of both; None: nothing does."""
    (of, keep), (more, same) = map(_factors, (a, b))
    common = [*(of & more).elements()]
    if keep != same or (keep is None and not any({*f.dims} == {ROW, COL} for f in common)):
        return None
    x, y = (product((fs - (of & more)).elements()) or number(1) for fs in (of, more))
    found = product([expand(x - y if sub else x + y, (ROW, COL)), *common]) or number(1)
    return found if keep is None else make("mask", found, keep=keep)


def _factors(n: Node) -> tuple[Counter[Node], str | None]:
    """Those of a product, and which pairs of rows it keeps."""
    if n.op == "mul":
        (a, keep), (b, same) = map(_factors, n.args)
        return a + b, keep or same
    if n.op == "expand":
        return _factors(n.args[0])
    if n.op == "mask":
        return _factors(n.args[0])[0], n.attr("keep")
    return Counter({n: 1}), None


def renamed(n: Node, like: Node) -> Node:
    """The node under the names that `like` gives."""
    if n.op == "mul":
        return make("mul", *(renamed(a, like) for a in n.args))
    return renamed_at_once(n, dict(like.attr("to")))


def _added(terms: list[Term]) -> Node:
    """The sum; it begins with what is not subtracted."""
    first = next((i for i, (minus, _) in enumerate(terms) if not minus), 0)
    (minus, x), rest = terms[first], terms[:first] + terms[first + 1:]
    return reduce(lambda a, t: a - t[1] if t[0] else a + t[1], rest, -x if minus else x)


# ---------------------------------------------------------------- products with what the same rows wrote
def gather_reads(roots: list[Node]) -> list[Node]:
    """A[t, s] x[s] + B[t, s] x[s] = (A + B)[t, s] x[s], and what A and B have in common is one factor: a state and one
    that lacks its keys are corrected by one value, and read at once."""
    sums = _Sums(roots)
    return sums.rewritten(sums.read_at_once)
