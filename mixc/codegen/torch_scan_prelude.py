"""What emitted torch code calls for scans: [M, C, dims...] tensors, row after row along axis 1.

`shifted`: a row is multiplied by the a of the row that was done before it, and the first by 1 (the adjoint).
"""

from __future__ import annotations

import torch

from mixc.ir.scans import COMBINES, shift

Tensor = torch.Tensor

__all__ = ["affine_end", "affine_scan", "mul_before", "other_end", "other_scan", "shift_rows"]


def _rows(x: Tensor, C: int, reverse: bool) -> list[Tensor]:
    rows = list(x.unbind(1)) if x.shape[1] == C else [x[:, 0]] * C
    return rows[::-1] if reverse else rows


def affine_scan(a: Tensor, b: Tensor, start: Tensor | None, reverse: bool, shifted: bool,
                out: Tensor | None = None) -> Tensor:
    """h[t] = a[t] * h[t-1] + b[t]; start None: 0.  `out` may be b."""
    out = b.clone() if out is None else out if out is b else out.copy_(b)
    C = b.shape[1]
    h, rows, factors = start, _rows(out, C, reverse), _rows(a, C, reverse)
    if shifted:
        if h is not None:
            rows[0].add_(h)
        h, rows = rows[0], rows[1:]
    elif h is None:
        h, rows, factors = rows[0], rows[1:], factors[1:]
    for x, y in zip(factors, rows, strict=False):
        h = y.addcmul_(x, h)
    return out


def affine_end(a: Tensor, b: Tensor, reverse: bool, shifted: bool) -> Tensor:
    """[M, dims...]: h of the last row, from 0."""
    C = b.shape[1]
    rows, factors = _rows(b, C, reverse), _rows(a, C, reverse)
    h = rows[0].clone()
    for x, y in zip(factors if shifted else factors[1:], rows[1:], strict=False):
        torch.addcmul(y, x, h, out=h)
    return h


def other_scan(a: Tensor, b: Tensor, start: Tensor, combine: str, reverse: bool, shifted: bool,
               out: Tensor | None = None) -> Tensor:
    """The same with another combine (never shifted: their adjoints are affine)."""
    out = b.clone() if out is None else out if out is b else out.copy_(b)
    C, step, h = b.shape[1], COMBINES[combine].step, start
    for x, y in zip(_rows(a, C, reverse), _rows(out, C, reverse), strict=True):
        h = y.copy_(step(x, y, h))
    return out


def other_end(a: Tensor, b: Tensor, combine: str, reverse: bool, shifted: bool) -> Tensor:
    C, step = b.shape[1], COMBINES[combine].step
    rows, factors = _rows(b, C, reverse), _rows(a, C, reverse)
    h = rows[0].clone()
    for x, y in zip(factors[1:], rows[1:], strict=True):
        h = step(x, y, h)
    return h


def shift_rows(x: Tensor, edge: Tensor, reverse: bool, out: Tensor | None = None) -> Tensor:
    """x of the row before (reverse: behind), `edge` where there is none."""
    if out is None:
        return shift(x, edge, 1, reverse)
    first, rest, source = _parts(out, x, reverse)
    rest.copy_(source)
    first.copy_(edge)
    return out


def mul_before(d: Tensor, x: Tensor, edge: Tensor, reverse: bool, out: Tensor | None = None) -> Tensor:
    """d times x of the row before.  `out` may be d."""
    out = torch.empty_like(d, memory_format=torch.contiguous_format) if out is None else out
    first, rest, source = _parts(out, x, reverse)
    at, behind, _ = _parts(d, x, reverse)
    torch.mul(behind, source, out=rest)
    torch.mul(at, edge, out=first)
    return out


def _parts(y: Tensor, x: Tensor, reverse: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(the row of y that has none before it, the others, the rows of x before those)."""
    return (y[:, -1], y[:, :-1], x[:, 1:]) if reverse else (y[:, 0], y[:, 1:], x[:, :-1])
