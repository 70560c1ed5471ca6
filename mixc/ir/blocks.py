"""Two or three states that drive each other, entry by entry: a scan over small matrices.

    h[t] = A[t] h[t-1] + b[t]        h of n components, A[t] an n x n matrix for every entry

One node holds all components along the axis `_i`, the first; `component` takes one.  The adjoint is the same scan
backwards with the transposed matrix of the row behind, and no matrix is ever inverted.
"""

from __future__ import annotations

import torch

from mixc.ir.node import ROW, Node, is_number, make, number
from mixc.ir.scans import addends, at_edge, previous, split_edge, total_of

Tensor = torch.Tensor
PART = "_i"


def block_scan(A: list[list[Node]], b: list[Node], start: list[Node], dims: tuple[str, ...], reverse: bool = False
               ) -> Node:
    """[_i, _t, dims...]: all components after every row."""
    return make("scan_block", *[a for row in A for a in row], *b, *start, n=len(b), dims=dims, reverse=reverse)


def component(block: Node, i: int) -> Node:
    return make("pick", block, dim=PART, i=i)


def parts(block: Node) -> tuple[list[list[Node]], list[Node], list[Node]]:
    """A, b and the start of a block."""
    n = block.attr("n")
    flat = block.args[:n * n]
    return [list(flat[i * n:(i + 1) * n]) for i in range(n)], list(block.args[n * n:n * n + n]), list(block.args[-n:])


def adjoint(block: Node, c: Node) -> tuple[Node, ...]:
    """Cotangents of A, b and the start."""
    from mixc.ir.build import expand

    A, b, start = parts(block)
    n, back, dims = len(b), block.attr("reverse"), block.attr("dims")
    cots = _by_component(c, n)
    rows, behind = zip(*[split_edge(x, 0 if back else -1) for x in cots], strict=True)

    def later(i: int, j: int) -> Node:
        a, one = A[j][i], number(float(i == j))
        return a if is_number(a, 0.0) and i != j else previous(expand(a, (ROW,)), one, not back)
    d_block = block_scan([[later(i, j) for j in range(n)] for i in range(n)], list(rows), list(behind), dims, not back)
    d = [component(d_block, i) for i in range(n)]
    before = [previous(component(block, j), start[j], back) for j in range(n)]
    dA = [d[i] * before[j] for i in range(n) for j in range(n)]
    first = [total_of([at_edge(A[i][j], back) * at_edge(d[i], back) for i in range(n)]) for j in range(n)]
    return (*dA, *d, *first)


def _by_component(c: Node, n: int) -> list[Node]:
    """A sum of cotangents, each of one component."""
    found: list[list[Node]] = [[] for _ in range(n)]
    for x in addends(c):
        assert x.op == "place" and x.attr("dim") == PART, x
        found[x.attr("i")].append(x.args[0])
    return [total_of(xs) for xs in found]


def run_block(A: list[list[Tensor]], b: list[Tensor], start: list[Tensor], axis: int, reverse: bool) -> list[Tensor]:
    """Every component after every row: tensors like b."""
    rows = [[a.unbind(axis) for a in (*row, x)] for row, x in zip(A, b, strict=True)]
    h, found = start, list[list[Tensor]]()
    for t in range(b[0].shape[axis])[::-1 if reverse else 1]:
        h = [sum((a[t] * x for a, x in zip(row, h, strict=True)), added[t]) for *row, added in rows]
        found.append(h)
    return [torch.stack(xs[::-1 if reverse else 1], axis) for xs in zip(*found, strict=True)]
