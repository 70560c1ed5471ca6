"""How products under vector decays, and triangular systems, are written in torch: calls of `torch_span_prelude`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mixc.codegen.torch_values import Dims, Value, size_of
from mixc.ir.blocks import component
from mixc.ir.build import sides
from mixc.ir.node import COL, LEVEL, ROW, Node, is_number, postorder, source

if TYPE_CHECKING:
    from mixc.codegen.torch_writer import Writer

OPS = ("span_factors", "span_product", "span_gradient", "unit_inverse", "solve", "span_solve")


def _features(n: Node) -> Dims:
    return tuple(d for d in n.dims if d[0] != "_")


def emit_factors(w: Writer, n: Node) -> Value:
    axes = (LEVEL, ROW, *_features(n))
    x = w.full(n.args[0], axes[1:])
    return _in_room(w, n, f"span_factors({x}, {n.attr('reach')!r}", axes, x)


def _in_room(w: Writer, n: Node, call: str, axes: Dims, like: str, more: str = "") -> Value:
    """A call that writes to a buffer: scratch, or (in the loop over chunks, which has none) a new one for the M of `like`."""
    if w.buffered or (n in w.fixed and axes == n.dims):
        out = w.room(n, axes, over=False)
        v = w.line(n, f"{call}{more})", axes, out=out)
        return Value(v.text, v.axes, None if n in w.fixed else out)
    return w.line(n, f"{call}, {like}.new_empty({', '.join([f'len({like})', *map(size_of, axes)])}){more})", axes)


def emit_product(w: Writer, n: Node) -> Value:
    """Of x, y and the result, one has rows t, one rows s, and one, P, both: one matrix product a level, the decays in its
    operands. What P has beside its rows makes more of them, of its own for every row of the other that has it;
    what all three have makes a product for each of its entries."""
    x, y, F = n.args
    decayed, by_rows = _features(F), {frozenset({ROW, COL} & {*z.dims}): z for z in (x, y, n)}
    if len(by_rows) < 3 or frozenset() in by_rows:
        return _general(w, n, decayed)
    P, T, S = (by_rows[frozenset(rows)] for rows in ((ROW, COL), (ROW,), (COL,)))
    each = tuple(d for d in _features(P) if d in T.dims and d in S.dims and d not in decayed)
    t, s = (tuple(d for d in _features(z) if d in P.dims and d not in each) for z in (T, S))
    shared = tuple(dict.fromkeys((*decayed, *(d for z in (T, S) for d in _features(z) if d not in P.dims))))
    rest = {*_features(n)} - {*t, *s, *each}
    if sorted((*each, *t, *s)) != sorted(_features(P)) or {*t, *s} & {*shared} or (n is not P and rest != {*shared}):
        return _general(w, n, decayed)
    axes = {P: (*each, ROW, *t, COL, *s), T: (*each, ROW, *t, *shared), S: (*each, COL, *s, *shared)}
    name, a, b = {P: ("span_pair", T, S), T: ("span_apply", P, S), S: ("span_apply_back", P, T)}[n]
    factors = w.value(F).over((LEVEL, ROW, *decayed))
    ranks = f", rows=({len(t)}, {len(s)})" if t or s else ""
    if each:
        name, ranks = "of_each", f", of={name}, dims={len(each)}{ranks}"
    left = w.full(a, axes[a])
    return _in_room(w, n, f"{name}({left}, {w.full(b, axes[b])}, {factors}", axes[n], left, ranks)


def axes_of_gradient(n: Node) -> Dims:
    """Of each of the tensors: the dims that decays have stand in front."""
    return tuple(dict.fromkeys((ROW, *_features(n.args[3]), *_features(n))))


def emit_gradient(w: Writer, n: Node) -> Value:
    """Three tensors in one call, or of the first two what is read. Where each gets a buffer they are the values of what
    picks them, else a tuple is."""
    A, x, y, F = n.args
    axes = axes_of_gradient(n)
    a, b, c, f = w.full(A, (ROW, COL)), w.full(x, axes), w.full(y, (COL, *axes[1:])), w.value(F).over((LEVEL, ROW, *_features(F)))
    call = f"span_gradient({a}, {b}, {c}, {f}, {n.attr('reach')!r}"
    parts = [component(n, i) for i in range(3)]
    if not w.buffered or any(x in w.fixed for x in parts):
        return w.line(n, f"{call}, [torch.empty_like({b}) for _ in range(3)])", n.dims)
    names, rooms = [w.names.fresh(x) for x in parts], [w.scratch.take(axes) for _ in parts]
    w.values |= {x: Value(name, axes, room) for x, name, room in zip(parts, names, rooms, strict=True)}
    if w.uses[parts[2]]:
        w.lines.append(f"{w.indent}{', '.join(names)} = {call}, [{', '.join(rooms)}])")
    else:
        each = zip(parts, names, (f"span_apply({a}, {c}", f"span_apply_back({a}, {b}"), rooms, strict=False)
        w.lines += [f"{w.indent}{name} = {one}, {f}, out={room})" for x, name, one, room in each if w.uses[x]]
    for x, room in zip(parts, rooms, strict=True):
        if not w.uses[x]:
            w.scratch.give(room)
    return Value("", n.dims)


def _general(w: Writer, n: Node, dims: Dims) -> Value:
    """Any other sum of three factors, the decays of all pairs formed."""
    x, y, F = n.args
    if {*n.dims} == {ROW, COL, *dims}:  # nothing is summed
        f, axes = w.value(F).over((LEVEL, ROW, *dims)), (ROW, COL, *dims)
        # decays of numbers alone are there once, for all chunks
        first = "mul_" if any(z.op in ("in", "param", "state", "cot", "saved") for z in postorder([F])) else "mul"
        factors = [w.whole(z).over(axes) for z in (x, y) if not is_number(source(z), 1.0)]
        text = "".join(f".{'mul_' if i else first}({z})" for i, z in enumerate(factors))
        return w.line(n, f"span_of({f}){text}", axes)
    letters = {d: chr(ord("a") + i) for i, d in enumerate(dict.fromkeys((*x.dims, *y.dims, ROW, COL)))}
    terms = ["z" + "".join(letters[d] for d in axes) for axes in (x.dims, y.dims, (ROW, COL, *dims), n.dims)]
    f = w.value(F).over((LEVEL, ROW, *dims))
    call = f'torch.einsum("{",".join(terms[:3])}->{terms[3]}", {w.full(x, x.dims)}, {w.full(y, y.dims)}, span_of({f}))'
    return w.line(n, call, n.dims)


def emit_inverse(w: Writer, n: Node) -> Value:
    axes = sum(sides(n), ())
    own = tuple(d for d in n.dims if d not in axes)
    L = w.full(n.args[0], (*axes, *own))
    if own:
        return _in_room(w, n, f"column_inverses({L}", (*axes, *own), L)
    return _in_room(w, n, f"unit_inverse({L}", axes, L)


def emit_solve(w: Writer, n: Node) -> Value:
    """With a matrix of its own for every entry along some dims."""
    (L, y), (rows, cols) = n.args, sides(n)
    own = tuple(d for d in L.dims if d not in (*rows, *cols))
    rest = tuple(d for d in y.dims if d not in (*rows, *own))
    axes, more = (*own, *rows, *rest), f", {len(rows)}" if len(rows) > 1 else ""
    text = (f"solve_columns({w.full(L, (*own, *rows, *cols))}, {w.full(y, axes)}, {bool(n.attr('transposed'))}, {len(rest)}{more})")
    return w.line(n, text, axes)


def emit_span_solve(w: Writer, n: Node) -> Value:
    """Of vectors [C, rows..., D...]: decays have the first of D, and perhaps not the others."""
    (A, b, y, g), (rows, cols) = n.args, sides(n)
    own = _features(g)
    axes = (*rows, *own, *(d for d in n.dims if d not in (*rows, *own)))
    strength = "None" if is_number(b, 1.0) else w.full(b, axes)
    of = [w.full(A, (*rows, *cols)), strength, w.full(y, axes), w.full(g, (ROW, *own))]
    call = f"span_solve({', '.join(of)}, {n.attr('reach')!r}, {bool(n.attr('transposed'))}"
    return _in_room(w, n, call, axes, of[2])
