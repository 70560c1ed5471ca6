"""Where tokens have more rows: sums over the rows of a token, and products under vector decays, as Triton.

    P = span_pair_rows(q, k, g, rows, "strict", ...)     [t * p, s * q]: as `span_pair`, with p rows a token and q
    O = span_apply_rows(P, v, g, rows, ...)              and so on

A block of 2h tokens is cut in the middle as there; what lies between a token and the cut is the same for all its rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mixc.codegen.axes import flat, more_rows
from mixc.codegen.padding import finite_padded
from mixc.ir.launch import feature_dims
from mixc.ir.node import COL, ROW, Node

if TYPE_CHECKING:
    from mixc.codegen.tiles import Tiles


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
