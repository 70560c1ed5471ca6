"""Reverse mode: one rule an op, and the walk that applies them.

A rule takes the node and the cotangent c of its value and returns the cotangents of its
arguments (None: no dependence), as nodes of the same language.  A cotangent may have more
dims than the argument it is for: the walk sums what was broadcast.  The derivative of a
chunk is therefore again a chunk, and `grad[S](e)` of a step again a step.

Conventions are PyTorch's, gradients of complex values included (c is the conjugate Wirtinger
cotangent).  `guard` keeps a cotangent of 0 at 0 where the derivative may be infinite.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from mixc.ir import blocks
from mixc.ir.build import at_col, at_cols, contract, cumprod, cumsum, exp, expand, rename, total, where
from mixc.ir.node import COL, ROW, Node, depends, make, number, postorder
from mixc.ir.ops import OPS
from mixc.ir.scans import adjoint, previous

Cotangents = tuple[Node | None, ...]
_MID = "_u"  # a third name for rows, summed over inside a rule


def gradient(roots: Sequence[tuple[Node, Node]], wrt: Sequence[Node]) -> list[Node | None]:
    """The cotangents of `wrt`, given (value, cotangent) pairs; nodes in `wrt` count as leaves.

    None where no root depends on the node.
    """
    from mixc.ir.risk import Risks

    leaves = set(wrt)
    live = depends([r for r, _ in roots], leaves)
    order, risks, sums = list(postorder([r for r, _ in roots])), Risks(), dict[Node, Node]()
    chosen = set(postorder([a for n in order if n.op == "where" for a in n.args[1:]]))  # or not: then their c is 0

    def collect(node: Node, c: Node) -> None:
        if node in live:
            c = unbroadcast(c, node)
            sums[node] = sums[node] + c if node in sums else c

    for value, c in roots:
        collect(value, c)
    for node in reversed(order):
        if node in sums and node not in leaves and node.args:
            odd = node in chosen and any(any(risks[a]) for a in node.args)
            for arg, part in zip(node.args, RULES[node.op](node, sums[node]), strict=True):
                if part is not None and arg.kind != "bool":
                    collect(arg, protected(part, sums[node]) if odd else part)
    return [sums.get(n) for n in wrt]


def unbroadcast(c: Node, like: Node) -> Node:
    """c summed over the dims it has and `like` lacks, repeated along those it lacks."""
    c = total(c, [d for d in c.dims if d not in like.dims])
    c = expand(c, like.dims)
    return make("real", c) if c.kind == "complex" and like.kind == "real" else c


# ---------------------------------------------------------------- helpers of rules
def _conj(x: Node) -> Node:
    return make("conj", x) if x.kind == "complex" else x


def _scale(c: Node, d: Node) -> Node:
    """c times the (conjugate) derivative d, d being finite wherever c is not 0."""
    return c * _conj(d)


def _guard(c: Node, d: Node) -> Node:
    return make("guard", c, _conj(d))


def protected(part: Node, c: Node) -> Node:
    """The cotangent of an argument, 0 where c is 0."""
    if part.op != "mul" or c not in part.args:
        return part
    return make("guard", c, part.args[0] if part.args[1] is c else part.args[1])


def _unary(derivative: Callable[[Node, Node], Node], guarded: bool = False) -> Callable[[Node, Node], Cotangents]:
    """A rule from d(x, y), the derivative at x with value y."""
    def rule(n: Node, c: Node) -> Cotangents:
        d = derivative(n.args[0], n)
        return (_guard(c, d) if guarded else _scale(c, d),)
    return rule


def _none(n: Node, c: Node) -> Cotangents:
    return (None,) * len(n.args)


def _sigmoid(x: Node) -> Node:
    return make("sigmoid", x)


def _mul(n: Node, c: Node) -> Cotangents:
    a, b = n.args
    if a is b:
        d = _times(c, a) * 2.0
        return d, None
    return _times(c, b), _times(c, a)


def _times(c: Node, d: Node) -> Node:
    return _guard(c, d) if may_be_infinite(d) else _scale(c, d)


def may_be_infinite(x: Node) -> bool:
    """Can a factor be infinite for arguments in range?  (log decays are, where they say "forget".)"""
    from mixc.ir.ranges import bounds

    return bounds(x).infinite


def _div(n: Node, c: Node) -> Cotangents:
    b = n.args[1]
    return _guard(c, 1.0 / b), _guard(c, -n / b)


def _pow(n: Node, c: Node) -> Cotangents:
    x, y = n.args
    dx = where(make("eq", y, number(0)), 0.0, y * make("pow", x, y - 1.0))
    dy = where(make("eq", x, number(0)), 0.0, n * make("log", x))
    return _guard(c, dx), _guard(c, dy)


def _ipow(n: Node, c: Node) -> Cotangents:
    k = n.attr("n")
    if k == 0:
        return (None,)
    power = n.args[0] if k == 2 else make("ipow", n.args[0], n=k - 1)
    return ((_guard if k < 0 else _scale)(c, power * float(k)),)


def _sign(n: Node, c: Node) -> Cotangents:
    x = n.args[0]
    if x.kind != "complex":
        return (None,)
    size = make("abs", x)  # d(x/|x|): the part of c across x, over |x|
    across = c - n * make("real", make("conj", n) * c)
    return (_guard(across, 1.0 / size),)


def _pick_larger(beats: Callable[[Node, Node], Node]) -> Callable[[Node, Node], Cotangents]:
    """maximum and minimum: all to the winner, half to each at a tie."""
    def rule(n: Node, c: Node) -> Cotangents:
        a, b = n.args
        tie = make("eq", a, b)
        half = c * 0.5
        return (where(tie, half, where(beats(a, b), c, 0.0)), where(tie, half, where(beats(b, a), c, 0.0)))
    return rule


def _logaddexp(n: Node, c: Node) -> Cotangents:
    """softmax of the two; 0 to an operand at -inf, also when both are."""
    def share(x: Node) -> Node:
        return c * where(make("eq", x, number(-math.inf)), 0.0, exp(x - n))
    return share(n.args[0]), share(n.args[1])


def _clamp(n: Node, c: Node) -> Cotangents:
    x, low, high = n.args
    inside = make("and", make("le", low, x), make("le", x, high))
    return (where(inside, c, 0.0), where(make("and", make("lt", x, low), make("lt", low, high)), c, 0.0),
            where(make("or", make("lt", high, x), make("lt", high, low)), c, 0.0))


def _contract(n: Node, c: Node) -> Cotangents:
    a, b = n.args
    return contract(c, _conj(b), _dims_of(a, c, b)), contract(c, _conj(a), _dims_of(b, c, a))


def _dims_of(x: Node, *have: Node) -> tuple[str, ...]:
    assert all(any(d in h.dims for h in have) for d in x.dims)
    return x.dims


def _extremum(n: Node, c: Node) -> Cotangents:
    x = n.args[0]
    hit = make("to_number", make("eq", x, n))
    return (hit * (c / total(hit, n.attr("over"))),)


def _prod(n: Node, c: Node) -> Cotangents:
    if n.attr("over") != (ROW,):
        raise NotImplementedError("the derivative of a product over feature dims")
    x = n.args[0]
    return (c * cumprod(x, exclusive=True) * cumprod(x, reverse=True, exclusive=True),)


def _norm(n: Node, c: Node) -> Cotangents:
    x = n.args[0]
    return (x * where(make("eq", n, number(0)), 0.0, c / n),)


def _segprod(n: Node, c: Node) -> Cotangents:
    """da[j] = sum_{i >= j > s} D(i, j) c[i, s] D(j-1, s): formed without dividing by a (design.md)."""
    a, excl = n.args[0], n.attr("reach") == "excl"
    before = make("segprod", a, reach="excl")  # [j, s]: product of s+1 .. j-1
    after = before if excl else make("segprod", a, reach="incl")  # [i, j]: product of j+1 .. i
    onto = contract(rename(after, **{ROW: _MID, COL: ROW}), rename(c, **{ROW: _MID}), c.dims)
    return (total(onto * before, [COL]),)


def _span_contract(n: Node, c: Node) -> Cotangents:
    """Of x, y and c, one varies along t and s: its product with its own cotangent is all that the numbers g took part
    in.  Vectors g[j] took part in what spans j."""
    x, y, g = n.args
    reach = n.attr("reach")

    def with_role(of: Node, other: Node) -> Node:
        return make("span_contract", c, other, g, out=of.dims, reach=reach)
    dx, dy = with_role(x, y), with_role(y, x)
    pairs = ((x, dx), (y, dy), (c, n))
    if g.dims == (ROW,):
        a, b = next((a, b) for a, b in pairs if {ROW, COL} <= set(a.dims))
        found = total(a * b, [e for e in a.dims if e not in (ROW, COL)])
        return dx, dy, make("crossing", found, reach="excl" if reach == "excl" else "incl")
    return dx, dy, make("span_crossing", x, y, c, g, reach=reach)


def _solve(n: Node, c: Node) -> Cotangents:
    """u = M^-1 y, M = I + L:  dy = M^-T c,  dL = -(dy u^T below the diagonal)"""
    L = n.args[0]
    back, ranks = not n.attr("transposed"), n.attr("rows", ())
    dy = make("solve", L, c, **{**dict(n.attrs), "transposed": back})
    left, right = (dy, n) if back else (n, dy)
    left, right = (rename(z, **{COL: _MID}, **{s: u for _, s, u in ranks}) for z in (left, right))
    dL = make("mask", contract(left, at_cols(right, n), L.dims), keep="strict")
    return -dL, dy


def _span_solve(n: Node, c: Node) -> Cotangents:
    """As `_solve`, where L[t, s] = b[t] A[t, s] E[t, s] and E are decays: of each factor."""
    (A, b, _, g), back, reach = n.args, not n.attr("transposed"), n.attr("reach")
    dy = make("span_solve", A, b, c, g, **{**dict(n.attrs), "transposed": back})
    left, right = (dy, n) if back else (n, dy)
    right = at_cols(right, n)
    read = make("span_contract", A, right, g, out=left.dims, reach=reach)
    left = -left
    dA = make("span_contract", b * left, right, g, out=A.dims, reach=reach)
    return dA, left * read, dy, make("span_crossing", A, b * left, right, g, reach=reach)


def _cumprod(n: Node, c: Node) -> Cotangents:
    """P[t] = prod_{j <= t} a[j] (or j < t, or from the end), likewise without dividing."""
    a, excl = n.args[0], n.attr("exclusive")
    reach = make("segprod", a, reach="excl" if excl else "incl")
    if n.attr("reverse"):  # Q[s] = prod_{j > s}; da[j] = Q[j] sum_{s < j} D(j-1, s) c[s]
        if not excl:
            raise NotImplementedError("inclusive products from the end do not arise")
        return (n * contract(reach, at_col(c), a.dims),)
    return (contract(rename(reach, **{ROW: _MID, COL: ROW}), rename(c, **{ROW: _MID}), a.dims)
            * cumprod(a, exclusive=True),)


def _previous(n: Node, c: Node) -> Cotangents:
    back = n.attr("reverse")
    return previous(c, number(0), not back), make("pick", c, dim=ROW, i=-1 if back else 0)


def _lowered(n: Node, c: Node) -> Cotangents:
    raise NotImplementedError(f"programs are differentiated before they come to {n.op}")


def _lag(n: Node, c: Node) -> Cotangents:
    raise NotImplementedError("lag is differentiated by the program that shifts it")


_SQRT2PI, _SQRT_HALF = math.sqrt(2 * math.pi), math.sqrt(0.5)

RULES: dict[str, Callable[[Node, Node], Cotangents]] = {
    "add": lambda n, c: (c, c),
    "sub": lambda n, c: (c, -c),
    "mul": _mul,
    "div": _div,
    "neg": lambda n, c: (-c,),
    "pow": _pow,
    "ipow": _ipow,
    "exp": _unary(lambda x, y: y),
    "log": _unary(lambda x, y: 1.0 / x, guarded=True),
    "log1p": _unary(lambda x, y: 1.0 / (1.0 + x), guarded=True),
    "expm1": _unary(lambda x, y: y + 1.0),
    "sqrt": _unary(lambda x, y: 0.5 / y, guarded=True),
    "rsqrt": _unary(lambda x, y: -0.5 * (y * y * y), guarded=True),
    "square": _unary(lambda x, y: 2.0 * x),
    "abs": lambda n, c: (c * make("sign", n.args[0]),),
    "sign": _sign,
    "sin": _unary(lambda x, y: make("cos", x)),
    "cos": _unary(lambda x, y: -make("sin", x)),
    "tanh": _unary(lambda x, y: 1.0 - y * y),
    "sigmoid": _unary(lambda x, y: y * (1.0 - y)),
    "log_size": lambda n, c: (c * where(make("lt", n.args[0], number(0)), -1.0, 1.0) / make(
        "maximum", make("abs", n.args[0]), number(2.0 ** -60)),),
    "logsigmoid": _unary(lambda x, y: _sigmoid(-x)),
    "softplus": _unary(lambda x, y: _sigmoid(x)),
    "relu": lambda n, c: (where(make("lt", number(0), n.args[0]), c, 0.0),),
    "silu": _unary(lambda x, y: _sigmoid(x) * (1.0 + x * (1.0 - _sigmoid(x)))),
    "gelu": _unary(lambda x, y: 0.5 * (1.0 + make("erf", x * _SQRT_HALF)) + x * exp(-0.5 * (x * x)) * (1.0 / _SQRT2PI)),
    "elu": _unary(lambda x, y: where(make("lt", number(0), x), 1.0, exp(make("minimum", x, number(0))))),
    "erf": _unary(lambda x, y: exp(-(x * x)) * (2.0 / math.sqrt(math.pi))),
    "maximum": _pick_larger(lambda a, b: make("lt", b, a)),
    "minimum": _pick_larger(lambda a, b: make("lt", a, b)),
    "logaddexp": _logaddexp,
    "clamp": _clamp,
    "where": lambda n, c: (None, where(n.args[0], c, 0.0), where(n.args[0], 0.0, c)),
    "real": lambda n, c: (c,),
    "imag": lambda n, c: (c * number(1j),),
    "conj": lambda n, c: (_conj(c),),
    "stop_gradient": _none,
    "guard": lambda n, c: (make("guard", c, _conj(n.args[1])), make("guard", c, _conj(n.args[0]))),
    **dict.fromkeys(("lt", "le", "eq", "ne", "and", "or", "not", "to_number", "mod", "floordiv", "angle"), _none),
    "live": lambda n, c: (make("live", c, fill=0.0),),
    "once": _lowered,
    "contract": _contract,
    "sum": lambda n, c: (expand(c, n.args[0].dims),),
    "prod": _prod,
    "max": _extremum,
    "min": _extremum,
    "norm": _norm,
    "softmax": lambda n, c: (n * (c - total(n * c, n.attr("over"))),),
    "rename": lambda n, c: (rename(c, **{new: old for old, new in n.attr("to")}),),
    "pick": lambda n, c: (make("place", c, dim=n.attr("dim"), i=n.attr("i")),),
    "place": lambda n, c: (make("pick", c, dim=n.attr("dim"), i=n.attr("i")),),
    "flatten": lambda n, c: (make("unflatten", c, of=n.attr("of")),),
    "unflatten": lambda n, c: (make("flatten", c, of=n.attr("of")),),
    "expand": lambda n, c: (c,),
    "lag": _lag,
    "window": _lag,
    "cumsum": lambda n, c: (cumsum(c, reverse=not n.attr("reverse"), exclusive=n.attr("exclusive")),),
    "cumprod": _cumprod,
    "segsum": lambda n, c: (make("crossing", c, reach="excl" if n.attr("reach") == "excl" else "incl"),),
    "crossing": _lowered,
    "segprod": _segprod,
    "tangent": lambda n, c: (None, RULES[n.args[0].op](n.args[0], c)[0]),
    "mask": lambda n, c: (make("mask", c, keep=n.attr("keep")),),
    "span_contract": _span_contract,
    "span_crossing": _lowered,
    "span_factors": _lowered,
    "span_gradient": _lowered,
    "span_product": _lowered,
    "solve": _solve,
    "span_solve": _span_solve,
    "unit_inverse": _lowered,
    "scan": adjoint,
    "scan_end": _lowered,
    "scan_block": blocks.adjoint,
    "previous": _previous,
}
assert set(RULES) == {name for name, row in OPS.items() if row.arity != 0}, "a rule an op"
