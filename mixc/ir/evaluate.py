"""The meaning of every op, in torch: what all other backends are measured against.

A value is a tensor of any number of leading batch axes (the same number for all values of
a run; of size 1 where a value does not vary) followed by the node's dims in order.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F

from mixc.ir.blocks import run_block
from mixc.ir.build import sides
from mixc.ir.node import COL, LEVEL, ROW, Node, fold, make
from mixc.ir.ops import OPS
from mixc.ir.scans import run_scan, shift

Rule = Callable[[Node, list[torch.Tensor], "Env"], torch.Tensor]


def dtype_of(kind: str, real: torch.dtype) -> torch.dtype:
    """Of values of a kind, where real ones have this dtype."""
    return torch.promote_types(real, torch.complex64) if kind == "complex" else real


class Env:
    """Where leaves get their values.

    Args:
        leaf: called with a leaf node (in, param, state, cot, saved, pos, const), and with lag and window nodes
            where `rules` has none.
        sizes: the size of every dim, ROW and COL included at the chunk level.
        dtype: the real dtype of the run, torch.float32 or torch.float64.
        batch: how many leading axes every value has.
        live: [batch..., rows] bool, or None when every row is a token.
        rules: ops to compute otherwise than here, by name (the same values under other derivatives).
    """

    def __init__(self, leaf: Callable[[Node], torch.Tensor], sizes: dict[str, int], *,
                 dtype: torch.dtype = torch.float64, batch: int = 2, live: torch.Tensor | None = None,
                 device: torch.device | str = "cpu", rules: Mapping[str, Rule] | None = None):
        self.leaf, self.sizes, self.dtype, self.batch, self.live = leaf, sizes, dtype, batch, live
        self.device, self.rules = torch.device(device), rules or {}


def evaluate(roots: Iterable[Node], env: Env, known: dict[Node, torch.Tensor] | None = None) -> list[torch.Tensor]:
    """The values of `roots`; `known` is read and filled, so that runs can share values."""
    return fold(roots, lambda node, args: compute(node, args, env), known)


def compute(node: Node, args: list[torch.Tensor], env: Env, plain: bool = False) -> torch.Tensor:
    """The value of one node from the values of its arguments; `plain`: whatever `env.rules` has."""
    if node.op in env.rules and not plain:
        return env.rules[node.op](node, args, env)
    if node.op in _STRUCTURAL:
        return _STRUCTURAL[node.op](node, args, env)
    row = OPS[node.op]
    if not row.elementwise:
        return env.leaf(node)
    wide = [align(a, n.dims, node.dims, env.batch) for a, n in zip(args, node.args, strict=True)]
    if node.op == "live":
        return wide[0] if env.live is None else _live(wide[0], node, env)
    return elementwise(node, wide, env.dtype)


def elementwise(node: Node, args: list[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    """One elementwise op on tensors that broadcast by position."""
    assert OPS[node.op].torch is not None
    fn = _compiled(OPS[node.op].torch or "", len(args), dtype)
    return fn(*args, **{k: v for k, v in node.attrs if k == "n"})


@functools.cache
def _compiled(template: str, arity: int, dtype: torch.dtype) -> Callable[..., torch.Tensor]:
    """A template of our own op table as a function (never text of a user's)."""
    names = [f"x{i}" for i in range(arity)]
    body = template.format(*names, n="n")
    return eval(f"lambda {', '.join([*names, 'n=None'])}: {body}",
                {"torch": torch, "F": F, "REAL": dtype})


def heads(x: torch.Tensor, H: int, axis: int) -> torch.Tensor:
    """x with its G heads (at `axis`) repeated to H: head h is h // (H/G)."""
    return x.repeat_interleave(H // x.shape[axis], axis) if x.shape[axis] != H else x


def align(x: torch.Tensor, have: tuple[str, ...], want: tuple[str, ...], batch: int) -> torch.Tensor:
    """x with dims `have` viewed with dims `want`, of size 1 where it lacks one."""
    if have == want:
        return x
    order = [batch + have.index(d) for d in want if d in have]
    x = x.permute([*range(batch), *order])
    shape, it = list(x.shape[:batch]), iter(x.shape[batch:])
    return x.reshape(*shape, *[next(it) if d in have else 1 for d in want])


def _axes(node: Node, over: Iterable[str], env: Env) -> list[int]:
    return [env.batch + node.dims.index(d) for d in over]


def _live(x: torch.Tensor, node: Node, env: Env) -> torch.Tensor:
    assert env.live is not None
    live = align(env.live, (ROW,), node.dims, env.batch)
    return torch.where(live, x, torch.full_like(x, node.attr("fill")))


def _contract(node: Node, args: list[torch.Tensor], env: Env) -> torch.Tensor:
    kind = torch.promote_types(args[0].dtype, args[1].dtype)
    return _einsum([(x.to(kind), a.dims) for x, a in zip(args, node.args, strict=True)], node.dims)


def _softmax(node: Node, args: list[torch.Tensor], env: Env) -> torch.Tensor:
    return softmax(args[0], _axes(node.args[0], node.attr("over"), env))


def softmax(x: torch.Tensor, axes: list[int]) -> torch.Tensor:
    e = torch.exp(x - x.amax(axes, keepdim=True).detach())
    return e / e.sum(axes, keepdim=True)


def _norm(node: Node, args: list[torch.Tensor], env: Env) -> torch.Tensor:
    return torch.linalg.vector_norm(args[0], dim=_axes(node.args[0], node.attr("over"), env))


def _prod(node: Node, args: list[torch.Tensor], env: Env) -> torch.Tensor:
    x = args[0]
    for axis in sorted(_axes(node.args[0], node.attr("over"), env), reverse=True):
        x = x.prod(axis)
    return x


def _reduce(fn: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def run(node: Node, args: list[torch.Tensor], env: Env) -> torch.Tensor:
        axes = _axes(node.args[0], node.attr("over"), env)
        return fn(args[0], axes) if axes else args[0]
    return run


def _expand(node: Node, args: list[torch.Tensor], env: Env) -> torch.Tensor:
    x = align(args[0], node.args[0].dims, node.dims, env.batch)
    return x.expand(*x.shape[:env.batch], *[env.sizes[d] for d in node.dims])


def _flatten(node: Node, args: list[torch.Tensor], env: Env) -> torch.Tensor:
    of, x = node.attr("of"), node.args[0]
    order = tuple(y for d in x.dims if d not in of[1:] for y in (of if d == of[0] else (d,)))
    return align(args[0], x.dims, order, env.batch).flatten(at := env.batch + order.index(of[0]), at + len(of) - 1)


def _unflatten(node: Node, args: list[torch.Tensor], env: Env) -> torch.Tensor:
    of = node.attr("of")
    return args[0].unflatten(env.batch + node.dims.index(of[0]), [env.sizes[d] for d in of])


def _place(node: Node, args: list[torch.Tensor], env: Env) -> torch.Tensor:
    out = args[0].new_zeros(*args[0].shape[:env.batch], env.sizes[node.attr("dim")], *args[0].shape[env.batch:])
    return out.select_scatter(args[0], env.batch, node.attr("i"))


def _index(node: Node, args: list[torch.Tensor], env: Env) -> torch.Tensor:
    (dim,) = node.dims
    x = torch.arange(env.sizes[dim], dtype=env.dtype, device=env.device)
    return x.reshape(*[1] * env.batch, -1)


def _sign(node: Node, args: list[torch.Tensor], env: Env) -> torch.Tensor:
    """The gradient of `torch.sgn` to a real value is a tensor of zeros that nothing may be written into."""
    return torch.sgn(args[0]) if args[0].is_complex() else torch.sign(args[0])


def _scalar(value: float | complex, env: Env) -> torch.Tensor:
    kind = torch.promote_types(env.dtype, torch.complex64) if isinstance(value, complex) else env.dtype
    return torch.full([1] * env.batch, value, dtype=kind, device=env.device)


def running(x: torch.Tensor, axis: int, fn: Callable[..., torch.Tensor], one: float,
            reverse: bool, exclusive: bool) -> torch.Tensor:
    """cumsum or cumprod along `axis`, from the end if `reverse`, without the own row if `exclusive`."""
    if reverse:
        x = x.flip(axis)
    if exclusive:
        edge = torch.full_like(x.narrow(axis, 0, 1), one)
        x = torch.cat([edge, x.narrow(axis, 0, x.shape[axis] - 1)], axis)
    x = fn(x, axis)
    return x.flip(axis) if reverse else x


def _cum(fn: Callable[..., torch.Tensor], one: float) -> Callable[..., torch.Tensor]:
    def run(node: Node, args: list[torch.Tensor], env: Env) -> torch.Tensor:
        axis = env.batch + node.dims.index(ROW)
        return running(args[0], axis, fn, one, node.attr("reverse", False), node.attr("exclusive", False))
    return run


def reach_mask(rows: int, reach: str, device: Any = None) -> torch.Tensor:
    """[t, s]: may row t see what row s wrote?"""
    ones = torch.ones(rows, rows, dtype=torch.bool, device=device)
    if reach == "diag":
        return ones.tril(0).triu(0)
    return ones.tril(0 if reach == "incl" else -1)


def span(x: torch.Tensor, axis: int, reach: str, fn: Callable[..., torch.Tensor], one: float,
         outside: float) -> torch.Tensor:
    """[..., t, s, ...] of rows along `axis`: each column is its own running sum, or product, from its row on, so that
    nothing is subtracted."""
    rows, x = x.shape[axis], x.unsqueeze(axis + 1)
    shape = [rows, rows, *[1] * (x.ndim - axis - 2)]

    def number(value: float) -> torch.Tensor:
        return torch.full((), value, dtype=x.dtype, device=x.device)
    y = torch.where(reach_mask(rows, "strict", x.device).reshape(shape), x, number(one))
    if reach == "excl":  # the row's own value comes after the read
        y = torch.cat([torch.full_like(y.narrow(axis, 0, 1), one), y.narrow(axis, 0, rows - 1)], axis)
    return torch.where(reach_mask(rows, reach, x.device).reshape(shape), fn(y, axis), number(outside))


def _seg(fn: Callable[..., torch.Tensor], one: float, outside: float) -> Callable[..., torch.Tensor]:
    def run(node: Node, args: list[torch.Tensor], env: Env) -> torch.Tensor:
        x, b = args[0], env.batch
        x = x.expand(*x.shape[:b], env.sizes[ROW], *x.shape[b + 1:])
        return span(x, b, node.attr("reach"), fn, one, outside)
    return run


def _crossing(node: Node, args: list[torch.Tensor], env: Env) -> torch.Tensor:
    t, s = (env.batch + node.args[0].dims.index(d) for d in (ROW, COL))
    x = _between(args[0].movedim((t, s), (-2, -1)), node.attr("reach"))
    return x.movedim(-1, env.batch + node.dims.index(ROW))


def _between(x: torch.Tensor, reach: str) -> torch.Tensor:
    """[..., j]: the sum of x [..., t, s] over t >= j > s (reach excl: t > j)."""
    earlier = x @ reach_mask(x.shape[-1], "strict", x.device).mT.to(x.dtype)  # [t, j]: over s < j
    seen = reach_mask(x.shape[-1], "strict" if reach == "excl" else "incl", x.device)
    return torch.where(seen, earlier, 0.0).sum(-2)


def _einsum(of: list[tuple[torch.Tensor, tuple[str, ...]]], out: tuple[str, ...]) -> torch.Tensor:
    """The product of tensors with such dims behind their batch, summed over those that `out` has not."""
    letters = {d: chr(ord("A") + i) for i, d in enumerate(dict.fromkeys(d for _, dims in of for d in dims))}
    terms = ",".join("..." + "".join(letters[d] for d in dims) for _, dims in of)
    return torch.einsum(f"{terms}->...{''.join(letters[d] for d in out)}", *(x for x, _ in of))


def _span_contract(node: Node, args: list[torch.Tensor], env: Env) -> torch.Tensor:
    """Also of `span_crossing`."""
    *values, g = node.args
    dims = (ROW, *(d for d in g.dims if d != ROW))
    span = make("segsum", make("saved", name="g", dims=dims), reach=node.attr("reach"))
    seg = _seg(torch.cumsum, 0.0, -math.inf)(span, [align(args[-1], g.dims, dims, env.batch)], env)
    of = [*((x, n.dims) for x, n in zip(args, values, strict=False)), (seg.exp(), span.dims)]
    if node.op == "span_contract":
        return _einsum(of, node.dims)
    found = _between(_einsum(of, (*dims[1:], ROW, COL)), node.attr("reach"))
    return align(found, (*dims[1:], ROW), node.dims, env.batch)


def half_blocks(rows: int, level: int, device: Any = None) -> torch.Tensor:
    """[t]: the half block of 2 ** level rows that a row lies in; even ones come earlier in their block."""
    return torch.arange(rows, device=device) >> level


def _span_factors(node: Node, args: list[torch.Tensor], env: Env) -> torch.Tensor:
    rows, b, (g,) = env.sizes[ROW], env.batch, args
    axis = node.args[0].dims.index(ROW)
    t = torch.arange(rows, device=g.device)
    found = []
    for level in range(env.sizes[LEVEL]):
        half = half_blocks(rows, level, g.device)
        since = (half[:, None] == half) & ((t <= t[:, None]) if node.attr("reach") != "excl" else (t < t[:, None]))
        until = (half[:, None] == half) & (t > t[:, None])
        counts = torch.where((half % 2 == 1)[:, None], since, until).to(g.dtype)
        total = torch.tensordot(counts, g.expand(*g.shape[:b + axis], rows, *g.shape[b + axis + 1:]), ([1], [b + axis]))
        found.append(total.movedim(0, b + axis).exp())
    return torch.stack(found, b)


def _span_product(node: Node, args: list[torch.Tensor], env: Env) -> torch.Tensor:
    x, y, F = node.args
    span, dims = _span_of(F, args[2], env)
    return _einsum([(args[0], x.dims), (args[1], y.dims), (span, dims)], node.dims)


def _span_gradient(node: Node, args: list[torch.Tensor], env: Env) -> torch.Tensor:
    A, x, y, F = node.args
    span, dims = _span_of(F, args[3], env)
    A_, x_, y_ = zip(args, (A.dims, x.dims, y.dims), strict=False)
    own = node.dims[1:]
    crossing = _between(_einsum([A_, x_, y_, (span, dims)], (*own[1:], ROW, COL)), node.attr("reach"))
    found = [_einsum([A_, y_, (span, dims)], own), _einsum([A_, x_, (span, dims)], (COL, *own[1:])),
             align(crossing, (*own[1:], ROW), own, env.batch)]
    return torch.stack([align(part, own, node.dims[1:], env.batch) for part in found], env.batch)


def _span_of(F: Node, factors: torch.Tensor, env: Env) -> tuple[torch.Tensor, tuple[str, ...]]:
    """The decays of all pairs of rows, and its dims."""
    rows, b = env.sizes[ROW], env.batch
    features = tuple(d for d in F.dims if d not in (ROW, LEVEL))
    f = align(factors, F.dims, (LEVEL, ROW, *features), b)
    span: Any = 0
    for level in range(env.sizes[LEVEL]):
        half = half_blocks(rows, level, f.device)
        meet = (half[:, None] == half + 1) & (half % 2 == 0)
        at = f.select(b, level)
        span = span + meet.reshape(rows, rows, *[1] * len(features)) * at.unsqueeze(b + 1) * at.unsqueeze(b)
    return span, (ROW, COL, *features)


def _solve(node: Node, args: list[torch.Tensor], env: Env) -> torch.Tensor:
    """By substitution; columns of y are all its dims that L has not."""
    (L, y), b, back = node.args, env.batch, bool(node.attr("transposed"))
    rows, cols = sides(node)
    own = tuple(d for d in L.dims if d not in (*rows, *cols))
    order = (*own, *rows, *(d for d in y.dims if d not in (*rows, *own)))
    l, x = align(args[0], L.dims, (*own, *rows, *cols), b), align(args[1], y.dims, order, b)
    x = x.expand(*torch.broadcast_shapes(x.shape[:b], l.shape[:b]), *x.shape[b:])
    l, columns = (_matrices(z, b + len(own), len(rows)) for z in (l, x))
    found = torch.linalg.solve_triangular(l.mT if back else l, columns, upper=back, unitriangular=True)
    return align(found.reshape(x.shape), order, y.dims, b)


def _unit_inverse(node: Node, args: list[torch.Tensor], env: Env) -> torch.Tensor:
    (L,), b, (rows, cols) = node.args, env.batch, sides(node)
    own = tuple(d for d in L.dims if d not in (*rows, *cols))
    whole = align(args[0], L.dims, order := (*own, *rows, *cols), b)
    l = _matrices(whole, b + len(own), len(rows))
    eye = torch.eye(l.shape[-1], dtype=l.dtype, device=l.device).expand(l.shape)
    found = torch.linalg.solve_triangular(l, eye, upper=False, unitriangular=True)
    return align(found.reshape(whole.shape), order, node.dims, b)


def _matrices(x: torch.Tensor, at: int, rows: int) -> torch.Tensor:
    """The axes from `at` on as rows, so many of them, and columns, all others."""
    x = x.flatten(at, at + rows - 1)
    return x.flatten(at + 1) if x.ndim > at + 1 else x.unsqueeze(-1)


def _span_solve(node: Node, args: list[torch.Tensor], env: Env) -> torch.Tensor:
    """With the matrices L themselves."""
    *values, g = node.args
    dims = (ROW, *(d for d in g.dims if d != ROW))
    leaves = [make("saved", name=f"x{i}", dims=x.dims) for i, x in enumerate(values)]
    logs = make("saved", name="g", dims=dims)
    L = leaves[1] * leaves[0] * make("exp", make("segsum", logs, reach=node.attr("reach")))
    solved = make("solve", L, leaves[2], **{k: v for k, v in node.attrs if k != "reach"})
    given = [*args[:3], align(args[3], g.dims, dims, env.batch)]
    return evaluate([solved], env, dict(zip([*leaves, logs], given, strict=True)))[0]


def _mask(node: Node, args: list[torch.Tensor], env: Env) -> torch.Tensor:
    seen = reach_mask(env.sizes[ROW], node.attr("keep"), args[0].device)
    seen = align(seen.reshape(*[1] * env.batch, *seen.shape), (ROW, COL), node.dims, env.batch)
    return torch.where(seen, args[0], torch.zeros_like(args[0]))


def _rename(node: Node, args: list[torch.Tensor], env: Env) -> torch.Tensor:
    return args[0]


def _pick(node: Node, args: list[torch.Tensor], env: Env) -> torch.Tensor:
    return args[0].select(env.batch + node.args[0].dims.index(node.attr("dim")), node.attr("i"))


def _scan(node: Node, args: list[torch.Tensor], env: Env) -> torch.Tensor:
    a, b, *start = _with_rows(node, args, env)
    rows = run_scan(node.attr("combine"), a, b, start[0].select(env.batch, 0) if start else None, env.batch,
                    node.attr("reverse"))
    return torch.stack(rows, env.batch) if node.op == "scan" else rows[0 if node.attr("reverse") else -1]


def _scan_block(node: Node, args: list[torch.Tensor], env: Env) -> torch.Tensor:
    n, wide = node.attr("n"), _with_rows(node, args, env)
    A = [wide[i * n:(i + 1) * n] for i in range(n)]
    start = [x.select(env.batch, 0) for x in wide[-n:]]
    return torch.stack(run_block(A, wide[n * n:n * n + n], start, env.batch, node.attr("reverse")), env.batch)


def _previous(node: Node, args: list[torch.Tensor], env: Env) -> torch.Tensor:
    x, edge = _with_rows(node, args, env)
    return shift(x, edge.select(env.batch, 0), env.batch, node.attr("reverse"))


def _with_rows(node: Node, args: list[torch.Tensor], env: Env) -> list[torch.Tensor]:
    """Arguments of an op over rows, all with its dims and all rows."""
    dims = (ROW, *node.attr("dims", ())) if node.op != "previous" else node.dims
    wide = torch.broadcast_tensors(*[align(x, n.dims, dims, env.batch) for x, n in zip(args, node.args, strict=True)])
    return [x.expand(*x.shape[:env.batch], *[env.sizes[d] for d in dims]) for x in wide]


_STRUCTURAL: dict[str, Callable[[Node, list[torch.Tensor], Env], torch.Tensor]] = {
    "number": lambda n, a, e: _scalar(n.attr("value"), e),
    "size": lambda n, a, e: _scalar(float(e.sizes[n.attr("dim")]), e),
    "index": _index,
    "contract": _contract,
    "sum": _reduce(torch.sum),
    "prod": _prod,
    "max": _reduce(torch.amax),
    "min": _reduce(torch.amin),
    "norm": _norm,
    "softmax": _softmax,
    "rename": _rename,
    "pick": _pick,
    "place": _place,
    "sign": _sign,
    "expand": _expand,
    "flatten": _flatten,
    "unflatten": _unflatten,
    "cumsum": _cum(torch.cumsum, 0.0),
    "cumprod": _cum(torch.cumprod, 1.0),
    "segsum": _seg(torch.cumsum, 0.0, -math.inf),
    "segprod": _seg(torch.cumprod, 1.0, 0.0),
    "crossing": _crossing,
    "mask": _mask,
    "tangent": lambda node, args, env: torch.zeros_like(args[0]),
    "span_contract": _span_contract,
    "span_crossing": _span_contract,
    "span_factors": _span_factors,
    "span_gradient": _span_gradient,
    "span_product": _span_product,
    "solve": _solve,
    "span_solve": _span_solve,
    "unit_inverse": _unit_inverse,
    "scan": _scan,
    "scan_end": _scan,
    "scan_block": _scan_block,
    "previous": _previous,
}
