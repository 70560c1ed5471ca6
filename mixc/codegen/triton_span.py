"""Products under vector decays, and triangular systems, as Triton: calls of functions that a module brings along.

    P = span_pair(q, k, g, rows, "strict", ...)        sum over D of q[t] k[s] exp(g[s+1] + ... + g[t])
    O = span_apply(P, v, g, rows, ...)                 the same decays, along the dim that is kept
    X = unit_inverse(L, rows, ...)                     (I + L)^-1

Blocks of 2h rows are cut in the middle, for h = 1, 2, 4, ...: what lies between a row of the later and one of the
earlier half is a product of two factors, each at most 1, that meet at the cut.  A level is one masked product.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from mixc.ir.node import COL, ROW, Node

if TYPE_CHECKING:
    from mixc.codegen.tiles import Tiles

BOTH = {ROW, COL}


def _refuse(what: str, node: Node) -> Exception:
    from mixc.codegen.tiles import refuse

    return refuse(what, node)


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
            return f"span_pair({tiles._clean(a, (ROW, d))}, {tiles._clean(b, (COL, d))}, {_decays(tiles, node, d)}, OPERAND, PRECISION)"
        return None
    A, z = (x, y) if set(x.dims) >= BOTH else (y, x)
    row = ROW if ROW in node.dims else COL
    if set(A.dims) != BOTH or set(node.dims) != {row, d} or set(z.dims) - BOTH != {d}:
        return None
    name = "span_apply" if row == ROW else "span_apply_back"
    return f"{name}({tiles.whole(A, (ROW, COL))}, {tiles.whole(z, (COL if row == ROW else ROW, d))}, {_decays(tiles, node, d)}, OPERAND, PRECISION)"


def _decays(tiles: Tiles, node: Node, d: str) -> str:
    """Logs of decays, or where several products are under the same ones their factors, formed once."""
    g, reach = key = node.args[2], node.attr("reach")
    if tiles.spans[key] == 1:
        return f"{tiles.whole(g, (ROW, d))}, rows, {reach!r}"
    if key not in tiles.factors:
        logs = tiles.whole(g, (ROW, d))
        tiles.factors[key] = tiles.fresh("to_cuts")
        tiles.emit(node, f"{tiles.factors[key]} = cut_factors({logs}, rows, {reach!r}, PRECISION)")
    return f"{tiles.factors[key]}, rows, 'given'"


def unit_inverse_code(tiles: Tiles, node: Node) -> str:
    return f"unit_inverse({tiles.whole(node.args[0], (ROW, COL))}, rows, PRECISION, {bool(node.attr('small'))})"


def running_sum_code(tiles: Tiles, node: Node) -> str:
    """Of vectors: a product with a triangle of ones, so that nothing is subtracted."""
    d, *more = (d for d in node.dims if d != ROW)
    if more:
        raise _refuse("a running sum of matrices", node)
    which = ("later" if node.attr("reverse") else "earlier") + ("" if node.attr("exclusive") else "_and_own")
    return f"{'sum' if node.op == 'cumsum' else 'product'}_of_rows({tiles.whole(node.args[0], (ROW, d))}, rows, {which!r}, PRECISION)"


def solve_code(tiles: Tiles, node: Node) -> str:
    """With a matrix of its own for every entry along a dim."""
    L, y = node.args
    own = [d for d in L.dims if d not in BOTH]
    if len(own) != 1 or set(y.dims) != {ROW, *own}:
        raise _refuse("a triangular system of this shape", node)
    matrix, right = tiles.whole(L, (ROW, COL, *own)), tiles.whole(y, (ROW, *own))
    return f"solve_columns({matrix}, {right}, rows, {bool(node.attr('transposed'))})"


PRELUDE = '''

@triton.jit
def exact(a, b, PRECISION: tl.constexpr):
    """a @ b to fp32, also where the inputs are halves: sums of gates, and inverses."""
    if PRECISION == "interpret":
        return tl.dot(a, b, input_precision="ieee")
    if PRECISION == "tf32":
        return tl.dot(a, b, input_precision="tf32x3")
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def among(t, s, WHICH: tl.constexpr, level):
    """Whether the sum for row t takes row s. "to_cut": the rows between t and the cut of its block of 2 << level rows,
    t's own among them if it lies behind the cut ("to_cut_excl": not even then)."""
    if WHICH == "earlier":
        return t > s
    if WHICH == "earlier_and_own":
        return t >= s
    if WHICH == "later":
        return t < s
    if WHICH == "later_and_own":
        return t <= s
    cut = ((t >> level) | 1) << level
    if WHICH == "to_cut":
        return ((s >= cut) & (s <= t)) | ((s > t) & (s < cut))
    return ((s >= cut) & (s < t)) | ((s > t) & (s < cut))


