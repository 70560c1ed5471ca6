"""Step -> Cell: a step that runs token by token, with time, heads and sequences as named axes.

before: h = tanh(x + R @ h)                           one token, heads and batch implied
after:  h' [_t, _h, _n, D] = tanh(x + R[_h] @ h)      all tokens, h being what the token before left

A state's leaf has a row a token.  What does not read it is formed for all tokens at once; what only results read, too,
once the loop has left every row; the loop itself does what the next state needs.  The backward is the same program's
adjoint: gradients of params are sums over `_t` and `_n`, so products over all tokens.
"""

from __future__ import annotations

from dataclasses import replace

from mixc.ir.build import contract, expand
from mixc.ir.node import ROW, Node, depends, fold
from mixc.ir.program import Program

HEADS, SEQUENCES = "_h", "_n"
AXES = (ROW, HEADS, SEQUENCES)


def cell(step: Program, axes: tuple[str, ...] = AXES) -> Program:
    """The step over all tokens; its declarations name all axes of their tensors (level "cell").

    `axes`: of what differs from token to token (a kernel's rows are sequences at one token of one head: one axis)."""
    lead = {"in": axes, "state": axes, "out": axes, "param": tuple(a for a in axes if a == HEADS), "const": ()}
    decls = tuple(replace(d, dims=(*lead[d.role], *d.dims)) for d in step.decls)
    leaves = {d.leaf(): wide.leaf() for d, wide in zip(step.decls, decls, strict=True) if d.role != "out"}

    def wide(n: Node, args: list[Node]) -> Node:
        if n.op == "contract" or (n.op == "sum" and _is_product(args[0], n.attr("over"))):
            a, b = args if n.op == "contract" else args[0].args
            return contract(a, b, (*(d for d in AXES if d in a.dims or d in b.dims), *n.dims))
        return n.on(*args) if args else n
    by_name = {(d.role, d.name): d for d in decls}
    values = [expand(x, by_name["out" if r.role == "out" else "state", r.name].dims)
              for x, r in zip(fold(step.values(), wide, leaves), step.results, strict=True)]
    return step.with_values(values, level="cell", decls=decls)


def _is_product(x: Node, over: tuple[str, ...]) -> bool:
    """Is a sum over it, as `sum[V](X * X[J, V])`, a contraction of two factors whose dims differ?"""
    if x.op != "mul":
        return False
    a, b = ({*f.dims} for f in x.args)
    return a != b and {*over} <= a & b


def sums_of_products(program: Program) -> Program:
    """sum(a * b) = contract(a, b), where it sums over several dims or a and b have not the same: a product of matrices
    forms no a * b."""
    def rule(n: Node) -> Node | None:
        if n.op != "sum" or n.args[0].op != "mul" or n.kind != "real":
            return None
        a, b = n.args[0].args
        over = {*n.attr("over")}
        if not over <= {*a.dims} & {*b.dims} or (len(over) < 2 and {*a.dims} == {*b.dims}):
            return None
        return contract(a, b, n.dims)
    return program.with_values(fold(program.values(), lambda n, args: rule(n := n.on(*args)) or n))


def products_outside(program: Program, carried: list[Node]) -> Program:
    """(c * x) * y = c * (x * y), where only c is formed in the loop: x * y is formed before it, unless it has dims that
    x lacks and dims that y lacks: a matrix for every token."""
    inside = depends(program.values(), carried)

    def outer(x: Node, y: Node) -> bool:
        of_x, of_y = ({*n.dims} - {*AXES} for n in (x, y))
        return not (of_x <= of_y or of_y <= of_x)

    def regrouped(n: Node, args: list[Node]) -> Node:
        new = n.on(*args)
        if n in inside:
            inside.add(new)
        for loop, y in (new.args, new.args[::-1]) if new.op == "mul" else ():
            if loop.op == "mul" and loop in inside and y not in inside:
                c, x = loop.args if loop.args[1] not in inside else loop.args[::-1]
                if x not in inside and c in inside and not outer(x, y):
                    inside.add(c * (x * y))
                    return c * (x * y)
        return new
    return program.with_values(fold(program.values(), regrouped))
