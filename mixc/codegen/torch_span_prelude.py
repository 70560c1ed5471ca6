"""What emitted torch code calls for decays that differ along a dim, and for unit triangular systems.

Decays from s to t are never formed for pairs: a block of 2h rows is cut in the middle, and what lies between a row of
its earlier and one of its later half is a product of two factors, both at most 1, that meet at the cut.  So every level
h = 1, 2, 4, ... costs one product of [h, D] matrices a block, and nothing overflows (Yang et al. 2024, arXiv
2312.06635, with an anchor a level; sums over segments are carried from level to level, so nothing cancels).
"""

from __future__ import annotations

import math

import torch

Tensor = torch.Tensor
LOG2E = 1 / math.log(2)

__all__ = ["solve_columns", "span_apply", "span_apply_back", "span_factors", "span_gradient", "span_of", "span_pair", "unit_inverse"]


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


def _halves(x: Tensor, level: int, ndim: int = 0) -> tuple[Tensor, Tensor]:
    """The earlier and the later halves of all blocks: [M, blocks, h, ...] each; `ndim`: of what they are factors of."""
    more = [1] * (ndim - x.ndim)
    both = x.view(x.shape[0], -1, 2, 1 << level, *x.shape[2:], *more)
    return both[:, :, 0], both[:, :, 1]


def _meeting(A: Tensor, level: int) -> Tensor:
    """[M, blocks, h, h] of A [M, C, C]: later rows against earlier columns of every block."""
    M, C, _ = A.shape
    h = 1 << level
    n = C // (2 * h)
    a, b, c = A.stride()
    return A.as_strided((M, n, h, h), (a, 2 * h * (b + c), b, c), A.storage_offset() + h * b)


def span_pair(x: Tensor, y: Tensor, F: Tensor, out: Tensor) -> Tensor:
    """[M, C, C]: sum over D, E of x[t] y[s] exp(g[s+1] + ... + g[t]), 0 unless s < t, of x, y [M, C, D, E...]."""
    out.zero_()
    for level in range(F.shape[1]):
        earlier, later = _halves(F[:, level], level, x.ndim)
        (_, x1), (y0, _) = _halves(x, level), _halves(y, level)
        left, right = (x1 * later).flatten(3), (y0 * earlier).flatten(3)
        to = _meeting(out, level)
        if level == 0:
            torch.sum(left.mul_(right), -1, keepdim=True, out=to)
        else:
            to.copy_(torch.matmul(left, right.mT))
    return out


def span_apply(A: Tensor, y: Tensor, F: Tensor, out: Tensor) -> Tensor:
    """[M, C, D, E...]: sum over s < t of A[t, s] y[s] exp(g[s+1] + ... + g[t])."""
    out.zero_()
    for level in range(F.shape[1]):
        (earlier, later), (y0, _) = _halves(F[:, level], level, y.ndim), _halves(y, level)
        found = _times(_meeting(A, level), (y0 * earlier).flatten(3))
        _halves(out, level)[1].addcmul_(found.view(y0.shape), later)
    return out


def span_apply_back(A: Tensor, x: Tensor, F: Tensor, out: Tensor) -> Tensor:
    """[M, C, D, E...]: sum over t > s of A[t, s] x[t] exp(g[s+1] + ... + g[t])."""
    out.zero_()
    for level in range(F.shape[1]):
        (earlier, later), (_, x1) = _halves(F[:, level], level, x.ndim), _halves(x, level)
        found = _times(_meeting(A, level).mT, (x1 * later).flatten(3))
        _halves(out, level)[0].addcmul_(found.view(x1.shape), earlier)
    return out


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
    """[M, blocks, h, D]: block @ x.  (Products of tiny matrices take many times as long as their entries.)"""
    h = block.shape[-1]
    if h > 2:
        return torch.matmul(block, x)
    found = block[..., :1] * x[:, :, :1]
    return found if h == 1 else found.addcmul_(block[..., 1:], x[:, :, 1:])


def unit_inverse(L: Tensor, out: Tensor) -> Tensor:
    """(I + L)^-1 of strictly lower matrices [M, C, C]: by substitution."""
    eye = torch.eye(L.shape[-1], dtype=L.dtype, device=L.device).expand(L.shape)
    return out.copy_(torch.linalg.solve_triangular(L, eye, upper=False, unitriangular=True))


def solve_columns(L: Tensor, y: Tensor, transposed: bool, columns: int) -> Tensor:
    """(I + L)^-1 y (transposed: (I + L)^-T y) with a matrix of its own for every entry along D: [M, D..., C, C],
    [M, D..., C, columns...]."""
    L = L.mT if transposed else L
    flat = y.flatten(-columns) if columns else y.unsqueeze(-1)
    return torch.linalg.solve_triangular(L, flat, upper=transposed, unitriangular=True).view(y.shape)
