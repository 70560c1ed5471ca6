"""What emitted torch code calls besides torch: operations on [M, C, ...] tensors that torch lacks.

M counts (chunk, sequence, head) triples, axis 1 of a row tensor is the time inside the chunk.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from mixc.ir.evaluate import reach_mask, running, softmax, span

Tensor = torch.Tensor
T = TypeVar("T")
LOG2E = 1 / math.log(2)


__all__ = ["compare", "decay", "decay_of", "each_token", "exp_by_two", "fold", "guard", "keep", "norm", "number", "place", "running_decay",
           "running_product", "running_sum", "select", "sigmoid_by_two", "softmax", "span_decay", "span_parts", "span_product",
           "span_sum"]


@functools.lru_cache(256)
def _number(value: float, decision: bool, dtype: torch.dtype, device: torch.device | None) -> Tensor:
    with torch.inference_mode(False):  # it is kept, for calls in any mode
        return torch.full((), value, dtype=torch.bool if decision else dtype, device=device)


def number(value: float, dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
    """A number, or a decision, where torch wants a tensor: nobody writes to it."""
    return _number(value, isinstance(value, bool), dtype, device)


def running_sum(x: Tensor, axis: int, reverse: bool, exclusive: bool) -> Tensor:
    """Sums over the rows up to each (reverse: from each on; exclusive: without its own), fp32 summed in fp64.

    In fp64 nothing is subtracted, so no digits are lost beside very negative gates.  Of vectors ([M, C, D] or [M, D, C]) it
    is a product with a triangle of ones, which subtracts nothing and runs at the speed of products."""
    if x.dtype == torch.float64:
        return running(x, axis, torch.cumsum, 0.0, reverse, exclusive)
    if x.ndim == 3 and x.device.type == "cpu":
        ones = _triangle(x.shape[axis], reverse, exclusive, x.dtype)
        return torch.matmul(ones, x) if axis == 1 else torch.matmul(x, ones.mT)
    return _sums(x, axis, reverse, exclusive).to(x.dtype)


@functools.cache
def _triangle(rows: int, reverse: bool, exclusive: bool, dtype: torch.dtype) -> Tensor:
    """[t, s]: 1 where the sum at row t takes in row s."""
    ones = torch.ones(rows, rows, dtype=dtype)
    return ones.triu(int(exclusive)) if reverse else ones.tril(-int(exclusive))


def _sums(x: Tensor, axis: int, reverse: bool, exclusive: bool) -> Tensor:
    total = torch.cumsum(x, axis, dtype=torch.float64)
    if reverse:
        total = total.narrow(axis, x.shape[axis] - 1, 1) - total
        return total if exclusive else total.add_(x)
    return total.sub_(x) if exclusive else total


def decay(g: Tensor, out: Tensor | None = None) -> Tensor:
    """exp of g <= 0.  Base 2, because torch's exp2 takes a third of the time of its exp."""
    if g.dtype == torch.float64:
        return torch.exp(g, out=out)
    return torch.mul(g, LOG2E, out=out).exp2_()


def exp_by_two(x: Tensor) -> Tensor:
    return torch.exp2(x * LOG2E)


def sigmoid_by_two(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp2(x * -LOG2E))


