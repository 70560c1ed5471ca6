"""Values of all tokens of a span, behind and before its loop: written to memory that was used before.

    a * b, large          to a tensor that an earlier span has left (fresh memory costs a page fault every 4 KB)
    S @ v, of each token  v^T S^T, a row in front: a column behind a matrix takes eight times as long
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from mixc.codegen.torch_ops import call_of
from mixc.codegen.torch_prelude import select
from mixc.ir.evaluate import Env, Rule, align, compute
from mixc.ir.node import ROW, Node
from mixc.ir.ops import OPS
from mixc.passes.cell import AXES, HEADS, SEQUENCES
from mixc.runtime import memory

Tensor = torch.Tensor


def _elementwise(n: Node, args: list[Tensor], env: Env) -> Tensor:
    wide = [align(x, a.dims, n.dims, env.batch) for x, a in zip(args, n.args, strict=True)]
    shape = list(map(max, zip(*(x.shape for x in wide), strict=True)))  # torch.broadcast_shapes takes 50 times as long
    if n.kind != "real" or math.prod(shape) * env.dtype.itemsize < memory.LEAST or any(
            x.dtype not in (env.dtype, torch.bool) for x in wide):
        return compute(n, args, env, plain=True)
    return _CALLS[n.op](*wide, out=memory.empty(shape, env.dtype, env.device))


def _contract(n: Node, args: list[Tensor], env: Env) -> Tensor:
    for (x, a), (y, b) in (z := list(zip(args, n.args, strict=True)), z[::-1]):
        of_a, of_b, kept = ({*d.dims} - {*AXES} for d in (a, b, n))
        if {*AXES} <= {*a.dims} & {*b.dims} & {*n.dims} and len(of_a) == 1 and of_a < of_b and kept == of_b - of_a \
                and len(kept) == 1:
            rows = align(x, a.dims, (*AXES, *of_a), env.batch).unsqueeze(-2)
            found = torch.matmul(rows, align(y, b.dims, (*AXES, *of_a, *kept), env.batch)).squeeze(-2)
            return align(found, (*AXES, *kept), n.dims, env.batch)
    return _summed(n, args, env)


def _summed(n: Node, args: list[Tensor], env: Env) -> Tensor:
    """A sum over all tokens of products of matrices, smaller than what they are formed of: a product for each, then
    their sum (as one product, its operands would be put in another order first)."""
    a, b = (x.dims for x in n.args)
    sides = [tuple(d for d in n.dims if d in of and d not in AXES) for of in (a, b)]
    over = tuple(d for d in a if d in b and d not in n.dims and d not in AXES)
    over_tokens = {*AXES} <= {*a} & {*b} and n.dims[:1] == (HEADS,) and not {*n.dims} & {ROW, SEQUENCES}
    if not over_tokens or [*map(len, (*sides, over))] != [1, 1, 1] or sides[0] == sides[1] or min(
            env.sizes[d] for (d,) in sides) >= env.sizes[over[0]]:
        return compute(n, args, env, plain=True)
    left = align(args[0], a, (*AXES, *sides[0], *over), env.batch)
    right = align(args[1], b, (*AXES, *over, *sides[1]), env.batch)
    found = torch.matmul(left, right).sum((AXES.index(ROW), AXES.index(SEQUENCES)))
    return align(found, (HEADS, *sides[0], *sides[1]), n.dims, env.batch)


_CALLS: dict[str, Callable[..., Tensor]] = {
    op: getattr(torch, name.removeprefix("torch.")) for op, row in OPS.items()
    if row.elementwise and op != "sign" and (name := call_of(op)) is not None} | {"where": select}
RULES: dict[str, Rule] = {**dict.fromkeys(_CALLS, _elementwise), "contract": _contract}
