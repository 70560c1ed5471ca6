"""Double-double arithmetic on numpy arrays: 32 digits at the speed of vectors.

A number is hi + lo, |lo| <= ulp(hi)/2 (Dekker 1971; Hida, Li and Bailey 2001).  Only +, -, *, / and sqrt of IEEE
doubles decide a result, which every machine rounds alike; numpy's exp, log, ... serve as first guesses of Newton steps.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import mpmath
import numpy as np

Array = Any  # an ndarray
_SPLIT = 134217729.0  # 2 ** 27 + 1
_EXP_STEPS, _TURN_STEPS = 1024, 256


class DD:
    """An array of real numbers of 32 digits."""

    __slots__ = ("_parts", "hi", "lo")

    def __init__(self, hi: Array, lo: Array):
        self.hi, self.lo = hi, lo
        self._parts: tuple[Array, Array] | None = None

    @staticmethod
    def of(x: Array) -> DD:
        """From doubles, exactly."""
        x = np.asarray(x, dtype=np.float64)
        return DD(x, np.zeros_like(x))

    @staticmethod
    def where(cond: Array, a: DD, b: DD) -> DD:
        return DD(np.where(cond, a.hi, b.hi), np.where(cond, a.lo, b.lo))

    def map(self, f: Callable[[Array], Array]) -> DD:
        """A rearrangement of the entries."""
        return DD(f(self.hi), f(self.lo))

    @staticmethod
    def join(f: Callable[[list[Array]], Array], xs: list[DD]) -> DD:
        return DD(f([x.hi for x in xs]), f([x.lo for x in xs]))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.hi.shape)

    def doubles(self) -> Array:
        return self.hi

    # ------------------------------------------------------------ + - * /
    def __neg__(self) -> DD:
        return DD(-self.hi, -self.lo)

    def __add__(self, o: DD) -> DD:
        s = self.hi + o.hi
        t = s - self.hi
        return _normal(s, ((self.hi - (s - t)) + (o.hi - t)) + (self.lo + o.lo))

    def __sub__(self, o: DD) -> DD:
        return self + (-o)

    def _split(self) -> tuple[Array, Array]:
        if self._parts is None:
            t = _SPLIT * self.hi
            high = t - (t - self.hi)
            self._parts = high, self.hi - high
        return self._parts

    def __mul__(self, o: DD) -> DD:
        p = self.hi * o.hi
        (a, b), (c, d) = self._split(), o._split()
        return _normal(p, (((a * c - p) + a * d) + b * c) + b * d + (self.hi * o.lo + self.lo * o.hi))

    def __truediv__(self, o: DD) -> DD:
        q = self.hi / o.hi
        first = DD.of(q)
        rest = self - first * o
        return _normal(q, rest.hi / o.hi)

    # ------------------------------------------------------------ comparisons: arrays of bool
    def lt(self, o: DD) -> Array:
        return (self.hi < o.hi) | ((self.hi == o.hi) & (self.lo < o.lo))

    def le(self, o: DD) -> Array:
        return (self.hi < o.hi) | ((self.hi == o.hi) & (self.lo <= o.lo))

    def eq(self, o: DD) -> Array:
        return (self.hi == o.hi) & (self.lo == o.lo)

    def floor(self) -> DD:
        down = np.floor(self.hi)
        return _normal(down, np.where(down == self.hi, np.floor(self.lo), 0.0))

    # ------------------------------------------------------------ functions
    def sqrt(self) -> DD:
        s = np.sqrt(self.hi)
        first = DD.of(s)
        return _normal(s, (self - first * first).hi / (2 * s))

    def exp(self) -> DD:
        high, low = DD.of(np.clip(self.hi, -800.0, 800.0)), self.lo
        k, r = _reduced(DD(high.hi, np.where(np.abs(self.hi) < 800, low, 0.0)), _constants()["exp_step"])
        j = k % _EXP_STEPS
        table = _constants()["exp_table"]
        base = DD(table.hi[j], table.lo[j])
        y = base + base * _expm1_small(r)
        power = (k - j) // _EXP_STEPS
        y = _normal(np.ldexp(y.hi, power), np.ldexp(y.lo, power))
        over = np.where(np.isnan(self.hi), np.nan, np.where(self.hi > 0, np.inf, 0.0))
        return DD.where(np.abs(self.hi) < 745, y, DD.of(over))

    def expm1(self) -> DD:
        small = np.abs(self.hi) < 3e-4
        x = DD.where(small, self, DD.of(np.zeros_like(self.hi)))
        return DD.where(small, _expm1_small(x), self.exp() - _one(self))

    def log(self) -> DD:
        y = DD.of(np.log(self.hi))
        safe = np.isfinite(y.hi) & (self.hi > 0)
        better = y + (self * (-y).exp() - _one(self))
        return DD.where(safe, better, y)

    def log1p(self) -> DD:
        y = DD.of(np.log1p(self.hi))
        better = y + (self - y.expm1()) * (-y).exp()
        return DD.where(np.isfinite(y.hi), better, y)

    def sincos(self) -> tuple[DD, DD]:
        k, r = _reduced(self, _constants()["turn_step"])
        j = k % _TURN_STEPS
        s, c = (DD(t.hi[j], t.lo[j]) for t in (_constants()["sin_table"], _constants()["cos_table"]))
        r2 = r * r
        sr, cr = r + r * _series(r2, "sin"), _series(r2, "cos")  # sin(r), cos(r) - 1
        return s + (s * cr + c * sr), c + (c * cr - s * sr)

    def atan2(self, x: DD) -> DD:
        """The angle of (x, self)."""
        angle = DD.of(np.arctan2(self.hi, x.hi))
        s, c = angle.sincos()
        better = angle + (self * c - x * s) / (x * x + self * self).sqrt()
        return DD.where(np.isfinite(better.hi), better, angle)

    def erf(self) -> DD:
        """2 x exp(-x^2) / sqrt(pi) * sum_n (2 x^2)^n / (2n+1)!!: every term positive."""
        x = DD(np.clip(self.hi, -9.0, 9.0), np.where(np.abs(self.hi) < 9, self.lo, 0.0))
        square = x * x
        twice, term, total, n = square + square, _one(x), _one(x), 1
        while n < 400 and (np.abs(term.hi) > 1e-33 * np.abs(total.hi)).any():
            term = term * twice / DD.of(np.float64(2 * n + 1))
            total, n = total + term, n + 1
        y = _constants()["two_over_root_pi"] * x * (-square).exp() * total
        return DD.where(np.abs(self.hi) < 9, y, DD.of(np.sign(self.hi)))


def _one(x: DD) -> DD:
    return DD.of(np.ones_like(x.hi))


def _normal(s: Array, e: Array) -> DD:
    """s + e with |e| << |s| as hi + lo; where that is no number, s as it is."""
    hi = s + e
    lo = e - (hi - s)
    good = np.isfinite(lo)
    if not good.all():
        hi, lo = np.where(good, hi, s), np.where(good, lo, 0.0)
    return DD(hi, lo)


def _reduced(x: DD, step: DD) -> tuple[Array, DD]:
    """(k, r) with x = k * step + r, |r| <= step / 2; k is 0 where x is no number."""
    k = np.rint(x.hi / step.hi)
    k = np.where(np.isfinite(k), k, 0.0)
    return k.astype(np.int64), x - DD.of(k) * step


def _expm1_small(x: DD) -> DD:
    """exp(x) - 1 for |x| < 4e-4."""
    return x + x * _series(x, "exp")


def _series(x: DD, of: str) -> DD:
    """c1 x + c2 x^2 + ... for small x: the first four terms in 32 digits, the others in 16."""
    coefficients = _coefficients()[of]
    tail = np.zeros_like(x.hi)
    for c in coefficients[:3:-1]:
        tail = (tail + c.hi) * x.hi
    y = DD.of(tail)
    for c in coefficients[3::-1]:
        y = (y + c) * x
    return y


@cache
def _coefficients() -> dict[str, list[DD]]:
    with mpmath.workdps(60):
        def over(sign: int, start: int, by: int) -> list[DD]:
            return [constant(sign**n / mpmath.factorial(by * n + start)) for n in range(1, 9)]

        return {"exp": over(1, 1, 1), "sin": over(-1, 1, 2), "cos": over(-1, 0, 2)}  # (exp(x) - 1) / x - 1, ...


def constant(value: Any) -> DD:
    """A number of mpmath (of 40 digits or more) as a 0-d DD."""
    hi = float(value)
    with mpmath.workdps(60):
        return DD(np.float64(hi), np.float64(float(value - mpmath.mpf(hi))))


@cache
def _constants() -> dict[str, DD]:
    with mpmath.workdps(60):
        def powers(base: Any, count: int) -> list[Any]:
            found = [mpmath.mpf(1)]
            for _ in range(count - 1):
                found.append(found[-1] * base)
            return found

        def table(values: list[Any]) -> DD:
            found = [constant(v) for v in values]
            return DD(np.array([v.hi for v in found]), np.array([v.lo for v in found]))

        turn = 2 * mpmath.pi / _TURN_STEPS
        circle = powers(mpmath.expj(turn), _TURN_STEPS)
        return {"exp_step": constant(mpmath.log(2) / _EXP_STEPS), "turn_step": constant(turn),
                "exp_table": table(powers(mpmath.mpf(2) ** (mpmath.mpf(1) / _EXP_STEPS), _EXP_STEPS)),
                "sin_table": table([z.imag for z in circle]), "cos_table": table([mpmath.mpf(z.real) for z in circle]),
                "two_over_root_pi": constant(2 / mpmath.sqrt(mpmath.pi))}
