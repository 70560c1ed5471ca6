"""The same where tokens have more rows."""

import triton
import triton.language as tl


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
