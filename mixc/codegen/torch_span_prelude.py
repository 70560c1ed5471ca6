"""What emitted torch code calls for decays that differ along a dim, and for unit triangular systems.

Decays from s to t are never formed for pairs: a block of 2h rows is cut in the middle, and what lies between a row of
its earlier and one of its later half is a product of two factors, both at most 1, that meet at the cut.  So every level
h = 1, 2, 4, ... costs one product of [h, D] matrices a block, and nothing overflows (Yang et al. 2024, arXiv
2312.06635, with an anchor a level; sums over segments are carried from level to level, so nothing cancels).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

Tensor = torch.Tensor
LOG2E = 1 / math.log(2)

__all__ = ["column_inverses", "of_each", "solve_columns", "span_apply", "span_apply_back", "span_factors", "span_gradient", "span_of", "span_pair",
           "span_solve", "unit_inverse"]


def span_factors(g: Tensor, reach: str, out: Tensor) -> Tensor:
    """[M, levels, C, D...]: exp of the sums of g since the half block began (odd ones; reach excl: without the own row),
    or behind the own row until it ends (even ones)."""
    M, levels, C, *dims = out.shape
    total = g * LOG2E
    since = torch.zeros_like(total) if reach == "excl" else total.clone()
    until = torch.zeros_like(total)
    for level in range(levels):
        h = 1 << level
        shape = (M, C // (2 * h), 2, h, *dims)
        to, a, b = out[:, level].view(shape), since.view(shape), until.view(shape)
        torch.exp2(a[:, :, 1], out=to[:, :, 1])
        torch.exp2(b[:, :, 0], out=to[:, :, 0])
        sums = total.view(M, C // (2 * h), 2, 1, *dims)
        a[:, :, 1] += sums[:, :, 0]
        b[:, :, 0] += sums[:, :, 1]
        total = sums[:, :, 0] + sums[:, :, 1]
    return out


def span_of(F: Tensor) -> Tensor:
    """[M, C, C, D...]: exp(g[s+1] + ... + g[t]) for every pair s < t, 0 elsewhere."""
    M, levels, C, *dims = F.shape
    E = F.new_zeros(M, C, C, *dims)
    for level in range(levels):
        both = F[:, level].view(M, -1, 2, 1 << level, *dims)
        for i in range(both.shape[1]):
            at = 2 * i << level
            h = 1 << level
            E[:, at + h:at + 2 * h, at:at + h] = both[:, i, 1][:, :, None] * both[:, i, 0][:, None]
    return E


def _halves(x: Tensor, level: int, ndim: int = 0, rows: int = 0) -> tuple[Tensor, Tensor]:
    """The earlier and the later halves of all blocks: [M, blocks, h, ...] each; of what they are factors of, `ndim`, and
    how many of its axes make more `rows` of each."""
    both = x.reshape(x.shape[0], -1, 2, 1 << level, *[1] * rows, *x.shape[2:], *[1] * (ndim - x.ndim - rows))
    return both[:, :, 0], both[:, :, 1]


def _meeting(A: Tensor, level: int, rows: int = 1, cols: int = 1) -> Tensor:
    """[M, blocks, h, h] of A [M, C, C]: later rows against earlier columns of every block; each `rows` and `cols` times."""
    h, (M, C, _), (a, b, c) = 1 << level, A.shape, A.stride()
    r, s = h * rows, h * cols
    return A.as_strided((M, C // (2 * r), r, s), (a, 2 * (r * b + s * c), b, c), A.storage_offset() + r * b)


def _flat(x: Tensor, rows: int) -> Tensor:
    """[M, blocks, h, rows..., D...] as [M, blocks, h * rows, D]."""
    return x.flatten(2, 2 + rows).flatten(3)


def _matrix(A: Tensor, p: int) -> tuple[Tensor, int, int]:
    """[M, C, p more..., C, more...] as [M, rows, columns], and how many of each a token has."""
    C = A.shape[1]
    flat = A.flatten(1, 1 + p).flatten(2)
    return flat, flat.shape[1] // C, flat.shape[2] // C


def span_pair(x: Tensor, y: Tensor, F: Tensor, out: Tensor, rows: tuple[int, int] = (0, 0)) -> Tensor:
    """[M, C, C]: sum over D, E of x[t] y[s] exp(g[s+1] + ... + g[t]), 0 unless s < t, of x, y [M, C, D, E...].

    rows: how many axes of x, and of y, make more rows of a token: [M, C, R..., D, E...], out [M, C, R..., C, R_s...]."""
    p, q = rows
    whole, r, s = _matrix(out.zero_(), p)
    for level in range(F.shape[1]):
        (_, later), (earlier, _) = _halves(F[:, level], level, x.ndim, p), _halves(F[:, level], level, y.ndim, q)
        (_, x1), (y0, _) = _halves(x, level), _halves(y, level)
        left, right = _flat(x1 * later, p), _flat(y0 * earlier, q)
        to = _meeting(whole, level, r, s)
        if level == 0 and not p + q:
            torch.sum(left.mul_(right), -1, keepdim=True, out=to)
        else:
            to.copy_(torch.matmul(left, right.mT))
    return out if whole.data_ptr() == out.data_ptr() else out.copy_(whole.view(out.shape))  # its axes lie another way


def span_apply(A: Tensor, y: Tensor, F: Tensor, out: Tensor, rows: tuple[int, int] = (0, 0), back: bool = False) -> Tensor:
    """[M, C, D, E...]: sum over s < t of A[t, s] y[s] exp(g[s+1] + ... + g[t]); rows as in `span_pair`; back: over t > s
    of A[t, s] y[t]."""
    (p, q), (A, r, s) = rows, _matrix(A, rows[0])
    out.zero_()
    for level in range(F.shape[1]):
        earlier, _ = _halves(F[:, level], level, (out if back else y).ndim, q)
        _, later = _halves(F[:, level], level, (y if back else out).ndim, p)
        block, here, there = _meeting(A, level, r, s), later, earlier
        if back:
            block, here, there = block.mT, earlier, later
        to = _halves(out, level)[not back]
        to.addcmul_(_times(block, _flat(_halves(y, level)[back] * there, p if back else q)).view(to.shape), here)
    return out


def span_apply_back(A: Tensor, x: Tensor, F: Tensor, out: Tensor, rows: tuple[int, int] = (0, 0)) -> Tensor:
    return span_apply(A, x, F, out, rows, back=True)


def of_each(a: Tensor, b: Tensor, F: Tensor, out: Tensor, of: Callable[..., Tensor], dims: int,
            rows: tuple[int, int] = (0, 0)) -> Tensor:
    """What `of` gives of [M, dims..., ...], for each entry of those dims."""
    M, levels, *tail = F.shape
    F = F.view(M, *[1] * dims, levels, *tail).expand(M, *a.shape[1:1 + dims], levels, *tail).flatten(0, dims)
    whole = out.flatten(0, dims)
    of(a.flatten(0, dims), b.flatten(0, dims), F, whole, rows)
    return out if whole.data_ptr() == out.data_ptr() else out.copy_(whole.view(out.shape))


def span_gradient(A: Tensor, x: Tensor, y: Tensor, F: Tensor, reach: str, out: list[Tensor]) -> list[Tensor]:
    """`span_apply` of y, `span_apply_back` of x, and [M, C, D, E...]: of A[t, s] x[t] y[s] with its decay the sum over all
    pairs t >= j > s (reach excl: t > j).

    In a block cut at m that is for its later rows the sum over t >= j in it of x dx, for its earlier ones that over s < j
    of y dy, dx and dy being what its level adds to them.  So from the largest blocks down, when a half is cut into two,
    the first of these takes what the second has of x dx so far, the second what the first has of y dy."""
    dx, dy, between = (z.zero_() for z in out)
    for level in reversed(range(F.shape[1])):
        earlier, later = _halves(F[:, level], level, x.ndim)
        (_, x1), (y0, _), block = _halves(x, level), _halves(y, level), _meeting(A, level)
        right, left = (y0 * earlier).flatten(3), (x1 * later).flatten(3)
        _halves(dx, level)[1].addcmul_(_times(block, right).view(x1.shape), later)
        _halves(dy, level)[0].addcmul_(_times(block.mT, left).view(y0.shape), earlier)
        if level:
            (to0, to1), (_, x1), (y0, _) = (_halves(z, level - 1) for z in (between, x, y))
            (_, dx1), (dy0, _) = _halves(dx, level - 1), _halves(dy, level - 1)
            if level == 1:
                to0.addcmul_(x1, dx1)
                to1.addcmul_(y0, dy0)
            else:
                to0 += (x1 * dx1).sum(2, keepdim=True)
                to1 += (y0 * dy0).sum(2, keepdim=True)
    if reach != "excl":
        between.addcmul_(x, dx)
    return out


def _times(block: Tensor, x: Tensor) -> Tensor:
    """[M, blocks, rows, D]: block @ x.  (Products of tiny matrices take many times as long as their entries.)"""
    h = block.shape[-1]
    if h > 2 or block.shape[-2] != h:
        return torch.matmul(block, x)
    found = block[..., :1] * x[:, :, :1]
    return found if h == 1 else found.addcmul_(block[..., 1:], x[:, :, 1:])


def unit_inverse(L: Tensor, out: Tensor) -> Tensor:
    """(I + L)^-1 of strictly lower matrices [M, C, C], or [M, C, R..., C, R...]: by substitution."""
    rows = L.ndim // 2
    flat = L.flatten(1, rows).flatten(2)
    eye = torch.eye(flat.shape[-1], dtype=L.dtype, device=L.device).expand(flat.shape)
    return out.copy_(torch.linalg.solve_triangular(flat, eye, upper=False, unitriangular=True).view(L.shape))


def column_inverses(L: Tensor, out: Tensor) -> Tensor:
    """(I + L)^-1 of a strictly lower matrix for every entry along D, [M, C, C, D...]: row by row, all entries at once."""
    C = L.shape[1]
    X = L.new_zeros(C, C, *L.shape[:1], *L.shape[3:])
    for t in range(C):
        X[t, t] = 1
        for s in range(t):
            X[t, :s + 1].addcmul_(L[:, t, s], X[s, :s + 1], value=-1)
    return out.copy_(X.movedim(2, 0))


def solve_columns(L: Tensor, y: Tensor, transposed: bool, columns: int, rows: int = 1) -> Tensor:
    """(I + L)^-1 y (transposed: (I + L)^-T y) with a matrix of its own for every entry along D: [M, D..., C, C],
    [M, D..., C, columns...]; rows: of how many axes C stands for."""
    L = L.flatten(-rows).flatten(-rows - 1, -2)
    L = L.mT if transposed else L
    flat = y.flatten(-columns) if columns else y.unsqueeze(-1)
    flat = flat.flatten(-rows - 1, -2)
    return torch.linalg.solve_triangular(L, flat, upper=transposed, unitriangular=True).view(y.shape)


def span_solve(A: Tensor, b: Tensor | None, y: Tensor, g: Tensor, reach: str, transposed: bool, out: Tensor) -> Tensor:
    """[M, C, R..., D...]: u with u + b * (`span_apply` of A to u) = y (no b: 1), A [M, C, R..., C, R...] of any entries where s >= t,
    g [M, C, D'...] (transposed: the system of transposed matrices): row by row, `gave` being what the rows behind the own
    one gave, decayed on the way to it."""
    C, rows = y.shape[1], A.ndim // 2 - 1
    A = A.flatten(1, 1 + rows).flatten(2).unflatten(2, (C, -1)).unflatten(1, (C, -1))  # [M, C, r, C, r]
    decays = torch.exp(g).flatten(2)
    own = (y.shape[0], C, A.shape[2], decays.shape[2], -1)
    y, u, b = y.reshape(own), out.reshape(own), b if b is None else b.reshape(own)
    decays, gave = decays[:, :, None, :, None], torch.empty_like(y)
    for j in range(C):
        i = C - 1 - j if transposed else j
        earlier = slice(i + 1, C) if transposed else slice(0, i)
        there = gave[:, earlier]
        if j:
            if reach != "excl" and not transposed:
                there *= decays[:, i, None]
            block = A[:, earlier, :, i].flatten(1, 2).mT if transposed else A[:, i, :, earlier].flatten(2)
            taken = torch.matmul(block, there.flatten(1, 2).flatten(2)).view(u[:, i].shape)
            torch.sub(y[:, i], taken if transposed or b is None else b[:, i] * taken, out=u[:, i])
        else:
            u[:, i] = y[:, i]
        if reach == "excl":
            there *= decays[:, i, None]
        gave[:, i] = b[:, i] * u[:, i] if transposed and b is not None else u[:, i]
        if reach != "excl" and transposed:
            gave[:, i:] *= decays[:, i, None]
    return out if u.data_ptr() == out.data_ptr() else out.copy_(u.view(out.shape))
