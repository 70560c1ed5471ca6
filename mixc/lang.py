"""The names of the language, for the bodies of `@mixc.jit` functions.

    from mixc.lang import *

A body is read from its source and never run, so these names do nothing: they are here for editors and linters.
The declarations `In`, `Param`, `State`, `Const` and `Out` are what `@mixc.jit` reads from a signature.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Never

Number = float | complex | str  # a number, or an expression of the language


# ---------------------------------------------------------------- declarations
@dataclass(frozen=True)
class Tensor:
    """What `In` and `Param` share: dims, and the range in which the values lie."""

    dims: tuple[str, ...]
    low: float | str | None = None
    high: float | str | None = None
    where: str | None = None
    complex: bool = False
    unknown: dict[str, Any] = field(default_factory=dict, compare=False)  # what is refused, where the line is known

    def __init__(self, *dims: str, low: float | str | None = None, high: float | str | None = None,
                 where: str | None = None, complex: bool = False, **unknown: Never):
        """
        Args:
            dims: names of the dims after batch, time and head.
            low, high: closed ends of the range, numbers or expressions of consts.
            where: a range in the language's words, `"norm[K](k) <= 1"`.
            complex: whether the values are complex.
        """
        for name, value in dict(dims=dims, low=low, high=high, where=where, complex=complex, unknown=unknown).items():
            object.__setattr__(self, name, value)


class In(Tensor):
    """An input: differs for every token, `[B, T, H, dims...]`."""


class Param(Tensor):
    """Learned, the same for every token, `[H, dims...]`."""


@dataclass(frozen=True)
class State:
    """Carried from token to token, `[B, H, dims...]`; starts at `init` (a number, or an expression), else at 0."""

    dims: tuple[str, ...]
    init: Number | None = None
    unknown: dict[str, Any] = field(default_factory=dict, compare=False)

    def __init__(self, *dims: str, init: Number | None = None, **unknown: Never):
        for name, value in dict(dims=dims, init=init, unknown=unknown).items():
            object.__setattr__(self, name, value)


@dataclass(frozen=True)
class Const:
    """A number that a call may override by keyword; `value` is a number or an expression: `Const("K ** -0.5")`."""

    value: float | str


@dataclass(frozen=True)
class Out:
    """The order of an out's dims: `-> Out("V", "M")`."""

    dims: tuple[str, ...]

    def __init__(self, *dims: str):
        object.__setattr__(self, "dims", dims)


def dims(names: str) -> tuple[Any, ...]:
    """Names of dims for editors: after `K, V = dims("K, V")` one may write `In(K, V)` and `sum[K](x)`."""
    return tuple(names.replace(",", " ").split())


# ---------------------------------------------------------------- the body
class Value:
    """What an expression of a body is to an editor."""

    def __getitem__(self, dims: Any) -> Value:
        return self

    def _with(self, other: Any = None) -> Value:
        return self

    def __bool__(self) -> bool:
        raise TypeError("the names of mixc.lang mean something only in the body of a @mixc.jit function")

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _with
    __matmul__ = __rmatmul__ = __mod__ = __rmod__ = __floordiv__ = __rfloordiv__ = __pow__ = __rpow__ = _with
    __lt__ = __le__ = __gt__ = __ge__ = __neg__ = __pos__ = _with


class Reduction:
    """`sum[K](x)` sums over K, `sum(x)` over all dims of x."""

    def __getitem__(self, dims: Any) -> Reduction:
        return self

    def __call__(self, x: Any, /) -> Value:
        return Value()


class Lag(Reduction):
    """`lag(x, n)`: x of n tokens ago, 0 before the start; `lag[W](x)`: the last W values along a new dim W."""

    def __call__(self, x: Any, n: float = 1, /) -> Value:
        return Value()


def _one(x: Any, /) -> Value:
    return Value()


def _two(a: Any, b: Any, /) -> Value:
    return Value()


sum = mean = max = min = norm = softmax = Reduction()
grad = Reduction()
lag = Lag()
exp = log = log1p = expm1 = sqrt = rsqrt = square = abs = sign = sin = cos = tanh = _one
sigmoid = logsigmoid = softplus = relu = silu = gelu = elu = real = imag = conj = stop_gradient = _one
maximum = minimum = logaddexp = _two
pos = index = Value()
inf: Any = float("inf")
pi: Any = 3.141592653589793


def clamp(x: Any, low: Any, high: Any, /) -> Value:
    """x, or the end of [low, high] that it passes."""
    return Value()


def where(cond: Any, a: Any, b: Any, /) -> Value:
    """a where the condition holds, else b; the branch not taken gets gradient 0."""
    return Value()


def outs(**values: Any) -> Any:
    """Several outs by name: `return mixc.outs(y=q @ S, n=k @ z)`."""
    return values


__all__ = [
    "Const", "In", "Out", "Param", "State", "abs", "clamp", "conj", "cos", "dims", "elu", "exp", "expm1", "gelu",
    "grad", "imag", "index", "inf", "lag", "log", "log1p", "logaddexp", "logsigmoid", "max", "maximum", "mean", "min",
    "minimum", "norm", "outs", "pi", "pos", "real", "relu", "rsqrt", "sigmoid", "sign", "silu", "sin", "softmax",
    "softplus", "sqrt", "square", "stop_gradient", "sum", "tanh", "where",
]
