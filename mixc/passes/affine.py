"""How a value depends on the states that the previous token left.

A node x with the dims of a group of states S_1 .. S_n (most often one) is *affine* in them when

    x = sum_i decay_i * S_i + sum_w coef_w * write_w

with decays and coefs that read none of them and act entry by entry, and writes that are outer products.  One factor
of a write, its *value*, may be affine in what is read of the states: that is a low-rank term,
`beta * k * (v - k @ S)`.  `AffineForms` finds all this by walking the Step's DAG, operation by operation; where no
rule keeps the form, that node is to blame.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field

from mixc.ir.build import contract, is_number, maybe_mul, product, rename, where
from mixc.ir.node import Node, depends, number
from mixc.ir.program import Decl, Program
from mixc.ir.ranges import INF, bounds
from mixc.ir.risk import Risks
from mixc.passes.outer import Ranks, apart, conditions, only, outer_products, over_ranks, summed, terms
from mixc.passes.separate import factors_of, unrepeated


@dataclass(frozen=True, eq=False)
class Write:
    """An outer product added to the state: factors without the state, and a value that reads it, if one does; summed
    over what dims they have beside the state's.  Compared by identity."""

    factors: tuple[Node, ...]
    value: ReadForm | None = None

    def __repr__(self) -> str:
        return " * ".join(map(repr, self.factors)) + (" * (a value that reads the state)" if self.value else "")


@dataclass(frozen=True, eq=False)
class Affine:
    """sum decay * state + sum coef * write; a decay or coef of None is 1, a state that is missing is not read."""

    decays: dict[Node, Node | None] = field(default_factory=dict)
    writes: dict[Write, Node | None] = field(default_factory=dict)

    def scaled(self, c: Node) -> Affine:
        if is_number(c, 1.0):
            return self
        return Affine({} if is_number(c, 0.0) else {s: maybe_mul(c, d) for s, d in self.decays.items()},
                      {w: maybe_mul(c, e) for w, e in self.writes.items()})

    def plus(self, other: Affine) -> Affine:
        decays, writes = dict(self.decays), dict(self.writes)
        for s, d in other.decays.items():
            decays[s] = _sum(decays[s], d) if s in decays else d
        for w, e in other.writes.items():
            writes[w] = _sum(writes[w], e) if w in writes else e
        return Affine(decays, writes)


@dataclass(frozen=True)
class Read:
    """sum of query * x over the dims that `node` lacks; x is affine in the state, query None is 1."""

    node: Node
    query: Node | None
    x: Node


@dataclass(frozen=True, eq=False)
class ReadForm:
    """constant + sum coef * read, entry by entry; None: a constant of 0, a coef of 1."""

    constant: Node | None
    coefs: dict[Read, Node | None] = field(default_factory=dict)

    @property
    def dims(self) -> set[str]:
        nodes = [self.constant, *self.coefs.values(), *(r.node for r in self.coefs)]
        return {d for n in nodes if n is not None for d in n.dims}

    def scaled(self, c: Node | None) -> ReadForm:
        if c is None:
            return self
        c = unrepeated(c)
        return ReadForm(None if self.constant is None else c * self.constant,
                        {r: maybe_mul(c, e) for r, e in self.coefs.items()})

    def plus(self, other: ReadForm) -> ReadForm:
        coefs = dict(self.coefs)
        for r, e in other.coefs.items():
            coefs[r] = _sum(coefs[r], e) if r in coefs else e
        constants = [c for c in (self.constant, other.constant) if c is not None]
        return ReadForm(constants[0] + constants[1] if len(constants) == 2 else next(iter(constants), None), coefs)


def _sum(a: Node | None, b: Node | None) -> Node | None:
    """a + b, None standing for 1."""
    if a is not None and is_number(a, 0.0):
        return b
    if b is not None and is_number(b, 0.0):
        return a
    return (a if a is not None else number(1)) + (b if b is not None else number(1))


