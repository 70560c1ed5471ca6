"""Consts as numbers, and the declared ranges held against the tensors of a call."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from typing import Any

import torch

from mixc.errors import InputError
from mixc.hashing.evaluate import number_of
from mixc.ir.program import Decl, Program, Range
from mixc.runtime.call import Call

Tensor = torch.Tensor


def const_numbers(declared: Program, given: dict[str, Any]) -> dict[str, float]:
    """The consts of a call: numbers, or 0-d CPU float tensors without gradient."""
    found = {}
    for name, value in given.items():
        if isinstance(value, Tensor):
            if value.ndim or value.device.type != "cpu" or not value.is_floating_point() or value.requires_grad:
                about = f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)} on {value.device}"
                grad = " with gradient" if value.requires_grad else ""
                raise InputError(f"`{name}` is a const: expected a number or a 0-d CPU float tensor without gradient, "
                                 f"got a tensor {about}{grad}; what is learned is a `param`")
        elif isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise InputError(f"`{name}` is a const: expected a number, got {type(value).__name__} {value!r:.60}")
        found[name] = float(value)
    return found


def shape(declared: Program, sizes: Any) -> dict[str, int]:
    """Sizes that tiles are chosen for: B, T, H and dims by name; a second name of a dim counts as its first.

    Raises:
        InputError: a dim that the spec lacks, one of size 0, a second size for one that is fixed or has two names."""
    if not isinstance(sizes, Mapping):
        raise InputError(f"`shape`: expected a dict, `dict(B=8, T=4096)`, got {type(sizes).__name__} {sizes!r:.60}")
    known = {d.name: d.size for d in declared.dims}
    for n, size in sizes.items():
        if n not in known and n not in ("B", "T", "H"):
            raise InputError(f"{declared.name} has no dim `{n}`; it has {', '.join(known) or 'none'}")
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise InputError(f"`{n}` must be a whole number from 1 on, got {size!r}")
        if known.get(n) not in (None, size):
            raise InputError(f"`{n}` of {declared.name} is {known[n]}")
    for n, of in declared.root.items():
        if n in sizes and of in sizes and sizes[n] != sizes[of]:
            raise InputError(f"`{n}` of {declared.name} is another name of `{of}`, and {sizes[n]} is not {sizes[of]}")
    return {declared.root[n] if n in known else n: size for n, size in sizes.items()}


def kernel_dtype(name: str) -> None:
    """Raises:
        InputError: kernels take no tensors of this dtype."""
    if name not in ("bf16", "fp16", "fp32"):
        raise InputError(f"`dtype`: expected bf16, fp16 or fp32, got {name!r}")


def ranges(call: Call) -> None:
    """Every `where` of the declarations; waits for the device.

    Raises:
        InputError: a value outside, with the range in the spec's words and the worst value.
    """
    for d in (*call.program.ins, *call.program.params):
        x = (call.ins if d.role == "in" else call.params)[d.name]
        for r in d.ranges:
            _range(call, d, r, x.detach())


def _range(call: Call, d: Decl, r: Range, x: Tensor) -> None:
    y = x if r.of == "x" else x.abs()
    slack = 0.0
    if r.of == "norm":
        axes = [x.ndim - len(d.dims) + d.dims.index(name) for name in r.over]
        y = torch.linalg.vector_norm(x.to(torch.promote_types(x.dtype, torch.float32)), dim=axes)
        slack = 4 * torch.finfo(x.dtype).eps  # a vector scaled to norm 1 is so but for rounding
    for bound, strict, sign in ((r.low, r.low_open, 1), (r.high, r.high_open, -1)):
        if bound is None or not y.numel():
            continue
        limit = number_of(bound, call.sizes, call.consts)
        over = sign * (y - limit) + slack * abs(limit)
        if not bool((over > 0 if strict else over >= 0).all()):
            worst = y.flatten()[torch.nan_to_num(over, nan=-torch.inf).flatten().argmin()].item()
            op = (">" if sign > 0 else "<") + ("" if strict else "=")
            raise InputError(f"`{d.name}`: expected {r.subject(d.name)} {op} {limit:g}, got {worst:g}")
