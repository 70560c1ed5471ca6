"""Systems of blocks that are strictly lower triangular over the rows of a chunk: z_i = b_i + sum_j N_ij z_j."""

from __future__ import annotations

from mixc.ir.build import at_col, contract, expand, make, maybe_add, rename
from mixc.ir.node import COL, ROW, Node


def eliminate(N: list[dict[int, Node]], b: list[Node | None]) -> list[Node | None]:
    """z with z_i = b_i + sum_j N_ij z_j, N_ii and the products N_ij ... N_ki along any cycle being strictly lower.

    b of [_t, ...], or a matrix [_t, _s, ...]; None is 0.  Block elimination in the given order: no pivot differs
    from 1, and where every j in front of i is known without z_i there is nothing to solve."""
    n = len(b)
    N = [dict(row) for row in N]
    b = list(b)
    across: list[dict[int, Node]] = []
    for i in range(n):
        own = N[i].pop(i, None)
        if own is not None:
            value = b[i]
            b[i] = None if value is None else _solve(own, value)
            N[i] = {j: _solve(own, x) if j > i else x for j, x in N[i].items()}
        across.append({j: x for j, x in N[i].items() if j > i})
        for k in range(i + 1, n):
            through = N[k].pop(i, None)
            if through is None:
                continue
            b[k] = maybe_add(b[k], apply(through, b[i]))
            for j, x in across[i].items():
                more = follow(through, x)
                N[k][j] = N[k][j] + more if j in N[k] else more
    z: dict[int, Node | None] = {}
    for i in reversed(range(n)):
        z[i] = b[i]
        for j, x in across[i].items():
            z[i] = maybe_add(z[i], apply(x, z[j]))
    return [z[i] for i in range(n)]


def _solve(own: Node, b: Node) -> Node:
    """(1 - own)^-1 b; under a system for every column what was alike for all of them no longer is."""
    return make("solve", -own, expand(b, [d for d in own.dims if d != COL]), transposed=False)


def apply(matrix: Node, z: Node | None) -> Node | None:
    """matrix[_t, _s] z[_s]."""
    if z is None:
        return None
    return follow(matrix, z) if COL in z.dims else contract(matrix, at_col(z), dict.fromkeys((*z.dims, *(
        d for d in matrix.dims if d not in (ROW, COL)))))


def follow(after: Node, before: Node) -> Node:
    """The product of two matrices [_t, _s]; other dims that they share stay."""
    dims = dict.fromkeys((ROW, COL, *after.dims, *before.dims))  # those of columns too
    return contract(rename(after, **{COL: "_u"}), rename(before, **{ROW: "_u"}), dims)
