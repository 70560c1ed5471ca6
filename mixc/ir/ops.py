"""The language on one screen: one table, a row an operation.

A row says how many arguments an op takes, which dims and kind its value has, how it is
written in torch and in Triton (elementwise ops: templates with `{0}` for the first argument),
and in one line what it means.  Derivatives stand in `ir/derivatives.py`, one rule an op; the
evaluator of everything that is not elementwise in `ir/evaluate.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mixc.ir.node import Node

Args = tuple["Node", ...]
Attrs = dict[str, Any]


@dataclass(frozen=True)
class Op:
    """One row. `linear_in`: the positions of the arguments it is linear in, each alone; `jointly`: in all of these
    together."""

    arity: int | None
    dims: Callable[[Args, Attrs], tuple[str, ...]]
    kind: Callable[[Args, Attrs], str]
    doc: str
    torch: str | None = None
    triton: str | None = None
    linear_in: tuple[int, ...] = ()
    jointly: tuple[int, ...] = ()

    @property
    def elementwise(self) -> bool:
        return self.torch is not None


# ---------------------------------------------------------------- dims rules
def union(args: Args, attrs: Attrs) -> tuple[str, ...]:
    """Broadcast by name: every dim of the arguments, in order of first appearance."""
    return tuple(dict.fromkeys(d for a in args for d in a.dims))


def declared(args: Args, attrs: Attrs) -> tuple[str, ...]:
    return tuple(attrs["dims"])


def reduced(args: Args, attrs: Attrs) -> tuple[str, ...]:
    missing = set(attrs["over"]) - set(args[0].dims)
    if missing:
        raise TypeError(f"no dim {sorted(missing)} in {args[0]}")
    return tuple(d for d in args[0].dims if d not in attrs["over"])


def kept(args: Args, attrs: Attrs) -> tuple[str, ...]:
    a, b = args
    out = tuple(attrs["out"])
    summed = {d for d in (*a.dims, *b.dims) if d not in out}
    if not summed <= set(a.dims) & set(b.dims) or set(out) - set(a.dims) - set(b.dims):
        raise TypeError(f"cannot contract {a} with {b} to {out}")
    return out


def same(args: Args, attrs: Attrs) -> tuple[str, ...]:
    return args[0].dims


def renamed(args: Args, attrs: Attrs) -> tuple[str, ...]:
    names = dict(attrs["to"])
    dims = tuple(names.get(d, d) for d in args[0].dims)
    if len(set(dims)) != len(dims):
        raise TypeError(f"rename {names} repeats a dim of {args[0]}")
    return dims


def picked(args: Args, attrs: Attrs) -> tuple[str, ...]:
    return tuple(d for d in args[0].dims if d != attrs["dim"])


def expanded(args: Args, attrs: Attrs) -> tuple[str, ...]:
    return (*attrs["dims"], *(d for d in args[0].dims if d not in attrs["dims"]))


def flattened(args: Args, attrs: Attrs) -> tuple[str, ...]:
    """The dims that stand in one at the place of the first."""
    of, dims = attrs["of"], args[0].dims
    if not {*of} <= {*dims}:
        raise TypeError(f"no dims {of} in {args[0]}")
    return tuple("*".join(of) if d == of[0] else d for d in dims if d not in of[1:])


def unflattened(args: Args, attrs: Attrs) -> tuple[str, ...]:
    of, dims = attrs["of"], args[0].dims
    if "*".join(of) not in dims:
        raise TypeError(f"no dim of {of} in {args[0]}")
    return tuple(x for d in dims for x in (of if d == "*".join(of) else (d,)))


def placed(args: Args, attrs: Attrs) -> tuple[str, ...]:
    return (attrs["dim"], *args[0].dims)


def pairwise(args: Args, attrs: Attrs) -> tuple[str, ...]:
    """[_t, ...] to [_t, _s, ...]."""
    if not args[0].dims or args[0].dims[0] != "_t":
        raise TypeError(f"{args[0]} has no time axis in front")
    return ("_t", "_s", *args[0].dims[1:])


def over_rows(args: Args, attrs: Attrs) -> tuple[str, ...]:
    """Broadcast by name behind the time axis."""
    return ("_t", *(d for d in union(args, attrs) if d != "_t"))


def spanned(args: Args, attrs: Attrs) -> tuple[str, ...]:
    x, y, g = args
    out = tuple(attrs["out"])
    have = {*x.dims, *y.dims}
    if "_t" not in g.dims or not {*g.dims, *out, "_s"} - {"_l"} <= have:
        raise TypeError(f"cannot contract {x} with {y} under the decay {g} to {out}")
    return out


def crossed(args: Args, attrs: Attrs) -> tuple[str, ...]:
    *values, g = args
    if not {"_s", *g.dims} <= {d for a in values for d in a.dims}:
        raise TypeError(f"cannot contract {values} under the decay {g}")
    return g.dims


def solved(args: Args, attrs: Attrs) -> tuple[str, ...]:
    L, y = args
    columns = {"_s", *(s for _, s, _ in attrs.get("rows", ()))}
    if not {"_t", "_s"} <= set(L.dims) or not set(L.dims) - columns <= set(y.dims):
        raise TypeError(f"cannot solve {L} for {y}")
    return y.dims


def span_solved(args: Args, attrs: Attrs) -> tuple[str, ...]:
    A, strength, y, g = args
    columns = {"_s", *(s for _, s, _ in attrs.get("rows", ()))}
    if not {"_t", "_s"} <= {*A.dims} or {*A.dims, *strength.dims, *g.dims} - columns - {*y.dims} or "_s" in y.dims:
        raise TypeError(f"cannot solve {A} of strength {strength} under the decay {g} for {y}")
    return y.dims


def scanned(args: Args, attrs: Attrs) -> tuple[str, ...]:
    dims = ("_t", *attrs["dims"])
    if any(set(a.dims) - set(dims) for a in args):
        raise TypeError(f"a scan over {dims} of {args}")
    return dims


# ---------------------------------------------------------------- kind rules
def joined(args: Args, attrs: Attrs) -> str:
    return "complex" if any(a.kind == "complex" for a in args) else "real"


def real(args: Args, attrs: Attrs) -> str:
    return "real"


def boolean(args: Args, attrs: Attrs) -> str:
    return "bool"


def stated(args: Args, attrs: Attrs) -> str:
    return attrs.get("kind", "real")


def of_number(args: Args, attrs: Attrs) -> str:
    return "complex" if isinstance(attrs["value"], complex) else "real"


def of_where(args: Args, attrs: Attrs) -> str:
    return joined(args[1:], attrs)


def first(args: Args, attrs: Attrs) -> str:
    return args[0].kind


def _ew(arity: int, torch: str, triton: str | None, doc: str, kind: Any = joined, **more: Any) -> Op:
    return Op(arity, union, kind, doc, torch, triton, **more)


OPS: dict[str, Op] = {
    # leaves -----------------------------------------------------------------------------
    "number": Op(0, lambda a, k: (), of_number, "a literal"),
    "size": Op(0, lambda a, k: (), real, "the size of a dim"),
    "const": Op(0, lambda a, k: (), real, "a const of the spec, by name"),
    "in": Op(0, declared, stated, "an input of this token (chunk: of every row)"),
    "param": Op(0, declared, stated, "a learned tensor, the same for every token"),
    "state": Op(0, declared, stated, "what the previous token (chunk: the previous chunk) left"),
    "cot": Op(0, declared, stated, "the cotangent of an out, or of a state (its name ends with ')"),
    "saved": Op(0, declared, stated, "a value another program wrote: of every row, or of every chunk"),
    "pos": Op(0, lambda a, k: tuple(k.get("dims", ())), real, "how many tokens of the sequence came before"),
    "index": Op(0, declared, real, "0, 1, ... along its dim"),
    # elementwise ------------------------------------------------------------------------
    "add": _ew(2, "{0} + {1}", "{0} + {1}", "sum", linear_in=(0, 1), jointly=(0, 1)),
    "sub": _ew(2, "{0} - {1}", "{0} - {1}", "difference", linear_in=(0, 1), jointly=(0, 1)),
    "mul": _ew(2, "{0} * {1}", "{0} * {1}", "product", linear_in=(0, 1)),
    "div": _ew(2, "{0} / {1}", "{0} / {1}", "quotient", linear_in=(0,)),
    "neg": _ew(1, "-{0}", "-{0}", "negation", linear_in=(0,)),
    "pow": _ew(2, "torch.pow({0}, {1})", "tl.exp2({1} * tl.maximum(tl.log2({0}), -1.0e30))", "x ** y, x >= 0"),
    "ipow": Op(1, same, joined, "x ** n, an integer n: a product", "torch.pow({0}, {n})", None),
    "exp": _ew(1, "torch.exp({0})", "tl.exp({0})", "e ** x"),
    "log": _ew(1, "torch.log({0})", "tl.log({0})", "natural logarithm"),
    "log1p": _ew(1, "torch.log1p({0})", "log1p({0})", "log(1 + x)"),
    "expm1": _ew(1, "torch.expm1({0})", "expm1({0})", "exp(x) - 1"),
    "sqrt": _ew(1, "torch.sqrt({0})", "tl.sqrt({0})", "square root"),
    "rsqrt": _ew(1, "torch.rsqrt({0})", "tl.rsqrt({0})", "1 / sqrt(x)"),
    "square": _ew(1, "torch.square({0})", "{0} * {0}", "x * x"),
    "abs": _ew(1, "torch.abs({0})", "tl.abs({0})", "absolute value or modulus", real),
    "sign": _ew(1, "torch.sgn({0})", "sign({0})", "-1, 0 or 1 (complex: x / |x|)"),
    "angle": _ew(2, "torch.atan2({0}, {1})", "atan2({0}, {1})", "the angle of {1} + i {0}; no gradient", real),
    "sin": _ew(1, "torch.sin({0})", "tl.sin({0})", "sine"),
    "cos": _ew(1, "torch.cos({0})", "tl.cos({0})", "cosine"),
    "tanh": _ew(1, "torch.tanh({0})", "tanh({0})", "hyperbolic tangent"),
    "sigmoid": _ew(1, "torch.sigmoid({0})", "tl.sigmoid({0})", "1 / (1 + exp(-x))"),
    "log_size": _ew(1, "torch.log({0}.abs().clamp_min(2.0 ** -60))", f"tl.log(tl.maximum(tl.abs({{0}}), {2.0 ** -60}))",
                    "log(max(|x|, 2^-60)); its gradient is that of a size, also at 0"),
    "logsigmoid": _ew(1, "F.logsigmoid({0})", "logsigmoid({0})", "log(sigmoid(x))"),
    "softplus": _ew(1, "F.softplus({0})", "softplus({0})", "log(1 + exp(x))"),
    "relu": _ew(1, "torch.relu({0})", "tl.maximum({0}, 0.0)", "max(x, 0)"),
    "silu": _ew(1, "F.silu({0})", "{0} * tl.sigmoid({0})", "x * sigmoid(x)"),
    "gelu": _ew(1, "F.gelu({0})", "0.5 * {0} * (1.0 + tl.erf({0} * 0.7071067811865476))", "x * Phi(x)"),
    "elu": _ew(1, "F.elu({0})", "tl.where({0} > 0, {0}, expm1(tl.minimum({0}, 0.0)))", "x > 0 ? x : exp(x) - 1"),
    "erf": _ew(1, "torch.erf({0})", "tl.erf({0})", "error function (the derivative of gelu needs it)"),
    "maximum": _ew(2, "torch.maximum({0}, {1})", "tl.maximum({0}, {1})", "the larger", real),
    "minimum": _ew(2, "torch.minimum({0}, {1})", "tl.minimum({0}, {1})", "the smaller", real),
    "logaddexp": _ew(2, "torch.logaddexp({0}, {1})", "logaddexp({0}, {1})", "log(exp(a) + exp(b))", real),
    "clamp": _ew(3, "torch.clamp({0}, {1}, {2})", "tl.minimum(tl.maximum({0}, {1}), {2})",
                 "x held in [low, high]", real),
    "where": _ew(3, "torch.where({0}, {1}, {2})", "tl.where({0}, {1}, {2})", "a where cond, else b", of_where,
                 jointly=(1, 2)),
    "real": _ew(1, "torch.real({0})", None, "real part", real, linear_in=(0,)),
    "imag": _ew(1, "torch.imag({0})", None, "imaginary part", real, linear_in=(0,)),
    "conj": _ew(1, "torch.conj({0}).resolve_conj()", "{0}", "complex conjugate", linear_in=(0,)),
    "stop_gradient": _ew(1, "{0}.detach()", "{0}", "x, its derivative 0", first),
    "guard": _ew(2, "({0} * {1}).masked_fill({0} == 0, 0.0)",
                 "guarded({0}, {1})", "cotangent * derivative, where a cotangent of 0 stays 0"),
    "lt": _ew(2, "{0} < {1}", "{0} < {1}", "less", boolean),
    "le": _ew(2, "{0} <= {1}", "{0} <= {1}", "less or equal", boolean),
    "eq": _ew(2, "{0} == {1}", "{0} == {1}", "equal", boolean),
    "ne": _ew(2, "{0} != {1}", "{0} != {1}", "not equal", boolean),
    "and": _ew(2, "{0} & {1}", "{0} & {1}", "both", boolean),
    "or": _ew(2, "{0} | {1}", "{0} | {1}", "either", boolean),
    "not": _ew(1, "~{0}", "{0} == 0", "not", boolean),
    "to_number": _ew(1, "{0}.to(REAL)", "{0}.to(tl.float32)", "a condition as 1 or 0", real),
    "mod": _ew(2, "torch.remainder({0}, {1})", "mod({0}, {1})", "a % b of exact integers", real),
    "floordiv": _ew(2, "torch.floor_divide({0}, {1})", "tl.floor({0} / {1})", "a // b of exact integers", real),
    "live": Op(1, same, first, "x where the row is a token, `fill` on the rows behind the end",
               "live({0}, {fill})", "tl.where(live[EXPAND], {0}, {fill})", (0,)),
    "once": Op(1, same, first, "x in the first of the programs that divide `dim` among them, 0 in the others",
               linear_in=(0,)),
    # over dims --------------------------------------------------------------------------
    "contract": Op(2, kept, joined, "product, summed over what both have and `out` has not", linear_in=(0, 1)),
    "sum": Op(1, reduced, joined, "sum over dims", linear_in=(0,)),
    "prod": Op(1, reduced, joined, "product over dims"),
    "max": Op(1, reduced, real, "maximum over dims"),
    "min": Op(1, reduced, real, "minimum over dims"),
    "norm": Op(1, reduced, real, "sqrt(sum |x|^2) over dims; its gradient at 0 is 0"),
    "softmax": Op(1, same, real, "exp(x) / sum exp(x) over dims"),
    "rename": Op(1, renamed, first, "the same tensor, dims under other names", linear_in=(0,)),
    "pick": Op(1, picked, first, "entry i along a dim", linear_in=(0,)),
    "place": Op(1, placed, first, "x at entry i along a new dim in front, 0 elsewhere", linear_in=(0,)),
    "flatten": Op(1, flattened, first, "dims `of` as one, the last of them the fastest", linear_in=(0,)),
    "unflatten": Op(1, unflattened, first, "the same the other way round", linear_in=(0,)),
    "expand": Op(1, expanded, first, "repeated along new dims in front", linear_in=(0,)),
    # over time, token level --------------------------------------------------------------
    "lag": Op(1, same, first, "x of n tokens ago, 0 before the start", linear_in=(0,)),
    "window": Op(1, lambda a, k: (k["dim"], *a[0].dims), first, "the last W values along a new dim; entry w is lag w",
                 linear_in=(0,)),
    # over time, chunk level --------------------------------------------------------------
    "cumsum": Op(1, same, first, "running sum over the rows; reverse: over the later ones; exclusive: without the own",
                 linear_in=(0,)),
    "cumprod": Op(1, same, first, "running product over the rows, likewise"),
    "segsum": Op(1, pairwise, first, "sum of rows s+1..t (reach excl: s+1..t-1); -inf for s > t (not incl: s >= t)"),
    "crossing": Op(1, lambda a, k: tuple(d for d in a[0].dims if d != "_s"), first, "[j]: sum of x[t, s] over "
                   "t >= j > s (reach excl: t > j > s)", linear_in=(0,)),
    "segprod": Op(1, pairwise, first, "product of the same rows; 0 for s > t (not incl: s >= t)"),
    "tangent": Op(2, same, first, "0, with a gradient: how a product of rows x would change, to first order, with its "
                  "rows changed by y", linear_in=(1,)),
    "mask": Op(1, same, first, "x[t, s] where s <= t (keep incl), s < t (strict) or s == t (diag), else 0",
               linear_in=(0,)),
    "span_contract": Op(3, spanned, joined, "sum of x * y * E; E[t, s, d] = exp(g[s+1] + ... + g[t]) where s < t, else "
                        "0 (reach excl: to g[t-1]); g is [_t, d...]", linear_in=(0, 1)),
    "span_factors": Op(1, lambda a, k: ("_l", *a[0].dims), first, "of the decays exp(g): what row t has of them since "
                       "its half block of 2**l rows began (odd ones), or until it ends (even ones)"),
    "span_product": Op(3, spanned, joined, "span_contract from its factors: halves meet at their border, level by "
                       "level"),
    "span_crossing": Op(4, crossed, joined, "[j, d...]: sum of x * y * z * E over t >= j > s (reach excl: t > j) and "
                        "over all that g has not; E as in span_contract", linear_in=(0, 1, 2)),
    "span_gradient": Op(4, lambda a, k: ("_i", *a[1].dims), joined, "of A[t, s] under the decays of factors, along _i: "
                        "span_product with y[s], with x[t] (its rows s), span_crossing with both, but not summed over "
                        "what factors have not; reach as there"),
    "solve": Op(2, solved, joined, "u with (I + L) u = y, L strictly lower [_t, _s]; transposed: (I + L)^T; rows: "
                "names of dims that make more of them, among rows t, s and u",
                linear_in=(1,)),
    "span_solve": Op(4, span_solved, joined, "u with u + b * span_contract(A, u, g) = y, for all entries along "
                     "g's dims; L is b * A * E; transposed and rows as in solve, reach as in span_contract",
                     linear_in=(2,)),
    "unit_inverse": Op(1, same, first, "(I + L)^-1, L strictly lower [_t, _s]"),
    "scan": Op(3, scanned, joined, "h[t] = combine(a[t], h[t-1], b[t]) from a start; reverse: from the last row"),
    "scan_end": Op(2, lambda a, k: k["dims"], joined, "what a scan leaves when nothing comes in"),
    "scan_block": Op(None, lambda a, k: ("_i", "_t", *k["dims"]), joined, "a scan of n coupled states along _i: of n*n "
                     "factors, n addends and n starts"),
    "previous": Op(2, over_rows, joined, "x of the row before (reverse: behind), `edge` where there is none",
                   linear_in=(0, 1), jointly=(0, 1)),
}

# what chooses between values: where the choice turns, the derivative jumps
CHOICES = frozenset(("lt", "le", "eq", "ne", "maximum", "minimum", "clamp", "relu", "abs", "sign", "max", "min"))
