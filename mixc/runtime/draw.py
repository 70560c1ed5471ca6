"""Random inputs out of the declared ranges, as `language.md` says that tests draw them.

Two-sided range: uniform.  One-sided: the bound ± |normal|.  A bound on a norm: any direction, scaled
into it; beside other bounds it only shortens.  No range: normal of
variance 1 / (product of the dims).  The closed ends are drawn too.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping

import torch

from mixc.hashing.evaluate import const_values, number_of
from mixc.ir.evaluate import dtype_of
from mixc.ir.program import Decl, Program
from mixc.ir.region import Region, region

Tensor = torch.Tensor


def limits(d: Decl, sizes: Mapping[str, int], consts: Mapping[str, float]) -> Region:
    return region(d, lambda n: number_of(n, sizes, consts), d.dims)


def is_gate(d: Decl) -> bool:
    """What the field's tests judge as a gate: a range of values, or one number a token."""
    return any(r.of != "norm" for r in d.ranges) or (d.role == "in" and not d.dims)


def dim_sizes(program: Program, sizes: Mapping[str, int] | None = None, otherwise: tuple[int, ...] = (5, 7, 3, 4)
              ) -> dict[str, int]:
    """A size for every dim: given ones, those the spec fixes, and different small ones for the rest."""
    found: dict[str, int] = {}
    given, spare = dict(sizes or {}), list(otherwise)
    for d in program.dims:
        if d.alias is not None:
            found[d.name] = found[d.alias]
        elif d.size is not None:
            found[d.name] = d.size
        else:
            found[d.name] = given[d.name] if d.name in given else spare.pop(0) if spare else 2
    return found


def draw(program: Program, *, B: int = 2, T: int = 17, H: int = 2, sizes: Mapping[str, int] | None = None,
         groups: Mapping[str, int] | None = None, dtype: torch.dtype = torch.float32, seed: int = 0,
         gates: float = 1.0, ends: float = 1 / 16, consts: Mapping[str, float] | None = None,
         device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Ins [B, T, G, dims...] and params [G, dims...] by name, in the order of a call.

    Args:
        sizes: of dims; what is not named gets a small size of its own.
        groups: head counts other than H, by name.
        gates: scales what has a one-sided range (its distance from the bound).
        ends: which share of the entries lies at a closed end (0: none).
    """
    full = dim_sizes(program, sizes)
    values = const_values(program.consts, full, consts or {})
    found = {}
    for d in (*program.ins, *program.params):
        lead = ([B, T] if d.role == "in" else []) + [(groups or {}).get(d.name, H)]
        g = generator(seed, d.name)
        x = _draw(d, [*lead, *(full[n] for n in d.dims)], limits(d, full, values), g, gates, ends, dtype)
        found[d.name] = x.to(device)
    return found


def draw_one(d: Decl, shape: list[int], sizes: Mapping[str, int], consts: Mapping[str, float]) -> Tensor:
    """One declaration, from torch's own generator and without its ends: how a module starts its params."""
    g = torch.Generator().manual_seed(int(torch.randint(1 << 62, ())))
    return _draw(d, shape, limits(d, sizes, consts), g, 1.0, 0.0, torch.float64)


def generator(seed: int, name: str) -> torch.Generator:
    """Its own stream for every name, so that another input more does not change the others."""
    return torch.Generator().manual_seed(seed * 1_000_003 + zlib.crc32(name.encode()))


def normal(shape: list[int], seed: int, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal numbers of a stream of their own: cotangents, initial states."""
    return torch.randn(shape, generator=generator(seed, name), dtype=dtype)


def _draw(d: Decl, shape: list[int], lim: Region, g: torch.Generator, gates: float, ends: float,
          dtype: torch.dtype) -> Tensor:
    wide = torch.complex128 if d.kind == "complex" else torch.float64
    target = dtype_of(d.kind, dtype)
    eps = torch.finfo(target).eps
    moduli, norms = [n for n in lim.norms if not n[0]], [n for n in lim.norms if n[0]]
    if moduli:  # abs(x) <= high: any phase
        phase = torch.rand(shape, generator=g, dtype=torch.float64) * 2 * math.pi
        real = Region(0.0, moduli[0][1], False, moduli[0][2], ())
        x = torch.polar(_ranged(shape, real, g, gates, ends, eps), phase)
    elif lim.bounded:
        x = _ranged(shape, lim, g, gates, ends, eps)
    else:
        per_token = math.prod(shape[len(shape) - len(d.dims):])
        x = torch.randn(shape, generator=g, dtype=wide) / math.sqrt(per_token)
    for i, (over, bound, _) in enumerate(norms):
        axes = [len(shape) - len(d.dims) + d.dims.index(n) for n in over]
        size = torch.linalg.vector_norm(x, dim=axes, keepdim=True)
        length = torch.rand(size.shape, generator=g, dtype=torch.float64)
        at_end = torch.rand(size.shape, generator=g, dtype=torch.float64) < 4 * ends  # where delta rules live
        to = bound * torch.where(at_end, 1.0, length)
        free = i == 0 and not moduli and not lim.bounded
        x = torch.where((size > to) | free, x / size.clamp_min(1e-30) * to, x)
    return x.to(target)


def _ranged(shape: list[int], lim: Region, g: torch.Generator, gates: float, ends: float, eps: float) -> Tensor:
    low, high = lim.low, lim.high
    low += 4 * eps * max(abs(low), 1.0) if lim.low_open and low > -math.inf else 0.0
    high -= 4 * eps * max(abs(high), 1.0) if lim.high_open and high < math.inf else 0.0
    if low > -math.inf and high < math.inf:
        x = low + (high - low) * torch.rand(shape, generator=g, dtype=torch.float64)
    else:
        away = gates * torch.randn(shape, generator=g, dtype=torch.float64).abs()
        x = low + away if low > -math.inf else high - away
    where = torch.rand(shape, generator=g, dtype=torch.float64)
    if low > -math.inf and not lim.low_open:
        x = torch.where(where < ends, low, x)
    if high < math.inf and not lim.high_open:
        x = torch.where(where > 1 - ends, high, x)
    return x
