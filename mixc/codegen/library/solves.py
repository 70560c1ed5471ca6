"""Triangular systems of a matrix for every entry along a dim, which differ by decays and by factors of rows."""

import triton
import triton.language as tl


@triton.jit
def span_solve(A, b, y, g, rows, REACH: tl.constexpr, TRANSPOSED: tl.constexpr):
    """[t, D]: u with u[t] + b[t] * (sum over s of A[t, s] u[s], under the decays exp(g) of the rows between) = y[t]
    (TRANSPOSED: the transposed systems), from row to row."""
    C: tl.constexpr = rows.shape[0]
    u = y.to(tl.float32)
    gave = tl.zeros(y.shape, tl.float32)
    for j in range(C):
        i = C - 1 - j if TRANSPOSED else j
        own = (rows == i)[:, None]
        decay = tl.exp(tl.sum(tl.where(own, g, 0.0), 0))[None, :]
        if TRANSPOSED:
            finds = tl.sum(tl.where((rows == i)[None, :], A, 0.0), 1)
        else:
            finds = tl.sum(tl.where(own, A, 0.0), 0)
        if REACH != "excl" and not TRANSPOSED:
            gave *= decay
        taken = tl.sum(finds[:, None] * gave, 0)[None, :]
        u = tl.where(own, u - (taken if TRANSPOSED else b * taken), u)
        if REACH == "excl":
            gave *= decay
        gave = tl.where(own, b * u if TRANSPOSED else u, gave)
        if REACH != "excl" and TRANSPOSED:
            gave *= decay
    return u


@triton.jit
def span_solve_rows(A, b, y, g, rows, REACH: tl.constexpr, TRANSPOSED: tl.constexpr, PRECISION: tl.constexpr):
    """The same of tokens with more rows: A [C * p, C * p], y [C * p, D], decays [C, D]."""
    C: tl.constexpr = rows.shape[0]
    P: tl.constexpr = y.shape[0]
    token = tl.arange(0, P) // (P // C)
    u = y.to(tl.float32)
    gave = tl.zeros(y.shape, tl.float32)
    for j in range(C):
        i = C - 1 - j if TRANSPOSED else j
        own = (token == i)[:, None]
        decay = tl.exp(tl.sum(tl.where((rows == i)[:, None], g, 0.0), 0))[None, :]
        if REACH != "excl" and not TRANSPOSED:
            gave *= decay
        taken = exact(tl.trans(A) if TRANSPOSED else A, gave, PRECISION)
        u = tl.where(own, u - (taken if TRANSPOSED else b * taken), u)
        if REACH == "excl":
            gave *= decay
        gave = tl.where(own, b * u if TRANSPOSED else u, gave)
        if REACH != "excl" and TRANSPOSED:
            gave *= decay
    return u