@triton.jit
def sum_of_rows(x, rows, WHICH: tl.constexpr, PRECISION: tl.constexpr, level=0):
    """[t, D]: the sum over the rows `among` those that WHICH names, a product with ones: nothing is subtracted.
    For half inputs x is split into two bf16, that is 16 bits."""
    x = x.to(tl.float32)
    if PRECISION == "tf32":
        C: tl.constexpr = x.shape[0]
        D: tl.constexpr = x.shape[1]
        high = x.to(tl.bfloat16)
        parts = tl.join(high, (x - high.to(tl.float32)).to(tl.bfloat16))
        ones = among(rows[:, None], (tl.arange(0, 2 * C) % C)[None, :], WHICH, level).to(tl.bfloat16)
        return tl.dot(ones, tl.reshape(tl.permute(parts, (2, 0, 1)), [2 * C, D]))
    return exact(among(rows[:, None], tl.arange(0, x.shape[0])[None, :], WHICH, level).to(tl.float32), x, PRECISION)


@triton.jit
def product_of_rows(a, rows, WHICH: tl.constexpr, PRECISION: tl.constexpr):
    """The same of products: signs are counted, logarithms summed."""
    log, negative = log_and_sign(a)
    count = sum_of_rows(negative, rows, WHICH, PRECISION)
    return (1.0 - 2.0 * odd(count)) * tl.exp(sum_of_rows(log, rows, WHICH, PRECISION))


@triton.jit
def sums_between(g, rows, REACH: tl.constexpr, PRECISION: tl.constexpr):
    """[t, s, D]: g[s+1] + ... + g[t] (REACH "excl": to t-1): a product with ones, so that nothing is subtracted."""
    C: tl.constexpr = g.shape[0]
    D: tl.constexpr = g.shape[1]
    pair = tl.arange(0, C * C)[:, None]
    t, s, row = pair // C, pair % C, rows[None, :]
    if REACH == "excl":
        among = (row > s) & (row < t)
    else:
        among = (row > s) & (row <= t)
    return tl.reshape(exact(among.to(tl.float32), g, PRECISION), [C, C, D])


@triton.jit
def reaches(rows, REACH: tl.constexpr):
    if REACH == "incl":
        return (rows[:, None] >= rows[None, :])[:, :, None]
    return (rows[:, None] > rows[None, :])[:, :, None]


@triton.jit
def vector_span_sum(g, rows, REACH: tl.constexpr, PRECISION: tl.constexpr):
    """[t, s, D]: the sums, -inf where t does not reach s."""
    return tl.where(reaches(rows, REACH), sums_between(g, rows, REACH, PRECISION), float("-inf"))


@triton.jit
def vector_span_product(a, rows, REACH: tl.constexpr, PRECISION: tl.constexpr):
    """[t, s, D]: a[s+1] * ... * a[t] (REACH "excl": to t-1), 0 where t does not reach s."""
    log, negative = log_and_sign(a)
    sign = 1.0 - 2.0 * odd(sums_between(negative, rows, REACH, PRECISION))
    size = tl.exp(sums_between(log, rows, REACH, PRECISION))
    return tl.where(reaches(rows, REACH), sign * size, 0.0)


