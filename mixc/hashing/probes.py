"""Probe inputs: drawn from a key alone, so that every machine and process draws the same.

A value depends on the entity's place in the canonical order, never on its name; its axes come in the canonical order
of the dims and are then put into the declared one.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mixc.hashing.evaluate import BATCH
from mixc.ir.region import Region

Array = Any


def uniform(key: str, shape: Sequence[int]) -> Array:
    """Numbers in (0, 1), 30 bits each."""
    n = math.prod(shape)
    bits = np.frombuffer(hashlib.shake_128(key.encode()).digest(4 * n), dtype="<u4") >> 2
    return ((bits + 0.5) / 2.0**30).reshape(shape)


def draw(key: str, shape: Sequence[int], dims: Sequence[str], r: Region | None, scale: float = 1.0,
         kind: str = "real") -> list[Array]:
    """Doubles of the given shape (batch axes, then `dims`) inside the region and off its ends; [re, im] if complex.

    `scale`: the size of what is unbounded, and of the distance from a single bound; a bounded value with a small
    scale stays near the middle, with a large one near an end; with none all is 0, or as near to it as the bound is."""
    parts = [_draw(f"{key}|{part}", shape, r, scale) for part in ("re", "im")[:1 + (kind == "complex")]]
    for i, (over, bound, _) in enumerate(r.norms if r is not None else ()):
        axes = tuple(BATCH + list(dims).index(d) for d in over)
        size = np.sqrt(_sum_of_squares(parts, axes))
        v = uniform(f"{key}|norm", [1 if k in axes else n for k, n in enumerate(shape)])
        size[size == 0] = 1.0  # where nothing is drawn
        to = bound * (_pushed(v, scale) if scale != 1.0 else 0.2 + 0.75 * v)
        free = i == 0 and r is not None and not r.bounded  # beside other bounds one on a norm only shortens
        parts = [np.where((size > to) | free, x / size * to, x) for x in parts]
    return parts


def _draw(key: str, shape: Sequence[int], r: Region | None, scale: float) -> Array:
    u = uniform(key, shape)
    if r is None or not r.bounded:
        return (3 * u - 1.5) * scale
    if r.low > -math.inf and r.high < math.inf:
        return r.low + (r.high - r.low) * (_pushed(u, scale) if scale != 1.0 else u)
    away = (0.05 + 1.5 * u) * scale
    return r.low + away if r.low > -math.inf else r.high - away


def _pushed(u: Array, scale: float) -> Array:
    """Numbers in (0, 1) towards the ends (scale > 1) or the middle (< 1), by rational arithmetic."""
    w = (u - 0.5) * 2
    w = w * scale / (1 + np.abs(w) * (scale - 1.0)) if scale > 1 else w * scale
    return 0.5 + 0.5 * w * (1 - 2.0**-20)


def _sum_of_squares(parts: list[Array], axes: tuple[int, ...]) -> Array:
    """In the order of the axes, one entry after the other: every machine rounds alike."""
    y = parts[0] * parts[0]
    for x in parts[1:]:
        y = y + x * x
    for axis in axes:
        total = np.take(y, [0], axis)
        for i in range(1, y.shape[axis]):
            total = total + np.take(y, [i], axis)
        y = total
    return y
