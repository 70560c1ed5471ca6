"""Step -> what stands around its loop: products with params that need not be formed where the state is, and sums over a
dim along which states lie beside each other, each a program's own.

before: x = a * x + B @ u;  out y[D] = C @ x + skip * u
after:  in front   B_u = B @ u                       of all tokens, read as an in
        the step   x = a * x + B_u;  out x_read = x
        behind     y = C @ x_read + skip * u         of all tokens

before: p = softmax[N](r);  S[N, K, V] = S + p * k * (v - k @ S);  out o[V] = p @ (q @ S)
after:  in front   softmax_r = softmax[N](r)
        the step   S = S + softmax_r * k * (v - k @ S);  out S_read[N, V] = q @ S      no entry of N needs another
        behind     o = p @ S_read

A matrix of a head that a kernel holds takes registers from the state, and its gradient is a sum that every sequence has
for itself.  A product over all tokens is one matrix product, and so is the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial

from mixc.ir.build import contract, product
from mixc.ir.launch import sums_over
from mixc.ir.node import Node, bare, depends, first_below, make, postorder, source, substitute
from mixc.ir.program import Decl, Program, Result, free
from mixc.ir.ranges import proving
from mixc.passes.classify import classify, of_complex
from mixc.passes.context import proved
from mixc.passes.outer import summed
from mixc.passes.planes import Split, part_names, planes
from mixc.passes.simplify import rewrite

SMALL = 256  # entries of a matrix, its dims padded to 16, that is nothing to hold: where the spec fixes its sizes


@dataclass(frozen=True, eq=False)
class Around:
    """A step and what is left of it.

    Attributes:
        step: the whole. program: the rest, which needs the states.
        front: by name of an in that `program` has and the step has not: the step's value that it holds.
        read: by name of an out of `program` that is read behind: the step's value that it is.
        sizes: by name of a const of `program`: the dim whose size it is, which no tensor of `program` has.
        behind: by name of an out that the step has and `program` has not: its value.
    """

    step: Program
    program: Program
    front: dict[str, Node]
    read: dict[str, Node]
    sizes: dict[str, str]
    behind: dict[str, Node]


def around(step: Program, avoid: Iterable[str] = (), beside: frozenset[str] = frozenset()) -> Around | None:
    """Of a step of real values, perhaps planes, without lags and positions; None: all of it stands with the states.

    avoid: names that the rest shall not have, beside those of the step. beside: dims over which nothing of the rest
    shall sum."""
    whole = step.origin if step.origin is not None and of_complex(step.origin) is not None else None
    found = _Division(whole or step, beside)
    if not step.states or not (found.front or found.behind):
        return None
    made = _divided(found, found.step.names.union(avoid))
    return made if whole is None or made is None else _of_planes(step, made)


def _of_planes(step: Program, found: Around) -> Around | None:
    """The same of the step's planes, where its complex states are found as they stand: what turns them is known."""
    split, program = Split(found.step), planes(found.program)
    assert program is not None
    made = []
    for of, values in ((found.program, found.front), (found.program, found.read), (found.step, found.behind)):
        parts = {n: part_names(of, n) if x.kind == "complex" else (n,) for n, x in values.items()}
        made.append({p: x for n, names in parts.items() for p, x in zip(names, split(values[n]), strict=False)})
    front, read, behind = ({n: x for n, x in values.items() if x is not None} for values in made)
    if [len(values) for values in made] != [len(front), len(read), len(behind)]:
        return None  # a plane that is 0
    return Around(step, program, front, read, found.sizes, behind)


def projection(n: Node) -> tuple[Node, Node] | None:
    """(x, W) of a product W @ x that sums over dims of a matrix of params; W brings dims of its own."""
    if n.op == "contract":
        for x, w in (n.args, n.args[::-1]):
            if {*w.dims} - {*x.dims} and not any(a.op in ("in", "state") for a in postorder([w])) \
                    and any(a.op == "param" for a in postorder([w])):
                return x, w
    return None


def sum_as_product(n: Node) -> Node | None:
    """sum over d of x[d] * W[n, d] is a product"""
    if n.op != "sum" or n.args[0].op != "mul":
        return None
    a, b = n.args[0].args
    found = contract(a, b, n.dims) if {*n.attr("over")} <= {*a.dims} & {*b.dims} else None
    return found if found is not None and projection(found) else None