class AffineForms:
    """The forms of all nodes that are affine in the states of one group.

    Args:
        states: their declarations; those of one have all dims. One that lacks some is read without a query along them,
            and written without a key: the bias of a matrix."""

    def __init__(self, step: Program, states: list[Decl]):
        roots = step.values()
        widest = max(states, key=lambda s: len(s.dims))
        self.step, self.states, self.order, self.dims = step, states, widest.dims, set(widest.dims)
        self.shapes = {frozenset(s.dims) for s in states}
        self.nexts = [step.result("next", s.name) for s in states]
        self.leaves = [s.leaf() for s in states]
        self.reads = depends(roots, self.leaves)
        self.ranks = Ranks(roots)
        self.forms: dict[Node, Affine | None] = {}
        self.values: dict[Node, ReadForm | None] = {}
        self.corrections: set[Node] = set()  # the values that correct a state of all dims
        for s, update in zip(states, self.nexts, strict=True):
            if len(self.shapes) > 1 and s.dims == self.order:
                self.form(update)

    def free(self, node: Node) -> bool:
        return node not in self.reads

    def outer(self, node: Node) -> list[tuple[Node, ...]]:
        return outer_products(node, self.dims, self.ranks, self.risky)

    # ------------------------------------------------------------ nodes with the dims of the state
    def form(self, node: Node) -> Affine | None:
        """The affine form of a node with the state's dims, or None."""
        if node not in self.forms:
            self.forms[node] = self._find(node)
        return self.forms[node]

    def _find(self, node: Node) -> Affine | None:
        if node in self.leaves:
            return Affine({node: None})
        if self.free(node):
            return Affine({}, {Write(p): None for p in self.outer(node)})
        if len(self.shapes) > 1 and node in self.corrections:  # one unknown, whatever it corrects
            return self._correction(node)
        return (self._chosen(node) if node.op == "where" else self._sum(node)) or self._correction(node)

    def _sum(self, node: Node) -> Affine | None:
        """A sum of values with such a form, or one times a factor entry by entry."""
        parts = None if node.op == "expand" else terms(node, self.free)
        if parts is None or (node.op in ("mul", "div") and set(parts[0][0].dims) != set(node.dims)) or (
                node.op == "mul" and not set(node.dims) <= self.dims):
            return None
        found = [(self.form(x), c) for x, c in parts]
        kept = [f if c is None else f.scaled(c) for f, c in found if f is not None]
        return functools.reduce(Affine.plus, kept) if len(kept) == len(found) else None

    def _chosen(self, node: Node) -> Affine | None:
        """where(c, x, y): the decays are chosen, the writes are those of both."""
        cond, *sides = node.args
        x, y = (self.form(s) if self.free(cond) else None for s in sides)
        if x is None or y is None:
            return None
        writes = Affine()
        for f, (_, one), c in zip((x, y), terms(node, self.free) or (), conditions(node), strict=True):
            for w, coef in f.writes.items():
                taken = self.only(c, w)
                if taken is None:
                    return None
                odd = coef is not None and self.risky(coef)
                weight = where(c, coef, 0.0) if c and coef and odd else maybe_mul(one, coef)
                writes = writes.plus(Affine({}, {taken: weight}))
        decays = dict(x.decays)
        for s in dict.fromkeys((*x.decays, *y.decays)):
            own, other = (number(0) if s not in f.decays else f.decays[s] or number(1) for f in (x, y))
            if own is not other:
                decays[s] = where(cond, own, other)
        return Affine(decays, writes.writes)

    def only(self, cond: Node | None, write: Write) -> Write | None:
        """A write that is a number also where cond does not hold; None: none such is an outer product."""
        factors, value = only(cond, write.factors, self.dims, self.risky), write.value
        value = value and self._only_value(cond, value)
        if factors is None or (write.value is not None and value is None):
            return None
        return write if factors == write.factors and value is write.value else Write(factors, value)

    def _only_value(self, cond: Node | None, value: ReadForm) -> ReadForm | None:
        def taken(x: Node | None) -> Node | None:
            return where(cond, x, 0.0) if cond is not None and x is not None and self.risky(x) else x
        found = ReadForm(taken(value.constant), {Read(r.node, taken(r.query), r.x): taken(c)
                                                 for r, c in value.coefs.items()})
        if cond is not None and found.coefs.keys() != value.coefs.keys() and {*cond.dims} & self.dims:
            return None  # a query for every entry along a dim of the condition
        same = found.constant is value.constant and found.coefs == value.coefs
        return value if same else found

    @functools.cached_property
    def _risks(self) -> Risks:
        return Risks.of(self.step)

    def risky(self, node: Node) -> bool:
        """Is it perhaps infinite, or no number?"""
        return any(self._risks[node])

    def endless(self, above: bool) -> bool:
        """Is there one state, which no write reads, that may be given -inf and never inf, as the log of a decay is?
        `above`: or any other infinite value, such as what a step size is multiplied with?"""
        found = self.form(self.nexts[0]) if len(self.states) == 1 else None
        if found is None or {*found.decays} != {*self.leaves} or any(w.value for w in found.writes):
            return False
        given = [bounds(x) for w, c in found.writes.items() for x in (*w.factors, *([] if c is None else [c]))]
        return any(x.infinite and (above or (x.low == -INF and x.high < INF)) for x in given)

    def _correction(self, node: Node) -> Affine | None:
        """Outer products one factor of which reads the state."""
        if not set(node.dims) <= self.dims:
            return None
        products = self._products(node)
        return None if products is None else Affine({}, dict.fromkeys(products))

    def _products(self, node: Node) -> list[Write] | None:
        """A value as a sum of outer products, each with a factor that may read the state."""
        if self.free(node):
            return [Write(p) for p in self.outer(node)]
        value = self.value(node)
        if value is not None and not any(self.summed(r) & set(node.dims) for r in value.coefs):
            self.corrections.add(node)
            return [Write((), value)]
        if node.op in ("sum", "contract"):
            return self._over_ranks(node)
        parts = terms(node, self.free)
        if parts is None or (node.op == "where" and len({*node.args[0].dims} & self.dims) > 1):
            return None
        found = []
        for (x, c), cond in zip(parts, conditions(node), strict=False):
            products = self._products(x)
            taken = [self.only(cond, w) for w in products or ()]
            if products is None or None in taken:
                return None
            found += [Write((*p, *w.factors), w.value) for p in ([()] if c is None else self.outer(c))
                      for w in taken if w is not None]
        return found

    def _over_ranks(self, node: Node) -> list[Write] | None:
        """A sum, over dims that the state has not, of outer products each with a factor that may read the state."""
        over = summed(node)
        if over & self.dims:
            return None
        inner, *others = sorted(node.args, key=self.free)
        products = self._products(inner) if not others or self.free(others[0]) else None
        found = []
        for w in products or ():
            for more in self.outer(others[0]) if others else [()]:
                factors, inside = (*more, *w.factors), w.value.dims & over if w.value else set()
                have = {d for f in factors for d in f.dims}
                if not inside <= have or {self.ranks[d] for d in over} & have:
                    return None
                factors = tuple(rename(f, **{d: self.ranks[d] for d in inside}) for f in factors)
                found.append(Write(over_ranks(factors, over - inside, self.dims, self.ranks), w.value))
        return None if products is None else found

    # ------------------------------------------------------------ values that read the state
    def value(self, node: Node) -> ReadForm | None:
        """A value as constant + sum coef * read, or None."""
        if node not in self.values:
            self.values[node] = ReadForm(node) if self.free(node) else self._value(node)
        return self.values[node]

    def _value(self, n: Node) -> ReadForm | None:
        if n in self.leaves and set(n.dims) < self.dims:  # read as it is: nothing is summed
            return ReadForm(None, {Read(n, None, n): None})
        if n.op in ("contract", "sum"):
            read = self.read(n)
            return self._contracted(n) if read is None else ReadForm(None, dict([self._apart(read)]))
        parts = terms(n, self.free)
        values = [self.value(x) for x, _ in parts or ()]
        found = [f and self._only_value(c, f) for f, c in zip(values, conditions(n), strict=False)]
        if parts is None or None in found:
            return None
        return functools.reduce(ReadForm.plus, [f.scaled(c) for f, (_, c) in zip(found, parts, strict=True) if f])

    def _apart(self, r: Read) -> tuple[Read, Node | None]:
        """A read without those factors of its query that differ along what it does not sum over alone, and these."""
        factors = [] if r.query is None else factors_of(r.query, self.dims) or [r.query]
        kept = [f for f in factors if self.dims & {*f.dims} and {*f.dims} <= {*r.node.dims}]
        return (Read(r.node, product(f for f in factors if f not in kept), r.x), product(kept)) if kept else (r, None)

    def summed(self, r: Read) -> set[str]:
        """The dims of the state over which a read sums."""
        return set(r.x.dims) - set(r.node.dims)

    @functools.cached_property
    def apart(self) -> frozenset[str]:
        """Dims along which the state is one state beside the other: those that make what is written outer products, of
        these the ones that no correction sums over, without which decays have fewest dims, and that fewest reads sum
        over; else all but two that no read sums over, or no correction where no decay has another."""
        forms = [self.form(n) or Affine() for n in self.nexts]
        writes = [w for f in forms for w in f.writes]
        decays = {d for f in forms for x in f.decays.values() if x is not None for d in x.dims} & self.dims
        found = apart([f for w in writes for f in w.factors], self.dims)
        reads = [r for n in self.reads if n.op in ("contract", "sum") and (r := self.read(n)) is not None]
        corrected = {d for w in self.in_order(writes) if w.value for r in w.value.coefs for d in self.summed(r)}
        if found == [frozenset()]:
            more = map(frozenset, itertools.combinations(self.order, max(len(self.dims) - 2, 0)))
            found = [a for a in more if not any(self.summed(r) & a for r in reads)
                     or (decays and decays <= a and not corrected & a)] or found
        place = self.order.index
        return min(found, key=lambda a: (len(corrected & a), len(decays - a),
                                         sum(len(self.summed(r) & a) for r in reads), sorted(map(place, a))),
                   default=frozenset())

    def in_order(self, writes: Iterable[Write]) -> list[Write]:
        """Those writes that read the state, and all such that their values see, each behind what it sees at its row."""
        found: list[Write] = []

        def visit(w: Write) -> None:
            if w in found or w.value is None:
                return
            for r in w.value.coefs:
                x = self.form(r.x)
                for other in x.writes if x is not None else ():
                    if other is not w:
                        visit(other)
            found.append(w)
        for w in writes:
            visit(w)
        return found

    def read(self, n: Node, known: bool = False) -> Read | None:
        """A contraction of a value that is affine in the state with one that is free, or a sum over its dims.

        known: with any value, such as what was read of the state: where what it reads is known for every row."""
        for i in sorted(range(len(n.args)), key=lambda i: -len(n.args[i].dims)):
            x, others = n.args[i], [a for j, a in enumerate(n.args) if j != i]
            if self.free(x) or not (known or all(map(self.free, others))):
                continue
            query = others[0] if others else None
            if self.form(x) is None and n.op == "sum" and x.op == "mul":  # a query with dims of its own
                for y, c in (x.args, x.args[::-1]):
                    if self.free(c) and self._holds(y):
                        return Read(n, c, y)
            while x.op == "mul" and n.op == "sum" and x not in self.versions:  # sum[K](q * S)
                y, c = x.args if self.free(x.args[1]) else x.args[::-1]
                if not self.free(c) or not self._holds(y):
                    break
                x, query = y, maybe_mul(query, c)
            if self._holds(x):
                return Read(n, query, x)
        return None

    @functools.cached_property
    def versions(self) -> set[Node]:
        """What the states are on the way to what they become: a read of one reads it as it then is."""
        found, left = set[Node](), list(self.nexts)
        while left:
            n = left.pop()
            if n not in found and not self.free(n) and set(n.dims) in self.shapes:
                found.add(n)
                left += [] if n.op in ("contract", "sum") else n.args
        return found

    def _holds(self, x: Node) -> bool:
        """Is it a state, decayed and written to?"""
        return set(x.dims) in self.shapes and (form := self.form(x)) is not None and (
            set(x.dims) == self.dims or bool(form.decays))

    def _contracted(self, n: Node) -> ReadForm | None:
        """sum over more dims of a value that reads the state: (y @ S) @ u is one read, with the query y * u."""
        a, *others = sorted(n.args, key=self.free)
        if self.free(a) or not all(map(self.free, others)):
            return None
        x, factor = self.value(a), others[0] if others else number(1)
        if x is None or any(self.summed(r) & {*n.dims, *factor.dims} for r in x.coefs):
            return None  # a dim that a read has summed over is there again: p @ (k @ S) along K is no read of K

        def summed(c: Node) -> Node:
            return contract(c, factor, n.dims)

        def query(r: Read, c: Node | None) -> Node:
            q = maybe_mul(r.query, c) or number(1)
            inside = dict.fromkeys((*q.dims, *factor.dims))
            return contract(q, factor, [d for d in inside if d in self.dims or d in n.dims])
        reads: dict[Read, Node | None] = {Read(n, query(r, c), r.x): None for r, c in x.coefs.items()}
        return ReadForm(None if x.constant is None else summed(x.constant), reads)