@triton.jit
def solve_columns(L, y, rows, TRANSPOSED: tl.constexpr):
    """(I + L)^-1 y (TRANSPOSED: (I + L)^-T y) with a strictly lower matrix for every column: by substitution."""
    C: tl.constexpr = y.shape[0]
    u = y
    for j in range(C):
        i = C - 1 - j if TRANSPOSED else j
        row = tl.sum(tl.where((rows == i)[:, None], u, 0.0), 0)
        if TRANSPOSED:
            onto = tl.sum(tl.where((rows == i)[:, None, None], L, 0.0), 0)
        else:
            onto = tl.sum(tl.where((rows == i)[None, :, None], L, 0.0), 1)
        u -= onto * row[None, :]
    return u


@triton.jit
def cut_factor(g, rows, level: tl.constexpr, REACH: tl.constexpr, PRECISION: tl.constexpr):
    """[t, D]: the decay between a row and the cut of its block of 2h rows (REACH "excl": without the row's own)."""
    return tl.exp(sum_of_rows(g, rows, "to_cut_excl" if REACH == "excl" else "to_cut", PRECISION, level))


@triton.jit
def low_factors(g, rows, REACH: tl.constexpr, PRECISION: tl.constexpr):
    """[4, t, D]: the same for blocks of 2, 4, 8 and 16 rows at once."""
    C: tl.constexpr = g.shape[0]
    D: tl.constexpr = g.shape[1]
    at = tl.arange(0, 4 * C)
    found = sum_of_rows(g, at % C, "to_cut_excl" if REACH == "excl" else "to_cut", PRECISION, (at // C)[:, None])
    return tl.exp(tl.reshape(found, [4, C, D]))


@triton.jit
def cut_factors(g, rows, REACH: tl.constexpr, PRECISION: tl.constexpr):
    """Those of low levels, and of every level above them: where several products need them."""
    MORE: tl.constexpr = (g.shape[0] > 16) + (g.shape[0] > 32) + (g.shape[0] > 64)
    factors = (low_factors(g, rows, REACH, PRECISION),)
    for level in tl.static_range(4, 4 + MORE):
        factors = factors + (cut_factor(g, rows, level, REACH, PRECISION),)
    return factors


@triton.jit
def low_halves(g, rows, REACH: tl.constexpr, PRECISION: tl.constexpr):
    """Of blocks of 2, 4, 8 and 16 rows at once: which rows lie in the later half, which share a block, the decays to
    the cut. g: logs of decays, or the tuple of `cut_factors`."""
    if REACH == "given":
        factor = g[0]
    else:
        factor = low_factors(g, rows, REACH, PRECISION)
    level, t, s = tl.arange(0, 4)[:, None, None], rows[None, :, None], rows[None, None, :]
    return ((t >> level) & 1) == 1, (t >> (level + 1)) == (s >> (level + 1)), factor


@triton.jit
def span_halves(g, rows, level: tl.constexpr, REACH: tl.constexpr, PRECISION: tl.constexpr):
    """The same for blocks of 2 << level rows."""
    if REACH == "given":
        factor = g[level - 3]
    else:
        factor = cut_factor(g, rows, level, REACH, PRECISION)
    block = rows >> (level + 1)
    return (((rows >> level) & 1) == 1)[:, None], block[:, None] == block[None, :], factor


@triton.jit
def span_pair(x, y, g, rows, REACH: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr):
    """[t, s]: sum over D of x[t] y[s] exp(g[s+1] + ... + g[t]), 0 unless s < t (REACH "excl": to g[t-1])."""
    MORE: tl.constexpr = (x.shape[0] > 16) + (x.shape[0] > 32) + (x.shape[0] > 64)
    later, same, factor = low_halves(g, rows, REACH, PRECISION)
    left, right = tl.where(later, x[None] * factor, 0.0), tl.where(later, 0.0, y[None] * factor)
    out = tl.sum(tl.where(same, dot(left, tl.permute(right, (0, 2, 1)), OPERAND, PRECISION), 0.0), 0)
    for level in tl.static_range(4, 4 + MORE):
        later, same, factor = span_halves(g, rows, level, REACH, PRECISION)
        left, right = tl.where(later, x * factor, 0.0), tl.where(later, 0.0, y * factor)
        out += tl.where(same, dot(left, tl.trans(right), OPERAND, PRECISION), 0.0)
    return out


@triton.jit
def span_apply(A, y, g, rows, REACH: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr):
    """[t, D]: sum over s < t of A[t, s] y[s] exp(g[s+1] + ... + g[t])."""
    MORE: tl.constexpr = (y.shape[0] > 16) + (y.shape[0] > 32) + (y.shape[0] > 64)
    later, same, factor = low_halves(g, rows, REACH, PRECISION)
    found = dot(tl.where(same, A[None], 0.0), tl.where(later, 0.0, y[None] * factor), OPERAND, PRECISION)
    out = tl.sum(tl.where(later, factor * found, 0.0), 0)
    for level in tl.static_range(4, 4 + MORE):
        later, same, factor = span_halves(g, rows, level, REACH, PRECISION)
        found = dot(tl.where(same, A, 0.0), tl.where(later, 0.0, y * factor), OPERAND, PRECISION)
        out += tl.where(later, factor * found, 0.0)
    return out


@triton.jit
def span_apply_back(A, x, g, rows, REACH: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr):
    """[s, D]: sum over t > s of A[t, s] x[t] exp(g[s+1] + ... + g[t])."""
    MORE: tl.constexpr = (x.shape[0] > 16) + (x.shape[0] > 32) + (x.shape[0] > 64)
    later, same, factor = low_halves(g, rows, REACH, PRECISION)
    found = dot(tl.where(same, tl.trans(A)[None], 0.0), tl.where(later, x[None] * factor, 0.0), OPERAND, PRECISION)
    out = tl.sum(tl.where(later, 0.0, factor * found), 0)
    for level in tl.static_range(4, 4 + MORE):
        later, same, factor = span_halves(g, rows, level, REACH, PRECISION)
        found = dot(tl.trans(tl.where(same, A, 0.0)), tl.where(later, x * factor, 0.0), OPERAND, PRECISION)
        out += tl.where(later, 0.0, factor * found)
    return out


@triton.jit
def below(L, rows, h: tl.constexpr):
    """L where a row of the later half of a block of 2h rows meets a column of its earlier half."""
    t, s = rows[:, None], rows[None, :]
    return tl.where((t // (2 * h) == s // (2 * h)) & (t // h > s // h), L, 0.0)


@triton.jit
def unit_inverse(L, rows, PRECISION: tl.constexpr, SMALL: tl.constexpr):
    """(I + L)^-1 of a strictly lower L: blocks of 2h rows from those of h, level by level (never by doubling).
    SMALL: no entry of L exceeds 1 (by the declared ranges), and one pass of TF32 serves half inputs."""
    C: tl.constexpr = L.shape[0]
    LEVELS: tl.constexpr = 4 + (C > 16) + (C > 32) + (C > 64)
    X = tl.where(rows[:, None] == rows[None, :], 1.0, 0.0) - below(L, rows, 1)
    for level in tl.static_range(1, LEVELS):
        if SMALL and PRECISION == "tf32":
            X -= tl.dot(tl.dot(X, below(L, rows, 1 << level), input_precision="tf32"), X, input_precision="tf32")
        else:
            X -= exact(exact(X, below(L, rows, 1 << level), PRECISION), X, PRECISION)
    return X
'''


FUNCTIONS = tuple(re.findall(r"def (\w+)\(", PRELUDE))


def span_prelude(text: str) -> str:
    """What a module's text calls."""
    return PRELUDE if any(f"{name}(" in text for name in FUNCTIONS) else ""
