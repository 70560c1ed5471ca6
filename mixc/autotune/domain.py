"""What a variable may still be: a small set, or an interval with a congruence.

Domains are interned, so equal ones are one object and what was once found for them is looked up again.
Bounds beyond ±INF count as none; all arithmetic stays in integers, so nothing rounds.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from math import gcd, inf

INF = 10 ** 60
SMALL = 48  # intervals of at most so many values are kept as sets


class Domain:
    """`values` in ascending order, or None: then every `base + n * step` in [lo, hi]."""

    __slots__ = ("base", "hi", "lo", "members", "step", "values")

    def __init__(self, lo: int, hi: int, step: int, base: int, values: tuple[int, ...] | None):
        self.lo, self.hi, self.step, self.base, self.values = lo, hi, step, base, values
        self.members = frozenset(values) if values is not None else None

    def __contains__(self, x: int) -> bool:
        if self.members is not None:
            return x in self.members
        return _floor(self.lo) <= x <= _ceiling(self.hi) and (x - self.base) % self.step == 0

    def __repr__(self) -> str:
        if self.values is not None:
            return "{" + ", ".join(map(str, self.values)) + "}"
        low, high = ("" if abs(b) >= INF else str(b) for b in (self.lo, self.hi))
        return f"{low} … {high}" + (f" step {self.step}" if self.step > 1 else "")

    @property
    def finite(self) -> bool:
        return self.lo > -INF and self.hi < INF

    @property
    def fixed(self) -> bool:
        return self.values is not None and len(self.values) == 1

    def size(self) -> int:
        if self.values is not None:
            return len(self.values)
        return (self.hi - self.lo) // self.step + 1


def _floor(lo: int) -> float:
    return lo if lo > -INF else -inf


def _ceiling(hi: int) -> float:
    return hi if hi < INF else inf


@lru_cache(maxsize=100_000)
def ints(values: tuple[int, ...]) -> Domain:
    """The set of these values, ascending and without repeats; never empty."""
    step = gcd(*(v - values[0] for v in values))
    return Domain(values[0], values[-1], step or 1, values[0], values)


@lru_cache(maxsize=100_000)
def _range(lo: int, hi: int, step: int, base: int) -> Domain:
    return Domain(lo, hi, step, base, None)


def interval(lo: int, hi: int, step: int = 1, base: int = 0) -> Domain | None:
    """Everything in [lo, hi] that is `base` modulo `step`; None if that is nothing."""
    lo, hi = max(min(lo, INF), -INF), min(max(hi, -INF), INF)
    if step > 1:
        base %= step
        if -INF < lo < INF:
            lo += (base - lo) % step
        if -INF < hi < INF:
            hi -= (hi - base) % step
    else:
        base = 0
    if lo > hi:
        return None
    if lo > -INF and hi < INF and hi - lo < SMALL * step:
        return ints(tuple(range(lo, hi + 1, step)))
    return _range(lo, hi, step, base)


def chosen(values: Iterable[int]) -> Domain | None:
    kept = tuple(sorted(set(values)))
    return ints(kept) if kept else None


def meet(a: Domain, b: Domain) -> Domain | None:
    """The values in both; `a` itself if that is all of a."""
    if a is b:
        return a
    if a.values is not None:
        kept = tuple(v for v in a.values if v in b)
        return a if len(kept) == len(a.values) else ints(kept) if kept else None
    if b.values is not None:
        return meet(b, a)
    step, base = a.step, a.base
    if b.step > 1:
        if a.step == 1:
            step, base = b.step, b.base
        else:  # both congruences, by the Chinese remainder theorem
            g = gcd(a.step, b.step)
            if (b.base - a.base) % g:
                return None
            step = a.step // g * b.step
            k = (b.base - a.base) // g * pow(a.step // g, -1, b.step // g) % (b.step // g) if b.step // g > 1 else 0
            base = a.base + k * a.step
    return interval(max(a.lo, b.lo), min(a.hi, b.hi), step, base)


def within(d: Domain, lo: int, hi: int) -> Domain | None:
    """The part of d in [lo, hi]."""
    if lo <= d.lo and hi >= d.hi:
        return d
    if d.values is not None:
        low, high = _floor(lo), _ceiling(hi)
        kept = tuple(v for v in d.values if low <= v <= high)
        return d if len(kept) == len(d.values) else ints(kept) if kept else None
    return interval(max(lo, d.lo), min(hi, d.hi), d.step, d.base)


def without(d: Domain, x: int) -> Domain | None:
    """d less one value, where that can be said; an inner value of a long interval stays."""
    if d.values is not None:
        if x not in d:
            return d
        kept = tuple(v for v in d.values if v != x)
        return ints(kept) if kept else None
    if x == d.lo:
        return interval(d.lo + 1, d.hi, d.step, d.base)
    return interval(d.lo, d.hi - 1, d.step, d.base) if x == d.hi else d


@lru_cache(maxsize=4096)
def divisors(n: int) -> tuple[int, ...] | None:
    """The positive divisors of n > 0, ascending; None if n is too large to factor here."""
    small, rest, p = [1], n, 2
    while p * p <= rest:
        if p > 100_000:
            return None
        powers = [1]
        while rest % p == 0:
            rest //= p
            powers.append(powers[-1] * p)
        if len(powers) > 1:
            small = [d * q for d in small for q in powers]
        p += 1 if p == 2 else 2
    if rest > 1:
        small += [d * rest for d in small]
    return tuple(sorted(small))
