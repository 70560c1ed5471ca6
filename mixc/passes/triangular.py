"""Systems of blocks that are strictly lower triangular over the rows of a chunk: z_i = b_i + sum_j N_ij z_j."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mixc.ir.build import contract, expand, make, maybe_add, maybe_mul, number, product, rename
from mixc.ir.node import COL, ROW, Node

Ranks = tuple[tuple[str, str, str], ...]  # of a dim that makes more rows its names among rows t, s and u


def eliminate(N: list[dict[int, Node]], b: list[Node | None], ranks: Ranks = ()) -> list[Node | None]:
    """z with z_i = b_i + sum_j N_ij z_j, N_ii and the products N_ij ... N_ki along any cycle being strictly lower.

    b of [_t, ...], or a matrix [_t, _s, ...]; None is 0.  Block elimination in the given order: no pivot differs
    from 1, and where every j in front of i is known without z_i there is nothing to solve.

    ranks: dims that make more rows of a token."""
    n = len(b)
    N = [dict(row) for row in N]
    b = list(b)
    across: list[dict[int, Node]] = []
    for i in range(n):
        own = N[i].pop(i, None)
        if own is not None:
            value = b[i]
            b[i] = None if value is None else _solve(own, value, ranks)
            N[i] = {j: _solve(own, x, ranks) if j > i else x for j, x in N[i].items()}
        across.append({j: x for j, x in N[i].items() if j > i})
        for k in range(i + 1, n):
            through = N[k].pop(i, None)
            if through is None:
                continue
            b[k] = maybe_add(b[k], apply(through, b[i], ranks))
            for j, x in across[i].items():
                more = follow(through, x, ranks)
                N[k][j] = N[k][j] + more if j in N[k] else more
    z: dict[int, Node | None] = {}
    for i in reversed(range(n)):
        z[i] = b[i]
        for j, x in across[i].items():
            z[i] = maybe_add(z[i], apply(x, z[j], ranks))
    return [z[i] for i in range(n)]


def _solve(own: Node, b: Node, ranks: Ranks) -> Node:
    """(1 - own)^-1 b; under a system for every column what was alike for all of them no longer is."""
    ranks = tuple(r for r in ranks if {*r} & {*own.dims})
    if (found := _under_decays(own, b, ranks)) is not None:
        return found
    columns = {COL, *(s for _, s, _ in ranks)}
    own = expand(own, [d for t, s, _ in ranks for d in (t, s)])
    b = expand(b, [d for d in own.dims if d not in columns])
    if not ranks:
        return make("solve", -own, b, transposed=False)
    return make("solve", -own, b, transposed=False, rows=ranks)


@dataclass(frozen=True)
class _Apart:
    """before: N[t, s, V] = b[t, V] A[t, s] E[t, s, V] r[s, V], E the decays exp(g) of rows between
    Its factors (None: 1)."""

    A: Node | None
    b: Node | None
    r: Node | None
    g: Node
    reach: str


def _apart(own: Node, rows: set[str], columns: set[str]) -> _Apart | None:
    """A matrix for every entry along some dims taken apart; None: it does not separate, or has no decays along them."""
    of: dict[str, list[Node]] = {"A": [], "b": [], "r": [], "decay": []}
    features = {*own.dims} - rows - columns
    stack = [own]
    while stack:
        n = stack.pop()
        if n.op in ("mul", "neg", "expand"):
            stack += n.args
            of["A"] += [number(-1)] if n.op == "neg" else []
        elif n.op == "exp" and n.args[0].op == "segsum" and features & {*n.dims}:
            of["decay"].append(n.args[0])
        elif not features & {*n.dims}:
            of["A"].append(n)
        elif not columns & {*n.dims} or not rows & {*n.dims}:
            of["b" if rows & {*n.dims} or not columns & {*n.dims} else "r"].append(n)
        else:
            return None
    if len(of["decay"]) != 1 or own.kind == "complex":
        return None
    decay, = of["decay"]
    return _Apart(product(of["A"]), product(of["b"]), product(of["r"]), decay.args[0], decay.attr("reach"))


def _under_decays(own: Node, y: Node, ranks: Ranks) -> Node | None:
    """(1 - N)^-1 y with matrices N that differ along a dim by decays and by factors of a row alone; no N is formed.

    With factors r of the rows that wrote, v = r u solves the same system with r b and r y, and u = y + b A E v."""
    rows, columns = {ROW, *(t for t, *_ in ranks)}, {COL, *(s for _, s, _ in ranks)}
    found = None if COL in y.dims else _apart(own, rows, columns)
    if found is None:
        return None
    A = expand(-(found.A or number(1)), (ROW, COL, *(d for t, s, _ in ranks for d in (t, s))))
    y = expand(y, [d for d in own.dims if d not in columns])
    more: dict[str, Any] = {"rows": ranks} if ranks else {}

    def solved(b: Node | None, y: Node) -> Node:
        return make("span_solve", A, b or number(1), y, found.g, reach=found.reach, transposed=False, **more)
    if found.r is None:
        return solved(found.b, y)
    here = rename(found.r, **{COL: ROW}, **{s: t for t, s, _ in ranks})
    v = rename(solved(maybe_mul(here, found.b), here * y), **{ROW: COL}, **{t: s for t, s, _ in ranks})
    return y - (found.b or number(1)) * make("span_contract", A, v, found.g, out=y.dims, reach=found.reach)


def apply(matrix: Node, z: Node | None, ranks: Ranks = ()) -> Node | None:
    """matrix[_t, _s] z[_s]."""
    if z is None:
        return None
    if COL in z.dims:
        return follow(matrix, z, ranks)
    columns = {t: s for t, s, _ in ranks}
    there = rename(z, **{ROW: COL}, **columns)
    return contract(matrix, there, dict.fromkeys((ROW, *(d for d in (*there.dims, *matrix.dims) if d not in (
        COL, *columns.values())))))


def follow(after: Node, before: Node, ranks: Ranks = ()) -> Node:
    """The product of two matrices [_t, _s]; other dims that they share stay."""
    after = rename(after, **{COL: "_u"}, **{s: u for _, s, u in ranks})
    before = rename(before, **{ROW: "_u"}, **{t: u for t, _, u in ranks})
    between = {"_u", *(u for *_, u in ranks)}
    return contract(after, before, dict.fromkeys((ROW, COL, *(
        d for d in (*after.dims, *before.dims) if d not in between))))
