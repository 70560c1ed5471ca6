"""What emitted torch code calls for scans: [M, C, dims...] tensors, row after row along axis 1.

`shifted`: a row is multiplied by the a of the row that was done before it, and the first by 1 (the adjoint).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from mixc.codegen.torch_prelude import once_made
from mixc.ir.scans import COMBINES, shift

Tensor = torch.Tensor
Chunks = Tensor | Sequence[Tensor]
_SMALL, _MANY = 1 << 13, 384  # values of a row, rows

__all__ = ["affine_end", "affine_scan", "block_scan", "carry", "mul_before", "other_end", "other_scan", "shift_rows"]


def _rows(x: Tensor, C: int, reverse: bool) -> list[Tensor]:
    """Its rows in the order of the scan: to make the views costs a third of a scan."""
    rows = once_made(x, "rows", lambda: list(x.unbind(1)) if x.shape[1] == C and x.stride(1) else [x[:, 0]] * C)
    return rows[::-1] if reverse else rows


def affine_scan(a: Tensor | None, b: Tensor, start: Tensor | None, reverse: bool, shifted: bool,
                out: Tensor | None = None) -> Tensor:
    """h[t] = a[t] * h[t-1] + b[t]; a None: 1; start None: 0.  `out` may be b."""
    if out is None:
        out = b = b.clone()
    C, h = b.shape[1], start
    if a is not None and start is not None and _in_blocks(b) and _affine_of_blocks(a, b, start, reverse, shifted, out):
        return out
    rows = _rows(b, C, reverse)
    places = rows if out is b else _rows(out, C, reverse)
    factors: Sequence[Tensor | None] = [None] * C if a is None else _rows(a, C, reverse)
    if h is None or shifted:
        if h is not None:
            h = torch.add(rows[0], h, out=places[0])
        else:
            h = rows[0] if out is b else places[0].copy_(rows[0])
        rows, places, factors = rows[1:], places[1:], factors if shifted else factors[1:]
    for x, y, z in zip(factors, rows, places, strict=False):
        h = torch.add(h, y, out=z) if x is None else y.addcmul_(x, h) if z is y else torch.addcmul(y, x, h, out=z)
    return out


BLOCK = 16


def _in_blocks(b: Tensor) -> bool:
    """Are rows few values, and many?  Then blocks of them are scanned at once, from what the blocks before them leave:
    a call costs as much for all blocks as for one."""
    return b.shape[1] >= 4 * BLOCK and b.shape[1] % BLOCK == 0 and b[:, 0].numel() <= _SMALL and b.device.type == "cpu"


def _blocked(x: Tensor, shape: Sequence[int]) -> Tensor:
    """[M, blocks, BLOCK, dims...] of [M, C, dims...], or of what is the same in every row."""
    return x.expand(shape).unflatten(1, (-1, BLOCK))


def _blocks(xs: list[Tensor], shape: Sequence[int], reverse: bool) -> list[list[Tensor]]:
    """Of each the rows of all blocks at once, in the order of the scan."""
    order = slice(None, None, -1 if reverse else 1)
    return [once_made(x, ("blocks", *shape), lambda x=x: list(_blocked(x, shape).unbind(2)))[order]  # type: ignore[misc]
            for x in xs]


def _affine_of_blocks(a: Tensor, b: Tensor, start: Tensor, reverse: bool, shifted: bool, out: Tensor) -> bool:
    """`affine_scan`, blocks of rows at once; no: numbers would overflow."""
    factors, rows = _blocks([a, b], b.shape, reverse)
    (places,) = _blocks([out], b.shape, reverse)
    end = rows[0].clone(memory_format=torch.contiguous_format)
    for x, y in zip(factors[:-1] if shifted else factors[1:], rows[1:], strict=True):
        torch.addcmul(y, x, end, out=end)
    ordered = _blocked(a, b.shape)
    inside = (ordered[:, :, 1:] if reverse else ordered[:, :, :-1]) if shifted else ordered
    factor, order = inside.prod(2), slice(None, None, -1 if reverse else 1)
    if not (end.sum() + factor.sum() + start.sum()).isfinite():
        return False
    starts = torch.empty_like(end)
    into = list(starts.unbind(1))[order]
    into[0].copy_(start)
    between = list(factors[-1].unbind(1))[order] if shifted else [None] * len(into)
    for x, y, edge, h, z in zip(*(list(x.unbind(1))[order] for x in (factor, end)), between, into, into[1:], strict=False):
        torch.addcmul(y, x, h, out=z)
        if edge is not None:
            z.mul_(edge)
    h = starts
    if shifted:
        h = torch.add(rows[0], starts, out=places[0])
        rows, places = rows[1:], places[1:]
    for x, y, z in zip(factors, rows, places, strict=False):
        h = torch.addcmul(y, x, h, out=z)
    return True


def _other_of_blocks(a: Tensor | None, b: Tensor, start: Tensor, combine: str, reverse: bool, out: Tensor) -> bool:
    """`other_scan` likewise."""
    moved, join, times = _moved(combine), _JOIN[combine[:3]], COMBINES[combine].times
    (rows, places), order = _blocks([b, out], b.shape, reverse), slice(None, None, -1 if reverse else 1)
    factors = [None] * BLOCK if a is None else _blocks([a], b.shape, reverse)[0]
    factor = None if a is None else _blocked(a, b.shape).prod(2) if times else _blocked(a, b.shape).sum(2)
    if times and factor is not None and not (factor.sum() + start.sum()).isfinite():
        return False
    end, room = rows[0].clone(memory_format=torch.contiguous_format), torch.empty_like(rows[0])
    for x, y in zip(factors[1:], rows[1:], strict=True):
        join(end if x is None else moved(x, end, out=room), y, out=end)
    starts = torch.empty_like(end)
    into, ends = (list(x.unbind(1))[order] for x in (starts, end))
    into[0].copy_(start)
    many = [None] * len(into) if factor is None else list(factor.unbind(1))[order]
    for x, y, h, z in zip(many, ends, into, into[1:], strict=False):
        join(h if x is None else moved(x, h, out=z), y, out=z)
    h = starts
    for x, y, z in zip(factors, rows, places, strict=True):
        h = join(h if x is None else moved(x, h, out=room), y, out=z)
    return True


def affine_end(a: Tensor | None, b: Tensor, reverse: bool, shifted: bool) -> Tensor:
    """[M, dims...]: h of the last row, from 0."""
    C = b.shape[1]
    if a is None:
        return b.sum(1)
    rows, factors = _rows(b, C, reverse), _rows(a, C, reverse)
    h = rows[0].clone()
    for x, y in zip(factors if shifted else factors[1:], rows[1:], strict=False):
        torch.addcmul(y, x, h, out=h)
    return h


def carry(at: Chunks, to: Chunks, a: Tensor, b: Tensor, done: list[Callable[[], None] | None], steps: list[int],
          reverse: bool) -> None:
    """What every chunk leaves, a * (what it received) + b, goes `to` its place, and then its `done` is called.

    `at`, `to`: of every chunk in the order of the loop; or one tensor each, where all chunks have as many rows, in the
    order in memory, each place in `at` being the one in `to` of the chunk before."""
    if isinstance(at, Tensor) and isinstance(to, Tensor):
        n = len(steps)
        if n == 1:
            torch.addcmul(b, a, at, out=to)
        else:
            now, then, A, B = (x.unflatten(0, (n, -1)) for x in (at, to, a, b))
            _carry_rows(now[-1] if reverse else now[0], then, A, B, reverse)
        for finish in filter(None, done):
            finish()
        return
    order = [x.split(steps)[::-1] if reverse else x.split(steps) for x in (a, b)]
    for x, y, h, out, finish in zip(*order, at, to, done, strict=True):
        torch.addcmul(y, x, h, out=out)
        if finish is not None:
            finish()


def _carry_rows(start: Tensor, out: Tensor, a: Tensor, b: Tensor, reverse: bool) -> None:
    """out[j] = a[j] * out[j - 1] + b[j].  Where rows are small, so that calls cost more than work: by numpy, whose calls
    cost a fourth, and of many rows blocks of 16 at once, as chunks are in a segment."""
    n, Q = len(a), 16
    P, small = n // Q, b[0].numel() <= _SMALL
    if small and n > _MANY:
        main, rest = (slice(n - P * Q, n), slice(0, n - P * Q)) if reverse else (slice(0, P * Q), slice(P * Q, n))
        A, B, O = (x[main].unflatten(0, (P, Q)) for x in (a, b, out))
        factor, end = A.prod(1), affine_end(A, B, reverse, False)
        starts = torch.empty_like(end)
        if bool((factor.sum() + end.sum()).isfinite()):
            starts[-1 if reverse else 0] = start
            among = (slice(1, None), slice(None, -1)) if reverse else (slice(None, -1), slice(1, None))
            _carry_rows(start, starts[among[1]], factor[among[0]], end[among[0]], reverse)
            affine_scan(A, B, starts, reverse, False, out=O)
            start, out, a, b = O[0, 0] if reverse else O[-1, -1], out[rest], a[rest], b[rest]
    if small and out.device.type == "cpu":
        _carry_numpy(start.numpy(), out.numpy(), a.numpy(), b.numpy(), reverse)
        return
    h = start
    for x, y, z in list(zip(a.unbind(0), b.unbind(0), out.unbind(0), strict=True))[::-1 if reverse else 1]:
        h = torch.addcmul(y, x, h, out=z)


def _carry_numpy(h: Any, out: Any, a: Any, b: Any, reverse: bool) -> None:
    step = -1 if reverse else 1
    with np.errstate(all="ignore"):
        for x, y, z in zip(a[::step], b[::step], out[::step], strict=True):
            np.multiply(x, h, z)
            h = np.add(z, y, z)


def other_scan(a: Tensor | None, b: Tensor, start: Tensor, combine: str, reverse: bool, shifted: bool,
               out: Tensor | None = None) -> Tensor:
    """The same with another combine (never shifted: their adjoints are affine); a None: it leaves h as it is."""
    out = torch.empty_like(b) if out is None else out
    if _in_blocks(b) and _other_of_blocks(a, b, start, combine, reverse, out):
        return out
    C, h = b.shape[1], start
    rows, places = _rows(b, C, reverse), _rows(out, C, reverse)
    moved, join, room = _moved(combine), _JOIN[combine[:3]], torch.empty_like(rows[0])
    for x, y, z in zip(_rows(a, C, reverse) if a is not None else [None] * C, rows, places, strict=True):
        h = join(h if x is None else moved(x, h, out=room), y, out=z)
    return out


def other_end(a: Tensor | None, b: Tensor, combine: str, reverse: bool, shifted: bool) -> Tensor:
    C = b.shape[1]
    rows, factors = _rows(b, C, reverse), _rows(a, C, reverse) if a is not None else [None] * C
    h, moved, join = rows[0].clone(), _moved(combine), _JOIN[combine[:3]]
    for x, y in zip(factors[1:], rows[1:], strict=True):
        join(h if x is None else moved(x, h, out=h), y, out=h)
    return h


_JOIN: dict[str, Callable[..., Tensor]] = {"max": torch.maximum, "min": torch.minimum, "log": torch.logaddexp}


def _moved(combine: str) -> Callable[..., Tensor]:
    return torch.mul if COMBINES[combine].times else torch.add


def block_scan(A: list[list[Tensor | None]], b: list[Tensor], start: list[Tensor], reverse: bool) -> list[Tensor]:
    """h[t] = A[t] h[t-1] + b[t] of len(b) components, each [M, C, dims...]; None in A is 0."""
    C, h = b[0].shape[1], list(start)
    out = [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in b]
    if _in_blocks(b[0]) and _block_scan_of_blocks(A, b, h, reverse, out):
        return out
    places = list(zip(*(_rows(x, C, reverse) for x in out), strict=True))
    added = list(zip(*(_rows(x, C, reverse) for x in b), strict=True))
    _block_rows(added, [[(j, _rows(a, C, reverse)) for j, a in enumerate(row) if a is not None] for row in A], h, places)
    return out


def _block_rows(added: list[tuple[Tensor, ...]], factors: list[list[tuple[int, list[Tensor]]]], h: list[Tensor],
                places: list[tuple[Tensor, ...]]) -> None:
    for t, (place, rest) in enumerate(zip(places, added, strict=True)):
        for z, y, row in zip(place, rest, factors, strict=True):
            for j, a in row:
                torch.addcmul(y, a[t], h[j], out=z)
                y = z
            if y is not z:
                z.copy_(y)
        h = list(place)


def _block_scan_of_blocks(A: list[list[Tensor | None]], b: list[Tensor], start: list[Tensor], reverse: bool,
                          out: list[Tensor]) -> bool:
    """The same, blocks of rows at once; no: numbers would overflow.

    What a block does to what comes in is found as what it leaves is, in k more slots beside it."""
    k, shape, order = len(b), b[0].shape, slice(None, None, -1 if reverse else 1)
    rows = list(zip(*_blocks(b, shape, reverse), strict=True))
    factors = [[(j, _blocks([a], shape, reverse)[0]) for j, a in enumerate(row) if a is not None] for row in A]
    slab = rows[0][0].shape
    X = [b[0].new_zeros(1 + k, *slab) for _ in b]
    for j, x in enumerate(X):
        x[1 + j] = 1
    then = [torch.empty_like(x) for x in X]
    for t, added in enumerate(rows):
        for i, row in enumerate(factors):
            for n, (j, a) in enumerate(row):
                torch.addcmul(then[i], a[t], X[j], out=then[i]) if n else torch.mul(a[t], X[j], out=then[i])
            then[i] = then[i] if row else then[i].zero_()
            then[i][0] += added[i]
        X, then = then, X
    if not sum(x.sum() for x in (*X, *start)).isfinite():  # type: ignore[union-attr]
        return False
    starts = [torch.empty(slab, dtype=x.dtype, device=x.device) for x in b]
    places = [list(x.unbind(1))[order] for x in starts]
    ends = [list(x.unbind(2))[order] for x in X]  # of every block: [1 + k, M, dims...]
    for place, x in zip(places, start, strict=True):
        place[0].copy_(x)
    for p in range(len(places[0]) - 1):
        for place, end in zip(places, ends, strict=True):
            torch.addcmul(end[p][0], end[p][1], places[0][p], out=place[p + 1])
            for j in range(1, k):
                place[p + 1].addcmul_(end[p][1 + j], places[j][p])
    _block_rows(rows, factors, starts, list(zip(*_blocks(out, shape, reverse), strict=True)))
    return True


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
