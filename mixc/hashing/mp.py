"""Arrays of mpmath numbers: as many digits as it takes, exponents without end.

For inputs far from 1, where 1 - sigmoid(60) must keep its digits and exp(1000) is no infinity, it takes many.
"""

from __future__ import annotations

import operator as op
from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np

Array = Any
_CONTEXT: Any = mpmath.mp.clone()  # its own precision, whatever the caller's is
_CONTEXT.dps = _FAR = 480
_NEAR = 34
_TOO_FAR = _CONTEXT.mpf(10) ** 40  # exp of more than this is an infinity or 0


def precision(far: bool) -> Any:
    """A context in which results have the digits that inputs near 1 need, or those `far` from it."""
    return _CONTEXT.workdps(_FAR if far else _NEAR)


def _array(x: Any) -> Array:
    """numpy hands out the entry itself where an array has no axes."""
    return x if isinstance(x, np.ndarray) else np.array(x, dtype=object)


def _entrywise(f: Callable[..., Any], arity: int = 1) -> Callable[..., Array]:
    wrapped = np.frompyfunc(f, arity, 1)
    return lambda *xs: _array(wrapped(*xs))


def _safe_exp(x: Any) -> Any:
    if x > _TOO_FAR:
        return _CONTEXT.inf
    return _CONTEXT.zero if x < -_TOO_FAR else _CONTEXT.exp(x)


def _safe_log(x: Any) -> Any:
    return _CONTEXT.log(x) if x > 0 else -_CONTEXT.inf if x == 0 else _CONTEXT.nan


def _safe_divide(a: Any, b: Any) -> Any:
    if b:
        return a / b
    return _CONTEXT.nan if not a or a != a else _CONTEXT.inf if a > 0 else -_CONTEXT.inf


def _finite(f: Callable[[Any], Any], otherwise: Callable[[Any], Any] = lambda x: _CONTEXT.nan) -> Callable[..., Any]:
    return _entrywise(lambda x: f(x) if _CONTEXT.isfinite(x) and abs(x) < _TOO_FAR else otherwise(x))


_convert = _entrywise(lambda v: _CONTEXT.mpf(float(v)))
_divide = _entrywise(_safe_divide, 2)
_exp, _log = _entrywise(_safe_exp), _entrywise(_safe_log)
_sqrt = _entrywise(lambda v: _CONTEXT.sqrt(v) if v >= 0 else _CONTEXT.nan)
_floor = _finite(lambda v: _CONTEXT.floor(v), lambda v: v)
_sin, _cos = _finite(lambda v: _CONTEXT.sin(v)), _finite(lambda v: _CONTEXT.cos(v))
_atan2 = _entrywise(lambda y, x: _CONTEXT.atan2(y, x), 2)
_erf = _finite(lambda v: _CONTEXT.erf(v) if abs(v) < 40 else _CONTEXT.sign(v), lambda v: _CONTEXT.sign(v))


def _to_double(x: Array) -> Array:
    return np.asarray(np.frompyfunc(float, 1, 1)(x), dtype=np.float64)


def _function(f: Callable[..., Array]) -> Any:
    return lambda *xs: MP(_array(f(*(x.x for x in xs))))


def _compared(f: Callable[[Array, Array], Any]) -> Any:
    return lambda a, b: np.asarray(f(a.x, b.x), dtype=bool)


class MP:
    """An array of real numbers."""

    __slots__ = ("x",)

    def __init__(self, x: Array):
        self.x = x

    @staticmethod
    def of(x: Array) -> MP:
        return MP(_convert(np.asarray(x, dtype=np.float64)))

    @staticmethod
    def where(cond: Array, a: MP, b: MP) -> MP:
        return MP(np.where(cond, a.x, b.x))

    def map(self, f: Callable[[Array], Array]) -> MP:
        return MP(f(self.x))

    @staticmethod
    def join(f: Callable[[list[Array]], Array], xs: list[MP]) -> MP:
        return MP(f([x.x for x in xs]))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.x.shape)

    def doubles(self) -> Array:
        return _to_double(self.x)

    __add__, __sub__, __mul__, __truediv__ = (_function(f) for f in (op.add, op.sub, op.mul, _divide))
    __neg__, floor, sqrt, exp, log, erf = (_function(f) for f in (op.neg, _floor, _sqrt, _exp, _log, _erf))
    expm1, log1p = _function(lambda x: _exp(x) - 1), _function(lambda x: _log(_array(x + 1)))
    atan2 = _function(_atan2)
    lt, le, eq = (_compared(f) for f in (op.lt, op.le, op.eq))

    def sincos(self) -> tuple[MP, MP]:
        return MP(_sin(self.x)), MP(_cos(self.x))
