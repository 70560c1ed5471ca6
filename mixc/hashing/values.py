"""The elementwise ops on exact enough numbers: a row an op, for real and for complex values.

A real value is an `MP`; a complex one a `Complex` of two; a condition an array of bool.
The meaning is that of `ir/ops.py`; derivatives come from `ir/derivatives.py` as programs of the same ops.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from mixc.hashing.mp import MP
from mixc.ir.node import Node

Array = Any
Real = Any  # MP
Value = Any  # Real, Complex, or an array of bool


class Complex:
    """re + i im."""

    __slots__ = ("im", "re")

    def __init__(self, re: Real, im: Real):
        self.re, self.im = re, im

    def map(self, f: Callable[[Array], Array]) -> Complex:
        return Complex(self.re.map(f), self.im.map(f))

    @staticmethod
    def join(f: Callable[[list[Array]], Array], xs: list[Complex]) -> Complex:
        kind = type(xs[0].re)
        return Complex(kind.join(f, [x.re for x in xs]), kind.join(f, [x.im for x in xs]))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(np.broadcast_shapes(self.re.shape, self.im.shape))

    def __neg__(self) -> Complex:
        return Complex(-self.re, -self.im)

    def __add__(self, o: Complex) -> Complex:
        return Complex(self.re + o.re, self.im + o.im)

    def __sub__(self, o: Complex) -> Complex:
        return Complex(self.re - o.re, self.im - o.im)

    def __mul__(self, o: Complex) -> Complex:
        return Complex(self.re * o.re - self.im * o.im, self.re * o.im + self.im * o.re)

    def __truediv__(self, o: Complex) -> Complex:
        size = o.re * o.re + o.im * o.im
        top = self * conj(o)
        return Complex(top.re / size, top.im / size)


def like(x: Real, value: float) -> Real:
    """A number as an array without axes of the kind of x."""
    return type(x).of(np.float64(value))


def where(cond: Array, a: Value, b: Value) -> Value:
    if isinstance(a, np.ndarray):
        return np.where(cond, a, b)
    if isinstance(a, Complex) or isinstance(b, Complex):
        a, b = as_complex(a), as_complex(b)
        return Complex(where(cond, a.re, b.re), where(cond, a.im, b.im))
    return type(a).where(cond, a, b)


def as_complex(x: Value) -> Complex:
    return x if isinstance(x, Complex) else Complex(x, type(x).of(np.zeros(x.shape)))


# ---------------------------------------------------------------- real
def is_nan(x: Real) -> Array:
    return ~x.eq(x)


def maximum(a: Real, b: Real) -> Real:
    return where(b.lt(a) | is_nan(a), a, b)


def minimum(a: Real, b: Real) -> Real:
    return where(a.lt(b) | is_nan(a), a, b)


def absolute(x: Real) -> Real:
    return where(x.lt(like(x, 0.0)), -x, x)


def positive(x: Real) -> Array:
    return like(x, 0.0).lt(x)


def sign(x: Real) -> Real:
    zero = like(x, 0.0)
    return where(zero.lt(x), like(x, 1.0), where(x.lt(zero), like(x, -1.0), x))


def sigmoid(x: Real) -> Real:
    one, e = like(x, 1.0), (-absolute(x)).exp()
    return where(positive(x), one, e) / (one + e)


def tanh(x: Real) -> Real:
    small = (absolute(x) * like(x, -2.0)).expm1()
    return sign(x) * (-small) / (small + like(x, 2.0))


def softplus(x: Real) -> Real:
    return maximum(x, like(x, 0.0)) + (-absolute(x)).exp().log1p()


def logaddexp(a: Real, b: Real) -> Real:
    top = maximum(a, b)
    far = absolute(where(a.eq(b), like(a, 0.0), a - b))  # both may be the same infinity
    return top + (-far).exp().log1p()


def power(x: Real, y: Real) -> Real:
    zero, one = like(x, 0.0), like(x, 1.0)
    return where(y.eq(zero), one, where(x.eq(zero), where(y.lt(zero), like(x, math.inf), zero), (y * x.log()).exp()))


def ipow(x: Value, n: int) -> Value:
    one = like(x.re if isinstance(x, Complex) else x, 1.0)
    y: Value = Complex(one, one - one) if isinstance(x, Complex) else one
    square, left = x, abs(n)
    while left:
        y, square, left = (y * square if left & 1 else y), square * square, left >> 1
    return (as_complex(one) if isinstance(x, Complex) else one) / y if n < 0 else y


def gelu(x: Real) -> Real:
    half, one = like(x, 0.5), like(x, 1.0)
    return half * x * (one + (x * half.sqrt()).erf())


def elu(x: Real) -> Real:
    return where(positive(x), x, minimum(x, like(x, 0.0)).expm1())


def guard(c: Value, d: Value, times: bool = True) -> Value:
    """c * d (or d, if not `times`), and 0 where c is 0."""
    if isinstance(c, Complex) or isinstance(d, Complex):
        c, d = as_complex(c), as_complex(d)
        zero = c.re.eq(like(c.re, 0.0)) & c.im.eq(like(c.im, 0.0))
        y = c * d if times else d
        return Complex(where(zero, like(c.re, 0.0), y.re), where(zero, like(c.re, 0.0), y.im))
    return where(c.eq(like(c, 0.0)), like(c, 0.0), c * d if times else d)


def floordiv(a: Real, b: Real) -> Real:
    return (a / b).floor()


REAL: dict[str, Callable[..., Value]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "neg": lambda x: -x,
    "pow": power,
    "exp": lambda x: x.exp(),
    "log": lambda x: x.log(),
    "log1p": lambda x: x.log1p(),
    "expm1": lambda x: x.expm1(),
    "sqrt": lambda x: x.sqrt(),
    "rsqrt": lambda x: like(x, 1.0) / x.sqrt(),
    "square": lambda x: x * x,
    "abs": absolute,
    "sign": sign,
    "sin": lambda x: x.sincos()[0],
    "cos": lambda x: x.sincos()[1],
    "tanh": tanh,
    "sigmoid": sigmoid,
    "logsigmoid": lambda x: -softplus(-x),
    "softplus": softplus,
    "relu": lambda x: maximum(x, like(x, 0.0)),
    "silu": lambda x: x * sigmoid(x),
    "gelu": gelu,
    "elu": elu,
    "erf": lambda x: x.erf(),
    "maximum": maximum,
    "minimum": minimum,
    "logaddexp": logaddexp,
    "clamp": lambda x, low, high: minimum(maximum(x, low), high),
    "where": where,
    "real": lambda x: x,
    "imag": lambda x: x - x,
    "conj": lambda x: x,
    "stop_gradient": lambda x: x,
    "guard": guard,
    "lt": lambda a, b: a.lt(b),
    "le": lambda a, b: a.le(b),
    "eq": lambda a, b: a.eq(b),
    "ne": lambda a, b: ~a.eq(b),
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "not": lambda a: ~a,
    "mod": lambda a, b: a - b * floordiv(a, b),
    "floordiv": floordiv,
    "live": lambda x: x,
}


# ---------------------------------------------------------------- complex
def conj(x: Complex) -> Complex:
    return Complex(x.re, -x.im)


def modulus(x: Complex) -> Real:
    return (x.re * x.re + x.im * x.im).sqrt()


def _scaled(x: Complex, by: Real) -> Complex:
    return Complex(x.re * by, x.im * by)


def exp(x: Complex) -> Complex:
    s, c = x.im.sincos()
    return _scaled(Complex(c, s), x.re.exp())


def log(x: Complex) -> Complex:
    return Complex(modulus(x).log(), x.im.atan2(x.re))


def sqrt(x: Complex) -> Complex:
    """The root with a real part >= 0."""
    half, size = like(x.re, 0.5), modulus(x)
    a, b = ((size + x.re) * half).sqrt(), ((size - x.re) * half).sqrt()
    return Complex(a, where(x.im.lt(like(x.re, 0.0)), -b, b))


def _one(x: Complex) -> Complex:
    return as_complex(like(x.re, 1.0))


def _times_i(x: Complex) -> Complex:
    return Complex(-x.im, x.re)


def _sin(x: Complex) -> Complex:
    up, down = exp(_times_i(x)), exp(-_times_i(x))
    return _scaled(-_times_i(up - down), like(x.re, 0.5))


def _cos(x: Complex) -> Complex:
    return _scaled(exp(_times_i(x)) + exp(-_times_i(x)), like(x.re, 0.5))


def _sigmoid(x: Complex) -> Complex:
    return _one(x) / (_one(x) + exp(-x))


def _tanh(x: Complex) -> Complex:
    e = exp(x + x)
    return (e - _one(x)) / (e + _one(x))


def _sign(x: Complex) -> Complex:
    size = modulus(x)
    gone = size.eq(like(size, 0.0))
    return Complex(where(gone, size, x.re / size), where(gone, size, x.im / size))


COMPLEX: dict[str, Callable[..., Value]] = {
    **{op: REAL[op] for op in ("add", "sub", "mul", "div", "neg", "square", "stop_gradient", "live")},
    "guard": guard,
    "pow": lambda x, y: exp(y * log(x)),
    "exp": exp,
    "log": log,
    "log1p": lambda x: log(_one(x) + x),
    "expm1": lambda x: exp(x) - _one(x),
    "sqrt": sqrt,
    "rsqrt": lambda x: _one(x) / sqrt(x),
    "abs": modulus,
    "sign": _sign,
    "sin": _sin,
    "cos": _cos,
    "tanh": _tanh,
    "sigmoid": _sigmoid,
    "real": lambda x: x.re,
    "imag": lambda x: x.im,
    "conj": conj,
    "eq": lambda a, b: a.re.eq(b.re) & a.im.eq(b.im),
    "ne": lambda a, b: ~(a.re.eq(b.re) & a.im.eq(b.im)),
}


def elementwise(node: Node, args: list[Value]) -> Value:
    """One elementwise op on values that broadcast by position."""
    if node.op == "to_number":
        return MP.of(args[0].astype(np.float64))
    if node.op == "ipow":
        return ipow(args[0], node.attr("n"))
    if node.op == "where":
        return where(*args)
    if any(isinstance(a, Complex) for a in args):
        return COMPLEX[node.op](*[as_complex(a) for a in args])
    return REAL[node.op](*args)
