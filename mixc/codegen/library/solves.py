"""Triangular systems of a matrix for every entry along a dim, which differ by decays and by factors of rows."""

import triton
import triton.language as tl


@triton.jit
def span_solve(A, b, y, g, rows, REACH: tl.constexpr, TRANSPOSED: tl.constexpr, PRECISION: tl.constexpr):
    """[t * p, D]: u with u[t] + b[t] * (sum over s of A[t, s] u[s], under the decays exp(g) of the tokens between) = y[t]
    (TRANSPOSED: the transposed systems), from token to token, each of p rows; g [t, D]."""
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
        if P > C:
            taken = exact(tl.trans(A) if TRANSPOSED else A, gave, PRECISION)
        elif TRANSPOSED:
            taken = tl.sum(tl.sum(tl.where((rows == i)[None, :], A, 0.0), 1)[:, None] * gave, 0)[None, :]
        else:
            taken = tl.sum(tl.sum(tl.where(own, A, 0.0), 0)[:, None] * gave, 0)[None, :]
        u = tl.where(own, u - (taken if TRANSPOSED else b * taken), u)
        if REACH == "excl":
            gave *= decay
        gave = tl.where(own, b * u if TRANSPOSED else u, gave)
        if REACH != "excl" and TRANSPOSED:
            gave *= decay
    return u
