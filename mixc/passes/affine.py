"""How a value depends on the state that the previous token left.

A state-valued node x is *direct affine* in S when

    x = decay * S_prev + sum_p coef_p * write_p

with a decay and coefs that do not read S and act element by element, and writes that are
products of factors without S.  `AffineForms` finds that by walking the Step's DAG, operation by
operation; where no rule keeps the form the node is a *read*, and whether a read may enter the
update decides the form of the state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from mixc.ir.build import is_number, maybe_add, maybe_mul, where
from mixc.ir.node import Node, depends, make, number
from mixc.ir.program import Decl


@dataclass(frozen=True, eq=False)
class Write:
    """An outer product added to the state: factors, each a value without the state. Compared by identity."""

    factors: tuple[Node, ...]

    def __repr__(self) -> str:
        return " * ".join(map(repr, self.factors))


@dataclass(frozen=True, eq=False)
class Affine:
    """decay * S_prev + sum coef * write; a decay or coef of None is 1, a decay of 0 is `number(0)`."""

    decay: Node | None
    writes: dict[Write, Node | None] = field(default_factory=dict)

    def scaled(self, c: Node) -> Affine:
        return Affine(maybe_mul(c, self.decay), {w: maybe_mul(c, e) for w, e in self.writes.items()})

    def plus(self, other: Affine) -> Affine:
        writes = dict(self.writes)
        for w, e in other.writes.items():
            writes[w] = _sum(writes[w], e) if w in writes else e
        return Affine(_sum(self.decay, other.decay), writes)


def _sum(a: Node | None, b: Node | None) -> Node | None:
    """a + b, None standing for 1."""
    if a is not None and is_number(a, 0.0):
        return b
    if b is not None and is_number(b, 0.0):
        return a
    return (a if a is not None else number(1)) + (b if b is not None else number(1))


class AffineForms:
    """The forms of all nodes that are direct affine in one state.

    Args:
        state: its declaration. roots: every value of the step, so that dependence is known.
    """

    def __init__(self, state: Decl, roots: list[Node]):
        self.state = state
        self.leaf = state.leaf()
        self.reads = depends(roots, [self.leaf])
        self.forms: dict[Node, Affine | None] = {}

    def free(self, node: Node) -> bool:
        return node not in self.reads

    def form(self, node: Node) -> Affine | None:
        """The affine form of a node with the state's dims, or None."""
        if node not in self.forms:
            self.forms[node] = self._find(node)
        return self.forms[node]

    def _find(self, node: Node) -> Affine | None:
        if node is self.leaf:
            return Affine(None)
        if self.free(node):
            return self._constant(node)
        if node.op == "where":
            return self._where(node)
        rule = _RULES.get(node.op)
        return rule(self, node) if rule else None

    def _constant(self, node: Node) -> Affine | None:
        products = outer_products(node, set(self.state.dims))
        return Affine(number(0), {Write(p): None for p in products})

    def _where(self, node: Node) -> Affine | None:
        cond, a, b = node.args
        if not self.free(cond):
            return None
        x, y = self.form(a), self.form(b)
        if x is None or y is None:
            return None
        yes, no = where(cond, 1.0, 0.0), where(cond, 0.0, 1.0)
        one, zero = number(1), number(0)
        kept = Affine(number(0), {**{w: maybe_mul(yes, e) for w, e in x.writes.items()},
                                  **{w: maybe_mul(no, e) for w, e in y.writes.items()}})
        decay = where(cond, x.decay or one, y.decay or one) if (x.decay or one) is not (y.decay or one) else x.decay
        return Affine(decay if decay is None or not is_number(decay, 0.0) else zero, kept.writes)


def _add(forms: AffineForms, n: Node) -> Affine | None:
    a, b = (forms.form(x) for x in n.args)
    return None if a is None or b is None else a.plus(b)


def _sub(forms: AffineForms, n: Node) -> Affine | None:
    a, b = (forms.form(x) for x in n.args)
    return None if a is None or b is None else a.plus(b.scaled(number(-1)))


def _neg(forms: AffineForms, n: Node) -> Affine | None:
    a = forms.form(n.args[0])
    return None if a is None else a.scaled(number(-1))


def _mul(forms: AffineForms, n: Node) -> Affine | None:
    for x, c in (n.args, n.args[::-1]):
        if forms.free(c) and set(c.dims) <= set(forms.state.dims):
            a = forms.form(x)
            return None if a is None else a.scaled(c)
    return None


def _div(forms: AffineForms, n: Node) -> Affine | None:
    x, c = n.args
    if not forms.free(c):
        return None
    a = forms.form(x)
    return None if a is None else a.scaled(1.0 / c)


_RULES: dict[str, Callable[[AffineForms, Node], Affine | None]] = {
    "add": _add, "sub": _sub, "neg": _neg, "mul": _mul, "div": _div,
}


def outer_products(node: Node, dims: set[str]) -> list[tuple[Node, ...]]:
    """A state-free value as a sum of products: `b * (k * v - u * w)` is b k v + (-b) u w.

    Sums are opened only where that separates dims of the state; a value of one dim stays whole."""
    if len(set(node.dims) & dims) <= 1 and node.op != "expand":
        return [] if is_number(node, 0.0) else [(node,)]
    a = node.args
    if node.op == "add":
        return outer_products(a[0], dims) + outer_products(a[1], dims)
    if node.op == "sub":
        return outer_products(a[0], dims) + [(number(-1), *p) for p in outer_products(a[1], dims)]
    if node.op == "neg":
        return [(number(-1), *p) for p in outer_products(a[0], dims)]
    if node.op == "mul":
        return [(*p, *q) for p in outer_products(a[0], dims) for q in outer_products(a[1], dims)]
    if node.op == "div":
        return [(*p, 1.0 / a[1]) for p in outer_products(a[0], dims)]
    if node.op == "expand":
        return outer_products(a[0], dims)
    if node.op == "where" and not set(a[0].dims) & dims:
        return ([(make("to_number", a[0]), *p) for p in outer_products(a[1], dims)]
                + [(make("to_number", make("not", a[0])), *p) for p in outer_products(a[2], dims)])
    return [(node,)]


__all__ = ["Affine", "AffineForms", "Write", "maybe_add", "outer_products"]
