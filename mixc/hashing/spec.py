"""A spec as the hash sees it: entities that can be matched, and their function on probes.

An entity is a declared name: values enter by it (an input, a param, a const, an initial state; the cotangent of an
out or of a final state) and leave by it (an out, a final state, a gradient, the default of a const).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations
from typing import Any

import numpy as np

from mixc.hashing.evaluate import const_values, number_of
from mixc.hashing.probes import draw, uniform
from mixc.hashing.tokens import Port, Ports, Tokens
from mixc.hashing.values import Value, doubles, numbers
from mixc.ir.node import Node, postorder
from mixc.ir.program import Decl, Dim, Program
from mixc.ir.region import Region, region

Array = Any
Elaborate = Callable[[dict[str, int]], tuple[Program, frozenset[str]]]


@dataclass(frozen=True)
class Probe:
    """One drawing of all inputs. `scales`: None (size 1), or the range of the logarithm of each entity's own scale
    (-inf: nothing is drawn but bounds)."""

    fresh: bool
    consts: bool  # varied, or at their defaults
    pos: int
    scales: tuple[float, float] | None = None


PROBES = (Probe(True, False, 0), Probe(False, True, 5), Probe(True, True, 70, (0.0, 1.0)))
# Where a reset every 8, 64 or 100 tokens is, and one every 16, 128 or 200 is not
BEFORE = (0, *(2**n - 1 for n in range(3, 16)), *(m * 10**n - 1 for n in (1, 2, 3) for m in (1, 2, 5)))
# Far from 1, where clamp(x, -50, 50) is not x; with more digits, as 1 - sigmoid(150) has 65 zeros behind the point
FAR = (Probe(True, False, 0, (2.0, 2.0)), Probe(False, True, 10_000_019, (1.5, 2.0)), Probe(True, True, 3, (-2.0, 2.0)))


class View:
    """A spec under one order of its dims, with sizes of their own.

    Attributes:
        entities: the declarations that are matched. attributes: by entity, what must agree besides the function.
    """

    def __init__(self, elaborate: Elaborate, dims: Sequence[Dim], sizes: Sequence[int], T: int, patient: bool = True,
                 alike: Mapping[str, int] | None = None):
        """
        Args:
            elaborate: gives the step for sizes, and its structural consts.
            dims: in the canonical order. sizes: for those of no fixed size, one a group of dims of one size.
            T: tokens; more where lags reach farther back. patient: also where they reach far.
            alike: a colour of every dim; what is drawn does not tell the dims of one colour apart.
        """
        self.alike = alike
        self.order = [d.name for d in dims]
        self.sizes = assign_sizes(dims, sizes)
        self.program, self.structural = elaborate(self.sizes)
        self.entities = [*self.program.ins, *self.program.params, *self.program.consts, *self.program.states,
                         *self.program.outs]
        self.tokens = Tokens(self.program, self.sizes)
        longest = 24 if not patient else 300 if self.program.states else 4096
        self.T = max(T, min(self.tokens.reach + 2, longest))
        self.sees_all = self.tokens.reach + 2 <= self.T
        self.defaults = const_values(self.program.consts, self.sizes, {})
        self.regions = {d.name: region(d, lambda n: number_of(n, self.sizes, self.defaults), self.order)
                        for d in (*self.program.ins, *self.program.params)}

    @cached_property
    def attributes(self) -> list[str]:
        found = []
        for d in self.entities:
            r: Region | None = self.regions.get(d.name)
            dims = sorted(self.order.index(n) for n in d.dims)
            rank = self.order.index
            norms = [(sorted(map(rank, over)), _digits(b), o) for over, b, o in r.norms] if r else []
            found.append(repr((d.role, d.kind, dims, [_digits(r.low), r.low_open, _digits(r.high), r.high_open, norms]
                               if r else None, d.name in self.structural,
                               _digits(self.defaults[d.name]) if d.role == "const" else None)))
        return found

    # ------------------------------------------------------------ values
    def evaluate(self, colourings: Sequence[Sequence[int]], probes: Sequence[Probe] = PROBES, far: bool = False,
                 seed: str = "", watch: Callable[[Node, list[Value]], None] | None = None) -> list[list[bytes]]:
        """By colouring and entity: a digest of all that leaves by it, entities of one colour being given one value."""
        fresh = np.array([p.fresh for _ in colourings for p in probes])
        return self.digests(self.ports(colourings, probes, seed), fresh, len(colourings), watch, far)

    def digests(self, ports: Ports, fresh: Array, parts: int = 1,
                watch: Callable[[Node, list[Value]], None] | None = None, far: bool = False) -> list[list[bytes]]:
        """The same for what `ports` draws; of as many parts of the probes, one after another."""
        results = self.tokens.run(ports, self.T, fresh, watch, far)
        P = len(fresh) // parts
        quantised = {port: self._quantised(port, v, len(fresh)) for port, v in results.items()}
        return [[self._digest(d, quantised, slice(i * P, (i + 1) * P)) for d in self.entities] for i in range(parts)]

    def by_position(self, colours: Sequence[int]) -> bytes:
        """A digest of what the same inputs give at positions that people count to; nothing where it is the same."""
        if all(n.op != "pos" for n in postorder([*self.tokens.outs.values(), *self.tokens.next.values(),
                                                 *(lag.of for lag in self.tokens.lags)])):
            return b""
        ports = {port: np.repeat(x, len(BEFORE), 0) for port, x in self.ports([colours], PROBES[:1], "").items()}
        ports["pos", ""] = numbers(np.array(BEFORE, dtype=np.float64)[:, None] + np.arange(self.T))
        found = [b"".join(v for _, v in sorted(zip(colours, values, strict=True)))
                 for values in self.digests(ports, np.ones(len(BEFORE), dtype=bool), len(BEFORE))]
        return b"" if len(set(found)) == 1 else b"".join(found)

    def _digest(self, d: Decl, results: dict[Port, list[Array]], probes: slice) -> bytes:
        h = hashlib.sha256()
        for role in (d.role, "next"):
            for x in results.get((role, d.name), ()):
                h.update(min(np.ascontiguousarray(x[probes].transpose(order)).tobytes() for order in self._orders(d)))
        return h.digest()

    def _orders(self, d: Decl) -> list[list[int]]:
        """Of the axes of what leaves by a name: those that dims of one colour may stand in."""
        axes = sorted(d.dims, key=self.order.index)
        if self.alike is None or len({self.alike[n] for n in axes}) == len(axes):
            return [list(range(2 + len(axes)))]
        return [[0, 1, *(2 + i for i in p)] for p in permutations(range(len(axes)))
                if all(self.alike[axes[i]] == self.alike[n] for i, n in zip(p, axes, strict=True))]

    def ports(self, colourings: Sequence[Sequence[int]], probes: Sequence[Probe], seed: str) -> Ports:
        """What enters by every name, probe after probe."""
        ports: Ports = {}
        for i, d in enumerate(self.entities):
            roles = {"out": ("out",), "state": ("state", "next")}.get(d.role, (d.role,))
            for role in roles:
                drawn = [self._drawn(d, role, c[i], n, p, seed) for c in colourings for n, p in enumerate(probes)]
                ports[role, d.name] = numbers(*(np.concatenate(x) for x in zip(*drawn, strict=True)))
        start = np.array([p.pos for _ in colourings for p in probes], dtype=np.float64)
        ports["pos", ""] = numbers(start[:, None] + np.arange(self.T))
        return ports

    def _drawn(self, d: Decl, role: str, colour: int, n: int, probe: Probe, seed: str) -> list[Array]:
        """[1, tokens or 1, dims...] in the declared order of dims."""
        key = f"{seed}|{role}|{colour}|{n}"
        if d.role == "const":
            varied = probe.consts and d.name not in self.structural
            sign = -1.0 if self.defaults[d.name] < 0 else 1.0
            return [np.full((1, 1), sign * (0.3 + uniform(key, [1])[0]) if varied else self.defaults[d.name])]
        scale = 1.0
        if probe.scales is not None:
            low, high = probe.scales
            if high == -math.inf:
                scale = 0.0
            else:
                scale = 2.0 ** round((low + (high - low) * float(uniform(key + "|scale", [1])[0])) * 3.25)  # 10^x or so
        dims = sorted(d.dims, key=self.order.index)
        shape = [1, self.T if d.role in ("in", "out") else 1, *(self.sizes[n] for n in dims)]
        r = self.regions[d.name] if role in ("in", "param") else None
        parts = draw(key, shape, dims, r, scale if role not in ("out", "next") else 1.0, d.kind)
        if self.alike is not None:
            parts = [_symmetric(x, [self.alike[n] for n in dims]) for x in parts]
        return [x.transpose(0, 1, *[2 + dims.index(n) for n in d.dims]) for x in parts]

    def _quantised(self, port: Port, x: Value, P: int) -> list[Array]:
        """What leaves by a port, its dims in the canonical order."""
        d = self.program.decl(port[1])
        x = x.transpose(0, 1, *[2 + d.dims.index(n) for n in sorted(d.dims, key=self.order.index)])
        parts = [doubles(x, part) for part in ("real", "imag")[:1 + (d.kind == "complex")]]
        return [a for v in parts for a in quantised(np.broadcast_to(v, (P, *v.shape[1:])))]


def _symmetric(x: Array, colours: Sequence[int]) -> Array:
    """An array [.., .., axes...] that stays the same when axes of one colour are exchanged."""
    at = list(np.indices(x.shape[2:], sparse=False))
    for c in set(colours):
        axes = [i for i, other in enumerate(colours) if other == c]
        if len(axes) > 1:
            for i, rank in zip(axes, np.sort(np.stack([at[i] for i in axes]), 0), strict=True):
                at[i] = rank
    return x[(slice(None), slice(None), *at)]


def assign_sizes(dims: Sequence[Dim], sizes: Sequence[int]) -> dict[str, int]:
    roots, spare, found = _roots(dims), list(sizes), dict[str, int]()
    fixed = {roots[d.name]: d.size for d in dims if d.size is not None}
    for d in dims:
        root = roots[d.name]
        if root not in found:
            found[root] = fixed.get(root) or (spare.pop(0) if spare else 2 + len(found))
    return {d.name: found[roots[d.name]] for d in dims}


def _roots(dims: Sequence[Dim]) -> dict[str, str]:
    """Of every dim, one name for all of its size: of equal declared sizes, or aliases of one."""
    sizes, found = {d.name: d.size for d in dims}, {}
    for d in dims:
        root = d.alias or d.name
        found[d.name] = root if sizes[root] is None else next(e.name for e in dims if e.size == sizes[root])
    return found


def one_size(dims: Sequence[Dim]) -> dict[str, tuple[str, ...]]:
    """Of every dim, all names of its size, its own included."""
    roots = _roots(dims)
    return {d: tuple(e for e in roots if roots[e] == roots[d]) for d in roots}


# ---------------------------------------------------------------- coarse values
BITS = 30  # 9 digits of the 34 that are computed: rounding errors move nothing, one part in a million does
_FLOOR = 2.0**-56


def quantised(v: Array) -> list[Array]:
    """Integers that rounding errors do not change: mantissa and exponent of every double, and what is none."""
    m, e = np.frexp(np.where(np.abs(v) < _FLOOR, 0.0, v))
    odd = ~np.isfinite(v)
    m = np.rint(np.where(odd, 0.0, m) * 2.0**BITS)
    carry = np.abs(m) == 2.0**BITS
    m, e = np.where(carry, m / 2, m), np.where(carry, e + 1, e)
    kind = np.where(np.isnan(v), 3, np.where(v == np.inf, 1, np.where(v == -np.inf, 2, 0)))
    return [m.astype("<i8"), np.where(odd | (m == 0), 0, e).astype("<i4"), kind.astype("<i1")]


def _digits(x: float) -> tuple[int, int] | str:
    """A number as the hash sees it."""
    if not np.isfinite(x):
        return repr(float(x))
    m, e = np.frexp(x)
    return int(np.rint(m * 2.0**BITS)), int(e)
