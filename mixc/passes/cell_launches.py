"""Cell -> Kernels: one launch forward over all tokens, one backward, and products over all tokens for the weights.

before: h' = tanh(x + R @ h)                     one token
after:  forward   rows _t are sequences, all at the same token; stores o and what the backward reads of the states
        backward  from the last token to the first: dx, carrying dh; gates are formed again from the state before
        products  dR = sum over tokens of dx h^T      the launch that carries dh has no room for them
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import reduce

from mixc.ir.build import number, where
from mixc.ir.launch import Carry, Launch, Product, Store, splittable
from mixc.ir.node import ROW, Node, bare, fold, make, postorder, unrenamed
from mixc.ir.program import Decl, Program
from mixc.ir.ranges import proving
from mixc.passes.cell import cell
from mixc.passes.differentiate import cotangent_of_state, differentiate
from mixc.passes.partition import in_full
from mixc.passes.simplify import simplify


@dataclass(frozen=True)
class CellLaunches:
    """`kept`: the tensor in which the rows of each state after every token are found, by the state's name; `exact`:
    states kept in fp32."""

    forward: Launch
    backward: Launch
    kept: dict[str, str]
    exact: frozenset[str]
    products: tuple[Product, ...]


def cell_launches(step: Program) -> CellLaunches:
    """Of a step without lags, positions and complex values."""
    lifted = cell(step, (ROW,))
    with proving(lifted):
        fwd = simplify(lifted, drop_live=True)
        bwd = simplify(differentiate(fwd), drop_live=True)
    leaves = {d.name: d.leaf() for d in fwd.states}
    carries = tuple(Carry("d" + s.name, cotangent_of_state(s.name, (ROW, *s.dims)), bwd.result("next", s.name), s.dims)
                    for s in step.states)
    stores = [Store("rows", "d" + d.name, finite_gradient(bwd, d, wide), d.dims, "grad")
              for d, wide in zip(step.ins, fwd.ins, strict=True) if not d.table]
    products = list[Product]()
    for d in step.params:
        rest = list[Node]()
        for term in _terms(bwd.result("sum", d.name)):
            found = _product(d.name, d.dims, term, stores, leaves)
            if found is None:
                rest.append(_of_live_rows(term))
            else:
                products.append(found)
        if rest:
            stores.append(Store("partial", "d" + d.name, reduce(Node.__add__, rest), d.dims, "sum"))
    read = set(postorder([*(c.next for c in carries), *(s.value for s in stores)])) | {
        leaves[p.right] for p in products if p.before}
    starts = tuple(n for n, leaf in leaves.items() if leaf in read)
    back = Launch(f"{step.name}_bwd", replace(bwd, decls=step.decls), "cells", True, carries, tuple(stores), starts)
    exact = in_full(fwd)
    kept = {s: _kept_in(fwd, step.decl(s), s in exact, step.outs) for s in starts}
    products = [replace(p, right=kept[p.right]) if p.before else p for p in products]
    return CellLaunches(_split(_forward(step, fwd, kept)), _split(back), kept, exact, tuple(products))


def _forward(step: Program, fwd: Program, kept: dict[str, str]) -> Launch:
    stores = [Store("rows", o.name, fwd.result("out", o.name), o.dims, "out") for o in step.outs]
    stores += [Store("rows", k, fwd.result("next", s), step.decl(s).dims, "save")
               for s, k in kept.items() if k == f"{s}_rows"]
    carries = tuple(Carry(s.name, wide.leaf(), fwd.result("next", s.name), s.dims)
                    for s, wide in zip(step.states, fwd.states, strict=True))
    fwd = replace(fwd, decls=step.decls)
    return Launch(f"{step.name}_fwd", fwd, "cells", False, carries, tuple(stores), keeps=tuple(kept))


def finite_gradient(bwd: Program, d: Decl, wide: Decl) -> Node:
    """Of an input: 0 where it is infinite at the open end of its range."""
    grad = bwd.result("grad", d.name)
    if d.open_ended:
        grad = where(make("eq", make("abs", wide.leaf()), number(math.inf)), 0.0, grad)
    return grad


def _kept_in(fwd: Program, state: Decl, exact: bool, outs: tuple[Decl, ...]) -> str:
    """The tensor in which the rows of a state are found: an out that is the state, or one of their own."""
    after = fwd.result("next", state.name)
    same = [o.name for o in outs if fwd.result("out", o.name) is after and o.dims == state.dims]
    return same[0] if same and not exact else f"{state.name}_rows"


def _split(launch: Launch) -> Launch:
    """Programs may divide a dim that nothing sums over; where a param lacks it, its gradient sums over it."""
    dims = [d.name for d in launch.program.dims]
    return replace(launch, split=splittable(launch.nodes(), dims))


def _terms(value: Node) -> list[Node]:
    if value.op == "add" and all(set(a.dims) == set(value.dims) for a in value.args):
        return [t for a in value.args for t in _terms(a)]
    return [value]


def _product(param: str, dims: tuple[str, ...], term: Node, stores: list[Store],
             leaves: dict[str, Node]) -> Product | None:
    """The term as a product over tokens, whose operands are stored, if it is one."""
    term, outer = unrenamed(term)
    if term.op != "contract" or len(dims) != 2 or not all(len(a.dims) == 2 and ROW in a.dims for a in term.args):
        return None
    a, b = term.args
    if bare(a) in leaves.values():
        a, b = b, a
    (x,) = (d for d in a.dims if d != ROW)
    before = next((n for n, leaf in leaves.items() if leaf is bare(b)), None)
    left = _stored(a, f"{param}_left", stores)
    right = before if before is not None else _stored(b, f"{param}_right", stores)
    return Product(param, left, right, before is not None, outer[x] != dims[0])


def _stored(n: Node, name: str, stores: list[Store]) -> str:
    """The tensor of rows that holds a value: one that is stored anyway, else a new one."""
    value = bare(n)
    for s in stores:
        if s.kind == "rows" and s.value is value:
            return s.name
    taken = {s.name for s in stores}
    while name in taken:
        name += "_"
    stores.append(Store("rows", name, value, tuple(d for d in value.dims if d != ROW), "save"))
    return name


def _of_live_rows(value: Node) -> Node:
    """What is summed over rows is 0 where the row's sequence has ended."""
    def of(n: Node, args: list[Node]) -> Node:
        return n.on(*(make("live", a, fill=0.0) if ROW in a.dims and ROW not in n.dims else a for a in args))
    return fold([value], of)[0]
