"""The elementwise ops on arrays of mpmath numbers, real and complex: a row an op.

A value is an array of numbers of as many digits as it takes, with exponents without end, or of bools.  The meaning is
that of `ir/ops.py`, infinities included; derivatives come from `ir/derivatives.py` as programs of the same ops.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np

from mixc.ir.node import Node

Value = Any  # an array
Number = Any  # of `_CONTEXT`
_CONTEXT: Any = mpmath.mp.clone()  # its own precision, whatever the caller's is
_CONTEXT.dps = _FAR = 480
_NEAR = 34
_TOO_FAR = _CONTEXT.mpf(10) ** 40  # exp of more than this is an infinity or 0
ZERO, _INF, _NAN = _CONTEXT.zero, _CONTEXT.inf, _CONTEXT.nan


def precision(far: bool) -> Any:
    """A context in which results have the digits that inputs near 1 need, or those `far` from it: where 1 - sigmoid(60)
    must keep its digits, and exp(1000) is no infinity."""
    return _CONTEXT.workdps(_FAR if far else _NEAR)


def numbers(x: Any, imaginary: Any = None) -> Value:
    """From doubles, exactly."""
    x = np.asarray(x, dtype=float)
    return _real(x) if imaginary is None else _joined(x, np.asarray(imaginary, dtype=float))


def doubles(x: Value, part: str = "real") -> Value:
    with np.errstate(all="ignore"):
        return np.frompyfunc(lambda v: float(getattr(v, part)), 1, 1)(x).astype(np.float64)


_real = np.frompyfunc(lambda v: _CONTEXT.mpf(float(v)), 1, 1)
_joined = np.frompyfunc(lambda re, im: _CONTEXT.mpc(float(re), float(im)), 2, 1)


# ---------------------------------------------------------------- of one number
def _is_complex(*xs: Number) -> bool:
    return any(isinstance(x, _CONTEXT.mpc) for x in xs)


def _divide(a: Number, b: Number) -> Number:
    if b:
        return a / b
    if _is_complex(a, b):
        return _CONTEXT.mpc(_NAN, _NAN)
    return _NAN if not a or a != a else _INF if a > 0 else -_INF


def _exp(x: Number) -> Number:
    if _is_complex(x):
        return _exp(x.real) * _CONTEXT.mpc(_cos(x.imag), _sin(x.imag))
    if x > _TOO_FAR:
        return _INF
    return ZERO if x < -_TOO_FAR else _CONTEXT.exp(x)


def _log(x: Number) -> Number:
    if _is_complex(x):
        return _CONTEXT.mpc(_log(abs(x)), _CONTEXT.atan2(x.imag, x.real))
    return _CONTEXT.log(x) if x > 0 else -_INF if x == 0 else _NAN


def _sqrt(x: Number) -> Number:
    return _CONTEXT.sqrt(x) if _is_complex(x) or x >= 0 else _NAN


def _finite(f: Callable[[Number], Number], otherwise: Callable[[Number], Number] = lambda x: _NAN
            ) -> Callable[[Number], Number]:
    return lambda x: f(x) if _is_complex(x) or (_CONTEXT.isfinite(x) and abs(x) < _TOO_FAR) else otherwise(x)


_sin, _cos = _finite(_CONTEXT.sin), _finite(_CONTEXT.cos)
_floor = _finite(_CONTEXT.floor, lambda x: x)
_erf = _finite(lambda x: _CONTEXT.erf(x) if abs(x) < 40 else _CONTEXT.sign(x), _CONTEXT.sign)


def _sigmoid(x: Number) -> Number:
    return _divide(1, 1 + _exp(-x))


def _tanh(x: Number) -> Number:
    e = _exp(-2 * (x if _is_complex(x) else abs(x)))
    return (1 if _is_complex(x) else _sign(x)) * _divide(1 - e, 1 + e)


def _sign(x: Number) -> Number:
    if _is_complex(x):
        return x / abs(x) if x else x
    return 1 if x > 0 else -1 if x < 0 else x


def _softplus(x: Number) -> Number:
    return _maximum(x, ZERO) + _log(1 + _exp(-abs(x)))


def _logaddexp(a: Number, b: Number) -> Number:
    return _maximum(a, b) + _log(1 + _exp(-abs(ZERO if a == b else a - b)))  # both may be the same infinity


def _power(x: Number, y: Number) -> Number:
    if x or _is_complex(x, y):
        return _exp(y * _log(x)) if y else 1
    return _INF if y < 0 else ZERO if y else 1


def _maximum(a: Number, b: Number) -> Number:
    return a if b < a or a != a else b


def _minimum(a: Number, b: Number) -> Number:
    return a if a < b or a != a else b


def _mod(a: Number, b: Number) -> Number:
    return a - b * _floor(_divide(a, b))


# ---------------------------------------------------------------- of arrays
_EACH: dict[str, Callable[..., Number]] = {
    "div": _divide,
    "pow": _power,
    "ipow": lambda x, n: _divide(1, x ** -n) if n < 0 else x ** n,
    "exp": _exp,
    "log": _log,
    "log1p": lambda x: _log(1 + x),
    "expm1": lambda x: _exp(x) - 1,
    "sqrt": _sqrt,
    "rsqrt": lambda x: _divide(1, _sqrt(x)),
    "abs": lambda x: abs(x),
    "sign": _sign,
    "sin": lambda x: _sin(x),
    "cos": lambda x: _cos(x),
    "tanh": _tanh,
    "sigmoid": _sigmoid,
    "logsigmoid": lambda x: -_softplus(-x),
    "softplus": _softplus,
    "relu": lambda x: _maximum(x, ZERO),
    "silu": lambda x: x * _sigmoid(x),
    "gelu": lambda x: x / 2 * (1 + _erf(x * _CONTEXT.sqrt(0.5))),
    "elu": lambda x: x if x > 0 else _exp(_minimum(x, ZERO)) - 1,
    "erf": lambda x: _erf(x),
    "maximum": _maximum,
    "minimum": _minimum,
    "logaddexp": _logaddexp,
    "clamp": lambda x, low, high: _minimum(_maximum(x, low), high),
    "real": lambda x: x.real,
    "imag": lambda x: x.imag,
    "conj": lambda x: x.conjugate(),
    "guard": lambda c, d: c * d if c else ZERO,
    "mod": _mod,
    "floordiv": lambda a, b: _floor(_divide(a, b)),
    "to_number": lambda x: _CONTEXT.mpf(bool(x)),
}

OPS: dict[str, Callable[..., Value]] = {
    **{op: np.frompyfunc(f, f.__code__.co_argcount, 1) for op, f in _EACH.items()},
    **{op: getattr(operator, op) for op in ("add", "sub", "mul", "neg", "lt", "le", "eq", "ne")},
    "square": lambda x: x * x,
    "and": operator.and_,
    "or": operator.or_,
    "not": operator.invert,
    "where": np.where,
    "stop_gradient": lambda x: x,
    "live": lambda x: x,
}


def elementwise(node: Node, args: list[Value]) -> Value:
    """One elementwise op on values that broadcast by position."""
    return OPS[node.op](*args, *([node.attr("n")] if node.op == "ipow" else []))
