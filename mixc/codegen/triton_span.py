"""Products under vector decays, and triangular systems, as Triton: calls of functions that a module brings along.

    P = span_pair(q, k, g, rows, "strict", ...)        sum over D of q[t] k[s] exp(g[s+1] + ... + g[t])
    O = span_apply(P, v, g, rows, ...)                 the same decays, along the dim that is kept
    X = unit_inverse(L, rows, ...)                     (I + L)^-1
    u = span_solve(A, b, y, g, rows, "strict", ...)    u[t] + b[t] * sum over s of A[t, s] exp(g[s+1] + ... + g[t]) u[s] = y[t]

Blocks of 2h rows are cut in the middle, for h = 1, 2, 4, ...: what lies between a row of the later and one of the
earlier half is a product of two factors, each at most 1, that meet at the cut.  A level is one masked product.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mixc.codegen.axes import more_rows
from mixc.codegen.operands import axes_of
from mixc.codegen.padding import finite_padded, zero_padded
from mixc.codegen.refuse import refuse
from mixc.codegen.triton_crossing import later_sum_code
from mixc.ir.launch import feature_dims
from mixc.ir.node import COL, ROW, Node, flat, postorder

if TYPE_CHECKING:
    from mixc.codegen.tiles import Tiles

BOTH = {ROW, COL}


def span_contract_code(tiles: Tiles, node: Node) -> str | None:
    """The call, or None where another shape of operands needs the decays of all pairs."""
    x, y, g = node.args
    dims = [d for d in g.dims if d != ROW]
    if len(dims) != 1:
        return None
    (d,) = dims
    if set(node.dims) == BOTH:
        a, b = (x, y) if ROW in x.dims else (y, x)
        if set(a.dims) == {ROW, d} and set(b.dims) == {COL, d}:
            return f"span_pair({_bare(tiles, a, (ROW, d))}, {_bare(tiles, b, (COL, d))}, {_decays(tiles, node, d)}, {tiles.operand_for(node)}, PRECISION)"
    if (found := _applied(node, d)) is None:
        return span_contract_rows_code(tiles, node, d)
    A, z, row = found
    matrix = tiles.whole(A, (ROW, COL))
    for other in tiles.spanned.get((A, g, node.attr("reach")), ()):  # the same matrix from the other side: one product
        their = _applied(other, d)
        if their and their[2] != row and not tiles.pairing and other not in tiles.names and node not in postorder([other]) and other not in postorder([node]):
            pair = [(node, z), (other, their[1])] if row == ROW else [(other, their[1]), (node, z)]
            tiles.pairing = True  # what the other needs is formed first, alone: its partner may need this one
            earlier, later = _bare(tiles, pair[0][1], (COL, d)), _bare(tiles, pair[1][1], (ROW, d))
            tiles.pairing = False
            for n, _ in pair:
                tiles.names[n] = tiles.fresh_for(n)
            gain = tiles.gains[pair[0][0], pair[1][0]] = tiles.fresh("gain")
            tiles.emit(node, f"{tiles.names[pair[0][0]]}, {tiles.names[pair[1][0]]}, {gain} = span_apply_both("
                             f"{matrix}, {later}, {earlier}, {_decays(tiles, node, d)}, {tiles.operand_for(node)}, PRECISION)")
            return tiles.names[node]
    name = "span_apply" if row == ROW else "span_apply_back"
    return f"{name}({matrix}, {_bare(tiles, z, (COL if row == ROW else ROW, d))}, {_decays(tiles, node, d)}, {tiles.operand_for(node)}, PRECISION)"


def span_crossing_code(tiles: Tiles, node: Node) -> str:
    from mixc.passes.lower import rows_of

    found, (d, *_) = rows_of(node), feature_dims(node)
    if found is None:
        raise refuse("what spans a row, of tensors of these shapes", node)
    A, x, y = found
    return (f"span_between({tiles.whole(A, (ROW, COL))}, {_bare(tiles, x, (ROW, d))}, {_bare(tiles, y, (COL, d))}, "
            f"{_decays(tiles, node, d)}, {node.attr('reach') == 'excl'}, {tiles.operand}, PRECISION)")


def _bare(tiles: Tiles, node: Node, order: tuple[str, str]) -> str:
    """The tile, one that was loaded in the dtype of its tensor: half the registers until it meets its factor."""
    if axes_of(node) == set(order) and all(zero_padded(node, d) for d in feature_dims(node)):
        return tiles.ref(node, order, cast=False)
    return tiles.cleaned(node, order, order)


def _applied(node: Node, d: str) -> tuple[Node, Node, str] | None:
    """The matrix of a product with one, what it is applied to, and the rows that come out."""
    x, y, _ = node.args
    A, z = (x, y) if set(x.dims) >= BOTH else (y, x)
    row = ROW if ROW in node.dims else COL
    fits = set(A.dims) == BOTH and set(node.dims) == {row, d} and set(z.dims) - BOTH == {d}
    return (A, z, row) if fits else None


def _decays(tiles: Tiles, node: Node, d: str) -> str:
    """Logs of decays, or where several products are under the same ones their factors, formed once."""
    g, reach = key = node.args[-1], node.attr("reach")
    if tiles.spans[key] == 1:
        return f"{logs_code(tiles, g, d)}, rows, {reach!r}"
    if key not in tiles.factors:
        logs = logs_code(tiles, g, d)
        tiles.factors[key] = tiles.fresh("to_cuts")
        tiles.emit(node, f"{tiles.factors[key]} = cut_factors({logs}, rows, {reach!r}, PRECISION)")
    return f"{tiles.factors[key]}, rows, 'given'"


def unit_inverse_code(tiles: Tiles, node: Node) -> str:
    axes = tiles.order(node)
    if len(axes) != 2:
        raise refuse("a triangular system of this shape", node)
    rows = "rows" if axes == (ROW, COL) else f"tl.arange(0, {tiles.block(axes[0])})"
    return f"unit_inverse({tiles.whole(node.args[0], axes)}, {rows}, PRECISION, {bool(node.attr('small'))})"


def running_sum_code(tiles: Tiles, node: Node) -> str:
    """Of vectors: a product with a triangle of ones, so that nothing is subtracted."""
    d, *more = (d for d in node.dims if d != ROW)
    if more:
        raise refuse("a running sum of matrices", node)
    which = ("later" if node.attr("reverse") else "earlier") + ("" if node.attr("exclusive") else "_and_own")
    which += "_again" * (which in tiles.summed)
    tiles.summed.add(which)
    if node.op == "cumsum" and (code := later_sum_code(tiles, node, which, d)):
        return code
    return f"{'sum' if node.op == 'cumsum' else 'product'}_of_rows({tiles.whole(node.args[0], (ROW, d))}, rows, {which!r}, PRECISION)"


def solve_code(tiles: Tiles, node: Node) -> str:
    """With a matrix of its own for every entry along a dim."""
    L, y = node.args
    own = [d for d in L.dims if d not in BOTH]
    if len(own) != 1 or set(y.dims) != {ROW, *own}:
        several = "triangular systems that feed each other" if COL in y.dims else "a triangular system"
        raise refuse(f"{several} for every entry of {', '.join(own)}", node)
    matrix, right = tiles.whole(L, (ROW, COL, *own)), tiles.whole(y, (ROW, *own))
    return f"solve_columns({matrix}, {right}, rows, {bool(node.attr('transposed'))})"


def span_solve_code(tiles: Tiles, node: Node) -> str:
    """With matrices that differ along a dim by decays and by factors of rows, none of which is formed: from token to token,
    `gave` holding what each row behind the own one gave, decayed on the way to it, of which A says how much that finds."""
    A, b, y, g = node.args
    own, axes, pairs = feature_dims(g), tiles.order(y), tiles.order(A)
    if len(own) != 1 or len(axes) != 2 or len(pairs) != 2 or axes[1] != own[0] or pairs[0] != axes[0]:
        raise refuse(f"a triangular system for every entry of {', '.join(feature_dims(y))}", node)
    given = [tiles.whole(A, pairs), tiles.whole(b, axes), tiles.cleaned(y, axes, flat(axes)), logs_code(tiles, g, own[0])]
    return f"span_solve({', '.join(given)}, rows, {node.attr('reach')!r}, {bool(node.attr('transposed'))}, PRECISION)"


# ---------------------------------------------------------------- where tokens have more rows
#     P = span_pair_rows(q, k, g, rows, "strict", ...)     [t * p, s * q]: as `span_pair`, with p rows a token and q
# What lies between a token and the cut of a block is the same for all its rows.
def logs_code(tiles: Tiles, g: Node, d: str) -> str:
    """Logs of decays [t, d], behind the end of d numbers: sums of -1 / 0 and its like would not be."""
    code = tiles.whole(g, (ROW, d))
    return code if finite_padded(g, d) else f"tl.where({tiles.mask_of(d, (ROW, d))}, {code}, 0.0)"


def span_contract_rows_code(tiles: Tiles, node: Node, d: str) -> str | None:
    """A product under a vector decay along d of matrices of more rows than tokens, or None."""
    by_rows = {frozenset({ROW, COL} & {*z.dims}): z for z in (*node.args[:2], node)}
    if len(by_rows) < 3 or frozenset() in by_rows:
        return None
    P, T, S = (by_rows[frozenset(rows)] for rows in ((ROW, COL), (ROW,), (COL,)))
    t, s = (tiles.axes.joint(sorted({row, *feature_dims(z)} - {d}, key=lambda x: tiles.rank[x]))
            for row, z in ((ROW, T), (COL, S)))
    if t is None or s is None or {*tiles.order(P)} != {t, s} or d not in T.dims or d not in S.dims or not (
            more_rows(t) or more_rows(s)):
        return None
    axes = {P: (t, s), T: (t, d), S: (s, d)}
    name, a, b, back = {P: ("span_pair_rows", T, S, ""), T: ("span_apply_rows", P, S, "False, "), S: ("span_apply_rows", P, T, "True, ")}[node]
    left, right = (tiles.cleaned(z, axes[z], flat(axes[z])) for z in (a, b))
    return tiles.aligned(f"{name}({left}, {right}, {logs_code(tiles, node.args[2], d)}, rows, {node.attr('reach')!r}, {back}{tiles.operand_for(node)}, PRECISION)", axes[node],
                         tiles.order(node))