def _sums_apart(beside: frozenset[str], n: Node) -> Node | None:
    """(p[N] * q[K]) @ S[N, K, V] is p @ (q @ S): a read of each state that lies beside others, summed behind"""
    over = summed(n) if n.op in ("contract", "sum") else set()
    if not over & beside or over <= beside:
        return None
    factors = [f for a in n.args for f in _factors(a)]
    inside = [f for f in factors if {*f.dims} & over - beside]
    x = product(f for f in inside if not {*f.dims} & beside)
    of_each = [f for f in inside if {*f.dims} & beside]
    if len(of_each) != 1 or len(inside) == len(factors) or x is None:
        return None
    p = product(f for f in factors if f not in inside)
    assert p is not None
    out = [d for d in dict.fromkeys((*of_each[0].dims, *x.dims)) if d not in over - beside]
    read = contract(x, of_each[0], out)
    return contract(p, read, n.dims)


def _factors(x: Node) -> list[Node]:
    return [f for a in x.args for f in _factors(a)] if x.op == "mul" else [x]


class _Division:
    """What stands where.

    Attributes:
        front: values that are formed of all tokens before the states are.
        behind: outs that read the states through a product which no state reads; `read`: what they read of the states.
        roots: what is formed with the states."""

    def __init__(self, step: Program, beside: frozenset[str] = frozenset()):
        self.beside = beside
        with proving(step):
            rules = (sum_as_product, partial(_sums_apart, beside))
            self.step = step = step.with_values(rewrite(step.values(), rules), origin=step.origin)
        values = step.values()
        self.stateful, self.tokens = (depends(values, [d.leaf() for d in of]) for of in (step.states, step.ins))
        self.fixed = step.fixed
        self.outs = {d.name: step.result("out", d.name) for d in step.outs}
        needed = set(postorder(step.values("next")))
        late = [n for n in postorder(self.outs.values()) if n not in needed and (
            (self._worth(n) and (projection(n) or (n,))[0] in self.stateful) or self._of_params(n))]
        above = depends(self.outs.values(), late)

        def cut(roots: Iterable[Node]) -> list[Node]:
            found = first_below(roots, lambda n: n in self.stateful and n not in above)
            return [*dict.fromkeys(map(source, found))]
        self.behind = {name: v for name, v in self.outs.items() if v in above and all(map(self._handed, cut([v])))}
        self.read = cut(self.behind.values())
        self.roots = [*step.values("next"), *(v for n, v in self.outs.items() if n not in self.behind), *self.read]
        self.front = first_below(self.roots, lambda n: n not in self.stateful and self._worth(n))

    def _worth(self, n: Node) -> bool:
        """Is it formed over all tokens?  So is what multiplies a value of every token with a matrix of params, unless
        the spec says that this is as small as a tile of a tensor core, and what needs more than one state of some that
        lie beside each other."""
        found = projection(n)
        if n in self.tokens | self.stateful and any(sums_over(n, d) for d in self.beside):
            return True
        if found is None or found[0] not in self.tokens | self.stateful:
            return False
        sizes = [self.fixed.get(d, math.inf) for d in found[1].dims]
        return math.prod(max(16, s) for s in sizes) > SMALL

    def _of_params(self, n: Node) -> bool:
        """Is it the same for every token, and needs more than one state of some that lie beside each other?"""
        return n not in self.tokens | self.stateful and any(sums_over(n, d) for d in self.beside)

    def _handed(self, n: Node) -> bool:
        """Can it be handed on, a row a token?  So can numbers that are no whole matrix of a state."""
        whole = any(len(s.dims) > 1 and {*s.dims} <= {*n.dims} for s in self.step.states)
        return not whole and n.kind != "bool"

    def hosted(self) -> list[Node]:
        """What is formed in front and behind, arguments first."""
        return [n for n in postorder([*self.front, *self.behind.values()], {*self.read}) if n not in self.read]