def decay_of(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """exp of a * b <= 0, a being small."""
    if b.dtype == torch.float64:
        return torch.mul(a, b, out=out).exp_()
    return torch.mul(a * LOG2E, b, out=out).exp2_()


def running_decay(g: Tensor, axis: int, reverse: bool, exclusive: bool) -> Tensor:
    """exp of the running sum.  Base 2, because torch's exp is some 60 times slower where its result underflows."""
    if g.dtype == torch.float64:
        return torch.exp(running_sum(g, axis, reverse, exclusive))
    return torch.exp2(_sums(g, axis, reverse, exclusive).mul_(LOG2E).to(g.dtype))


def running_product(x: Tensor, axis: int, reverse: bool, exclusive: bool) -> Tensor:
    return running(x, axis, torch.cumprod, 1.0, reverse, exclusive)


def span_parts(g: Tensor, reach: str) -> Tensor:
    """[M, 4, C]: what `span_decay` subtracts: running sums of g, as two fp32 parts each, for rows t and s.

    The sum is formed in fp64 and split, so that differences keep every digit.  (fp64: g itself.)"""
    if g.dtype == torch.float64:
        return g[:, None]
    scaled = g.double().mul_(LOG2E)
    s = torch.cumsum(scaled, 1)
    both = torch.stack((s - scaled if reach == "excl" else s, s), 1)
    high = both.to(g.dtype)
    return torch.cat((high, both.sub_(high).to(g.dtype)), 1)


def span_decay(parts: Tensor, reach: str, out: Tensor | None = None) -> Tensor:
    """[M, t, s]: exp(g[s+1] + ... + g[t]) (reach "excl": to t-1), 0 where t does not reach s.

    Base 2, because torch's exp is some 60 times slower where its result underflows."""
    if parts.dtype == torch.float64:
        L = torch.exp(span_sum(parts[:, 0], reach))
        return L if out is None else out.copy_(L)
    t, s, t_low, s_low = parts.unbind(1)
    L = torch.sub(t[:, :, None], s[:, None, :], out=out)
    L.add_(t_low[:, :, None]).sub_(s_low[:, None, :])
    return L.exp2_().tril_(0 if reach == "incl" else -1)


def span_sum(x: Tensor, reach: str) -> Tensor:
    """[M, t, s, ...]: x[s+1] + ... + x[t] (reach "excl": to t-1), -inf where t does not reach s.

    Differences of running sums in two parts, as in `span_parts`: a sum for every pair takes 16 times as long."""
    if x.dtype == torch.float64:
        return span(x, 1, reach, torch.cumsum, 0.0, -math.inf)
    s = torch.cumsum(x, 1, dtype=torch.float64)
    t = s - x if reach == "excl" else s
    t_high, s_high = t.to(x.dtype), s.to(x.dtype)
    t_low, s_low = (t - t_high).to(x.dtype), (s - s_high).to(x.dtype)
    L = (t_high[:, :, None] - s_high[:, None]).add_(t_low[:, :, None]).sub_(s_low[:, None])
    seen = reach_mask(x.shape[1], reach, x.device).reshape(*L.shape[1:3], *[1] * (x.ndim - 2))
    return L.masked_fill_(~seen, -math.inf)


def span_product(x: Tensor, reach: str) -> Tensor:
    """[M, t, s, ...]: the product of the same rows, 0 where t does not reach s."""
    return span(x, 1, reach, torch.cumprod, 1.0, 0.0)


def keep(x: Tensor, which: str, t: int, s: int) -> Tensor:
    """x where s <= t (incl), s < t (strict) or s == t (diag) along its axes t and s, else 0."""
    seen = reach_mask(x.shape[t], which, x.device)
    shape = [1] * x.ndim
    shape[t] = shape[s] = x.shape[t]
    seen = (seen if t < s else seen.mT).reshape(shape)
    return torch.where(seen, x, torch.zeros((), dtype=x.dtype, device=x.device))


def guard(c: Tensor, d: Tensor | float) -> Tensor:
    """c * d, and 0 where the cotangent c is 0."""
    zero = torch.zeros((), dtype=c.dtype, device=c.device)
    return torch.where(c == 0, zero, c * d)


def each_token(x: Tensor, text: str = "", view: Callable[[Tensor], Tensor] | None = None) -> list[Tensor]:
    """x[0], x[1], ..., or of a view of x, which `text` says: to make each costs a third of a call."""
    return once_made(x, ("tokens", text), lambda: list((x if view is None else view(x)).unbind(0)))


def once_made(x: Tensor, what: object, make: Callable[[], T]) -> T:
    """What is made of a tensor.  Scratch, which every segment uses again, keeps it."""
    if not hasattr(x, "mixc_scratch"):
        return make()
    made: dict[object, Any] = x.__dict__.setdefault("mixc_made", {})
    if what not in made:
        made[what] = make()
    return made[what]  # type: ignore[no-any-return]


def compare(op: str, a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """a < b, or another comparison, as `select` wants it: on a CPU 1 or 0 as integers, in the memory of `out`."""
    if out.device.type != "cpu" or out.dtype not in _BITS:
        return getattr(torch, op)(a, b)
    kind, ones = _BITS[out.dtype]
    getattr(torch, op)(a, b, out=out)  # 1.0 or 0.0: two bits of the exponent's are left
    return out.view(kind).bitwise_right_shift_(ones)


_BITS = {torch.float32: (torch.int32, 29), torch.float64: (torch.int64, 61)}


def select(cond: Tensor, a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """a where cond, else b, as integers whose arithmetic is exact: torch's where takes ten times as long on a CPU.

    `cond`: bool, or what `compare` gives.  `out` may be a or b."""
    if out.dtype not in _BITS or out.device.type != "cpu" or a.dtype != b.dtype or a.dtype != out.dtype:
        return torch.where(cond, a, b, out=out)
    kind, _ = _BITS[out.dtype]
    yes = cond if cond.dtype == kind else cond.to(kind)
    to, x, y = out.view(kind), a.view(kind), b.view(kind)
    if y.ndim == 0 and not y.item():
        torch.mul(x, yes, out=to)
    elif x.ndim == 0 and not x.item():
        torch.addcmul(y, y, yes, value=-1, out=to)
    elif out.data_ptr() == b.data_ptr():  # b is overwritten first
        to.sub_(x)
        to.addcmul_(to, yes, value=-1).add_(x)
    else:
        torch.sub(x.expand_as(to), y, out=to).mul_(yes).add_(y)
    return out


def norm(x: Tensor, axes: list[int]) -> Tensor:
    return torch.linalg.vector_norm(x, dim=axes)


def place(x: Tensor, i: int, size: int) -> Tensor:
    """[M, size, ...]: x at entry i, 0 elsewhere."""
    out = x.new_zeros(x.shape[0], size, *x.shape[1:])
    out[:, i] = x
    return out


def fold(x: Tensor, axes: list[int], batch: int, rows: int) -> Tensor:
    """x as one batch of matrices: axes in the given order, the first `batch` joined to M, `rows` to its rows."""
    x = x.permute(0, *axes)
    lead = math.prod(x.shape[:1 + batch])
    mid = math.prod(x.shape[1 + batch:1 + batch + rows])
    return x.reshape(lead, mid, math.prod(x.shape[1 + batch + rows:]))
