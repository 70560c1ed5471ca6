"""Where tokens have more rows: sums over the rows of a token, and products under vector decays, as Triton.

    P = span_pair_rows(q, k, g, rows, "strict", ...)     [t * p, s * q]: as `span_pair`, with p rows a token and q
    O = span_apply_rows(P, v, g, rows, ...)              and so on

A block of 2h tokens is cut in the middle as there; what lies between a token and the cut is the same for all its rows.
"""

from __future__ import annotations

import re
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


PRELUDE = '''

@triton.jit
def sum_of_tokens(x, C: tl.constexpr):
    """[C]: the sum over the rows of each token."""
    return tl.sum(tl.reshape(x, [C, x.shape[0] // C]), 1)


@triton.jit
def sum_crossing_tokens(x, t, s, C: tl.constexpr, REACH: tl.constexpr, PRECISION: tl.constexpr):
    """`sum_crossing` where tokens have more rows: t and s are those of the rows and columns of x."""
    x = tl.where(t[:, None] > s[None, :], x, 0.0)
    if PRECISION != "tf32":
        x = x.to(tl.float64)
    row = sum_of_tokens(tl.sum(x, 1), C)
    total = tl.cumsum((row - sum_of_tokens(tl.sum(x, 0), C)).to(tl.float64), 0, reverse=True)
    if REACH == "excl":
        total = total - row
    return total.to(tl.float32)


@triton.jit
def each_row(x, TOKENS: tl.constexpr, ROWS: tl.constexpr):
    """[ROWS, D] of [TOKENS, D]: what a token has, for each of its rows."""
    x = tl.broadcast_to(x[:, None, :], [TOKENS, ROWS // TOKENS, x.shape[1]])
    return tl.reshape(x, [ROWS, x.shape[2]])


@triton.jit
def cut_factor_of(g, rows, level, REACH: tl.constexpr, PRECISION: tl.constexpr):
    """`cut_factor` of a level that the loop counts: unrolled, the factors of all levels would be alive at once."""
    return tl.exp(sum_of_rows(g, rows, "to_cut_excl" if REACH == "excl" else "to_cut", PRECISION, level))


@triton.jit
def across_cut(ROWS: tl.constexpr, COLUMNS: tl.constexpr, C: tl.constexpr, level):
    """[ROWS, COLUMNS]: where a row of the later half of a block meets a column of its earlier half."""
    t = (tl.arange(0, ROWS) // (ROWS // C)) >> level
    s = (tl.arange(0, COLUMNS) // (COLUMNS // C)) >> level
    return (t[:, None] == s[None, :] + 1) & ((t & 1) == 1)[:, None]


@triton.jit
def span_pair_rows(x, y, g, rows, REACH: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr):
    """`span_pair` of x [C * p, D] and y [C * q, D], decays [C, D]."""
    C: tl.constexpr = rows.shape[0]
    P: tl.constexpr = x.shape[0]
    Q: tl.constexpr = y.shape[0]
    LEVELS: tl.constexpr = 4 + (C > 16) + (C > 32) + (C > 64)
    out = tl.zeros([P, Q], tl.float32)
    for level in range(0, LEVELS):
        factor = cut_factor_of(g, rows, level, REACH, PRECISION)
        left, right = x * each_row(factor, C, P), y * each_row(factor, C, Q)
        out += tl.where(across_cut(P, Q, C, level), dot(left, tl.trans(right), OPERAND, PRECISION), 0.0)
    return out


@triton.jit
def span_apply_rows(A, y, g, rows, REACH: tl.constexpr, BACK: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr):
    """`span_apply` of A [C * p, C * q] to y [C * q, D]; BACK: `span_apply_back`, to y [C * p, D]."""
    C: tl.constexpr = rows.shape[0]
    P: tl.constexpr = A.shape[1] if BACK else A.shape[0]
    Q: tl.constexpr = A.shape[0] if BACK else A.shape[1]
    LEVELS: tl.constexpr = 4 + (C > 16) + (C > 32) + (C > 64)
    out = tl.zeros([P, y.shape[1]], tl.float32)
    for level in range(0, LEVELS):
        factor = cut_factor_of(g, rows, level, REACH, PRECISION)
        block = tl.where(across_cut(A.shape[0], A.shape[1], C, level), A, 0.0)
        if BACK:
            met = dot(tl.trans(block), y * each_row(factor, C, Q), OPERAND, PRECISION)
        else:
            met = dot(block, y * each_row(factor, C, Q), OPERAND, PRECISION)
        out += each_row(factor, C, P) * met
    return out
'''
FUNCTIONS = tuple(re.findall(r"def (\w+)\(", PRELUDE))