class _Rounding:
    """Which of the values that are handed on may be rounded as the inputs are: operands of products."""

    def __init__(self, of: _Division):
        self.of = of
        self.chunks = all(g.form == "chunk" for g in classify(of.step).groups)
        self.elsewhere = {*of.roots, *(a for n in of.hosted() for a in n.args)}
        self.users: dict[Node, list[Node]] = {}  # by value: what reads it in the rest
        for n in postorder(of.roots, {*of.front}):
            for a in n.args:
                self.users.setdefault(a, []).append(n)

    def in_front(self, n: Node) -> bool:
        """Is it read by products alone, perhaps times other values?  What is written to states of form chunk is an
        operand of products of rows."""
        if not self.chunks or n in self.elsewhere:
            return False
        for u in self.users.get(n, ()):
            own = [{*a.dims} - {*b.dims} for a, b in (u.args, u.args[::-1])] if u.op == "mul" else []
            if u.op != "contract" and not (own and all(own)) and not (
                    u.op in ("mul", "neg", "rename") and self.in_front(u)):
                return False
        return True

    def behind(self) -> set[Node]:
        """Of what is read behind: that which products alone read."""
        read = {*self.of.read}
        for n in postorder(self.of.behind.values(), {*read}):
            found = projection(n)
            read -= {bare(a) for a in n.args if n.op != "rename" and not (found and a is found[0])}
        return read


def _divided(of: _Division, taken: set[str]) -> Around | None:
    """The rest of a step, under names that are not taken; None: no tensor tells a size that is read there."""
    step, rounding = of.step, _Rounding(of)
    with proving(step):
        given = {n: Decl("in", free(_name_of(n), taken), n.dims, n.kind, proved(step, n), span=n.span,
                         exact=not rounding.in_front(n)) for n in of.front}
    kept = {n: v for n, v in of.outs.items() if n not in of.behind}
    found, rounded, leaves = {v: n for n, v in kept.items()}, rounding.behind(), {d.leaf(): d.name for d in step.states}
    read: dict[str, Node] = {}
    outs = []
    for n in of.read:
        name = found.get(n) if n in rounded else None
        if name is None:
            name = free(f"{next(leaves[x] for x in postorder([n]) if x in leaves)}_read", taken)
            outs.append(Decl("out", name, n.dims, span=n.span, exact=n not in rounded))
        read[name] = n
    results = [Result("out", n, v) for n, v in (kept | read).items()]
    results += [r for r in step.results if r.role == "next"]
    values = substitute([r.value for r in results], {n: d.leaf() for n, d in given.items()})
    # ins and params that nobody reads stay, with a gradient of 0
    here, hosted = ({n.attr("name") for n in nodes if n.op in ("in", "param")} for nodes in (
        postorder([*values, *step.inits]), of.hosted()))
    ins, params = ([d for d in ds if d.name in here or d.name not in hosted] for ds in (step.ins, step.params))
    ins = [*ins, *given.values()] or [*step.ins[:1]]  # whose tokens are counted
    told = step.told((*ins, *params))
    if {d for n in postorder(values) for d in n.dims} - told:
        return None
    untold = [n for n in postorder(values) if n.op == "size" and n.attr("dim") not in told]
    sizes = {free(f"size_{n.attr('dim')}", taken): n for n in untold}
    values = substitute(values, {n: make("const", name=name) for name, n in sizes.items()})
    consts = [Decl("const", name, init=make("number", value=0.0)) for name in sizes]
    decls = (*ins, *params, *step.consts, *consts, *step.states, *(d for d in step.outs if d.name in kept), *outs)
    program = step.part(step.name, decls, [replace(r, value=v) for r, v in zip(results, values, strict=True)])
    return Around(step, program, {d.name: n for n, d in given.items()}, read, {
        name: str(n.attr("dim")) for name, n in sizes.items()}, of.behind)


def _name_of(n: Node) -> str:
    """What the product is called: W_x, after what it multiplies; another value after what it is of."""
    def names(x: Node, op: str) -> str:
        return "_".join(dict.fromkeys(a.attr("name") for a in postorder([x]) if a.op == op))
    x, w = projection(n) or (n, None)
    return f"{n.op if w is None else names(source(w), 'param')}_{names(x, 'in')}"
