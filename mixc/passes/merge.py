"""Chunk -> Chunk: values that are one function become one value, where no tree says so.

before: c * where(0 < x, 1, exp(x)), and exp(minimum(x, 0)) for another purpose
after:  e = exp(minimum(x, 0)); c * e

Candidates agree on probe inputs in fp64 (functional hashing, Gillard et al. 2023, arXiv 2302.05433).  What is equal
on probes need not be equal in use, so a pair is merged only if it agrees as well on fresh, small, large and no inputs,
at the ends of the ranges and in chunks with dead rows, if every decision below either has been seen on both sides
where that tells in their digits, and if the one that stays is nowhere worse in fp32 than the one that goes.  Exponents
merge structurally only: a difference of running sums is a segment's sum with a thousand times its error.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count

import numpy as np
import torch

from mixc.hashing.evaluate import const_values, number_of
from mixc.hashing.probes import draw, uniform
from mixc.ir.evaluate import Env, align, evaluate
from mixc.ir.node import COL, LEVEL, ROW, Node, depends, is_number, postorder
from mixc.ir.ops import CHOICES
from mixc.ir.program import Program
from mixc.ir.ranges import bounds, proving
from mixc.ir.region import Region, region
from mixc.ir.scans import COMBINES, chooses, shift
from mixc.passes.simplify import simplify
from mixc.passes.tangent import without_tangents

Tensor = torch.Tensor
Values = dict[Node, Tensor]
ROWS = 7  # odd: what counts rows to the end and from the start differ by the parity of all
_DIGITS = 1e-11  # of the largest entry: fp64 leaves four digits more
_NO_VALUE = ("number", "size", "const", "index", "pos")
# through these an exponent stays one
_EXPONENT = frozenset(("add", "sub", "neg", "where", "minimum", "maximum", "live", "rename", "pick", "place", "expand",
                       "sum", "cumsum", "segsum", "previous", "scan", "scan_end", "mask", "logaddexp", "to_number"))


@dataclass(frozen=True)
class Kind:
    """One way to draw all inputs. `ends`: some entries lie at the ends of their ranges. `live`: how many rows are
    tokens. `sizes`: of the first dims, others growing: what is equal at one size is not at all (a mean, half a sum).
    `pos`: of the first row. `many`: how many drawings: what only some sequences of decisions let through is seen.
    `rows`: what three states hand on in a ring comes back after three of them, and meets itself after six."""

    name: str
    scale: float = 1.0
    ends: bool = False
    live: int = ROWS
    sizes: tuple[int, ...] = (3, 4, 5, 6)  # not 2: of two entries, softmax(-x) are those of softmax(x) exchanged
    pos: int = 0
    many: int = 2
    rows: int = ROWS


NEAR = Kind("near", sizes=(5, 3, 7, 4))
KINDS = (Kind("fresh", live=4, pos=1), Kind("empty", live=0), Kind("small", 1e-3, live=1, pos=2),
         Kind("large", 30.0, pos=3), Kind("far", 1e3, pos=4095), Kind("none", 0.0), Kind("ends", ends=True, pos=14))
OFTEN = Kind("often", pos=5, many=48)
# few rows: a factor that is 0 or 1, the same for all, is there twice where it is there once.  As many as no other kind
# has, and no number of them that leaves what those leave, divided by what comes back after so many rows.
MORE = (OFTEN, Kind("one", live=1, rows=2, pos=6, many=24), Kind("two", live=2, rows=2, sizes=(4, 6, 3, 5), many=24),
        Kind("long", live=17, rows=20))


def merge(program: Program) -> Program:
    """The program with its values merged; the same object where nothing is."""
    program = without_tangents(program)
    small = simplify(program)  # what a rule finds needs no probe
    found = merges(small)
    return small.with_values(_replaced(small.values(), found)) if found else program


def merges(program: Program) -> dict[Node, Node]:
    """Of every value that goes, the one that stays: an earlier one."""
    order = list(postorder(program.values()))
    protecting = _protecting(program, order)
    near = _values(program, program.values(), NEAR, torch.float64)
    groups = _candidates(order, near, _exponents(order) | protecting)
    wide: list[Values] = []
    for kind in (NEAR, *KINDS, *MORE):
        if not groups:
            return {}
        same = kind is NEAR and not any(n.op == "pick" for n in order)  # of which dims are is seen by their sizes
        wide.append(near if same else _values(program, [n for g in groups for n in g], kind, torch.float64))
        groups = [part for g in groups for part in _parted(g, wide[-1])]
    roots = _decided(program, [n for g in groups for n in g], wide)
    narrow = [_values(program, roots, kind, torch.float32) for kind in (NEAR, *KINDS)] if roots else []
    cones = {n: protecting & set(postorder([n])) for n in roots}
    index = {n: i for i, n in enumerate(order)}
    found: dict[Node, Node] = {}
    for group in groups:
        certain = sorted((n for n in group if n in cones), key=index.__getitem__)
        for m in certain[1:]:
            for stays in certain[:certain.index(m)]:
                if (m.args and stays not in found and cones[m] <= cones[stays]
                        and _may_stand_for(stays, m, wide, narrow)):
                    found[m] = stays
                    break
    return found


def _parted(group: list[Node], run: Values) -> list[list[Node]]:
    """The members of a group that are still alike."""
    parts: list[list[Node]] = []
    for n in group:
        home = next((p for p in parts if _equal(run[p[0]], run[n])), None)
        if home is None:
            parts.append([n])
        else:
            home.append(n)
    return [p for p in parts if len(p) > 1]


def _may_stand_for(stays: Node, goes: Node, wide: list[Values], narrow: list[Values]) -> bool:
    """Equal everywhere, and nowhere less exact in fp32."""
    return (all(_equal(w[goes], w[stays]) for w in wide)
            and all(_error(n[stays], w[stays]) <= _error(n[goes], w[goes]) for n, w in zip(narrow, wide, strict=False)))


def _replaced(roots: list[Node], by: Mapping[Node, Node]) -> list[Node]:
    done: dict[Node, Node] = {}
    for n in postorder([*by.values(), *roots]):  # what stays comes before what goes
        done[n] = done.get(by[n], by[n]) if n in by else n.on(*(done[a] for a in n.args))
    return [done[r] for r in roots]


# ---------------------------------------------------------------- candidates
def _candidates(order: Sequence[Node], known: Values, left: set[Node]) -> list[list[Node]]:
    """Values that agree on the first probe, those `left` aside and what is made of numbers alone."""
    ends: dict[object, list[Node]] = defaultdict(list)  # first by what costs least
    for n in order:
        if n.kind == "real" and n.op not in _NO_VALUE and n not in left:
            flat = known[n].numpy().flat
            ends[n.dims, f"{flat[0]:.6e}", f"{flat[-1]:.6e}"].append(n)
    rank = {n: i for i, n in enumerate(order)}
    groups: dict[object, list[Node]] = defaultdict(list)
    for n, key in sorted(((n, key) for key, g in ends.items() if len(g) > 1 for n in g), key=lambda x: rank[x[0]]):
        x = known[n]
        rms = float(x.square().mean().sqrt())
        if math.isfinite(rms) and rms and float(x.min()) != float(x.max()):
            groups[key, f"{rms:.7e}"].append(n)
    return [g for g in groups.values() if len(g) > 1]


def _protecting(program: Program, order: Sequence[Node]) -> set[Node]:
    """What chooses by, or guards against, an input that may be infinite: it is there for values that probes miss."""
    with proving(program):
        odd = depends(order, [n for n in order if not n.args and bounds(n).infinite])
    return {n for n in order if n.op in ("where", "guard", "live") and n.args[0] in odd}


def _exponents(order: Sequence[Node]) -> set[Node]:
    found: set[Node] = set()
    for n in reversed(order):
        if n.op in ("exp", "segprod") or (n in found and n.op in _EXPONENT):
            found |= set(n.args)
    return found


# ---------------------------------------------------------------- values
def _values(program: Program, roots: Sequence[Node], kind: Kind, dtype: torch.dtype) -> dict[Node, Tensor]:
    known: dict[Node, Tensor] = {}
    evaluate(roots, _env(program, roots, kind, dtype), known)
    return known


def _env(program: Program, roots: Sequence[Node], kind: Kind, dtype: torch.dtype) -> Env:
    """Inputs that depend on names and kind alone, rounded to fp32 for both dtypes."""
    spare = chain(kind.sizes, count(max(kind.sizes) + 1))
    taken = [(n.attr("dim"), n.attr("i") + 1) for n in postorder(roots) if n.op == "pick"]
    sizes: dict[str, int] = {}
    for d in program.dims:  # a dim whose entries are taken one by one has them all
        sizes[d.name] = sizes[d.alias] if d.alias else d.size or max(
            [next(spare), *(i for dim, i in taken if dim == d.name)])
    consts = const_values(program.consts, sizes, {})
    given = {n: _const(c, f"merge|{kind.name}|{n}", kind) for n, c in consts.items()}
    decls = {d.name: d for d in program.decls}
    every = {**sizes, ROW: kind.rows, COL: kind.rows, "_u": kind.rows, LEVEL: (kind.rows - 1).bit_length()}

    def leaf(n: Node) -> Tensor:
        name = n.attr("name", "")
        if n.op == "const":
            return given[name].to(dtype)
        if n.op == "pos":
            return torch.arange(kind.pos, kind.pos + kind.rows, dtype=dtype).reshape(1, 1, *[kind.rows] * len(n.dims))
        d = decls.get(name)
        ranged = d is not None and d.role in ("in", "param")
        r = region(d, lambda x: number_of(x, sizes, consts), d.dims) if d is not None and ranged else None
        dims = [x for x in n.dims if x != ROW]
        shape = [kind.many, kind.rows if ROW in n.dims else 1, *(every[x] for x in dims)]
        (x,) = draw(f"merge|{kind.name}|{n.op}|{name}", shape, dims, r, 1.0 if n.op == "cot" else kind.scale)
        y = torch.from_numpy(_with_ends(x, r, d is not None and d.role == "state" and _starts_infinite(d.init))
                             if kind.ends else x).to(torch.float32).to(dtype)
        return (y if ROW in n.dims else y.squeeze(1)).unsqueeze(1)

    live = (torch.arange(kind.rows) < kind.live).reshape(1, 1, kind.rows)
    return Env(leaf, every, dtype=dtype, live=live if kind.live < kind.rows else None)


def _const(default: float, key: str, kind: Kind) -> Tensor:
    """Values [many, 1] that a call may give it, other than the default: c and 1 - c are one number at 0.5, and on which
    side of a threshold c lies at first says little."""
    u = torch.from_numpy(uniform(key, [kind.many]))
    factor = 1 + 0.1 * u if kind.ends else -2 * u if kind.name == "far" else 4 * u * u
    value = default + 0 * u if kind is NEAR else (default or 1.0) * factor
    return value.to(torch.float32).reshape(kind.many, 1)


def _with_ends(x: np.ndarray, r: Region | None, infinite: bool) -> np.ndarray:
    """Every fifth entry at the lower end of the range, every seventh at the upper one, where the end belongs to it."""
    flat = x.reshape(-1).copy()
    if infinite:
        flat[::5] = -math.inf
    if r is not None and not r.norms and r.bounded:
        if r.low == -math.inf or not r.low_open:
            flat[::5] = r.low
        if r.high == math.inf or not r.high_open:
            flat[3::7] = r.high
    return flat.reshape(x.shape)


def _starts_infinite(init: Node | None) -> bool:
    return init is not None and any(n.op == "number" and n.attr("value") in (math.inf, -math.inf)
                                    for n in postorder([init]))


# ---------------------------------------------------------------- judgements
def _equal(a: Tensor, b: Tensor) -> bool:
    a, b = torch.broadcast_tensors(a, b)
    if a.numel() and math.isfinite(a.sum().item()) and math.isfinite(b.sum().item()):  # then all of them are
        return bool((a - b).abs().max() <= _DIGITS * a.abs().max())
    odd = ~torch.isfinite(a)
    if not torch.equal(odd, ~torch.isfinite(b)) or not torch.equal(a[odd].nan_to_num(7.0), b[odd].nan_to_num(7.0)):
        return False
    return bool(((a - b)[~odd].abs() <= _DIGITS * _scale(a)).all())


def _error(narrow: Tensor, wide: Tensor) -> float:
    """Of an fp32 value over its RMS, what rounding twice may do counting as none; infinite where it should be a
    number and is none."""
    good = torch.isfinite(wide)
    if not bool(good.any()):
        return 0.0
    off = (narrow.double() - wide)[good]
    rms = float(wide[good].square().mean().sqrt())
    worst = float(off.abs().max()) if bool(torch.isfinite(off).all()) else math.inf
    return float(f"{max(worst / rms if rms else worst, 2.0**-22):.1e}")


def _decided(program: Program, roots: Sequence[Node], runs: Sequence[Values]) -> list[Node]:
    """Those below which every decision has been seen on each of its sides, in a run in whose values of the root it can
    be told: `maximum(x, 1e-3)` is x wherever both are measured by another entry of 1e30.  Nor is anything below them
    0 in all runs: x + y is x for a y that only rare sequences of decisions let through."""
    known = {d.name for d in program.dims if d.size}
    deciding = [n for n in postorder(roots) if (n.op in _DECIDING or chooses(n)) and not _fixed(n, known)]
    sides = {n: [_sides(n, run) for run in runs] for n in deciding}

    def told(root: Node, decision: Node) -> bool:
        least = [_TELLING * _scale(run[root]) for run in runs]
        return all(any(s[i] > x for s, x in zip(sides[decision], least, strict=True)) for i in (0, 1))
    unseen = {n for n in postorder(roots) if n.args and n.kind == "real" and not any(run[n].any() for run in runs)}
    return [r for r in roots if all(told(r, n) if n in sides else n not in unseen for n in postorder([r]))]


def _fixed(n: Node, known: set[str]) -> bool:
    """It reads numbers alone, those of dims of `known` sizes included: of others, `index[K] < 64` is yes in all that
    is seen."""
    return all(x.op == "number" or (x.op in ("size", "index") and {x.attr("dim"), *x.dims} - {None} <= known)
               for x in postorder([n]) if not x.args)


_DECIDING = CHOICES | {"and", "or", "not", "elu", "where", "mod", "floordiv"}
_TELLING = 100 * _DIGITS


def _sides(n: Node, run: Values) -> tuple[float, float]:
    """What the most of a decision that fell on each side is: the difference to what the other side gives, what a choice
    gives that is no number, inf for one between yes and no; 0 where none fell there."""
    y, xs = run[n], [run[a] for a in n.args]
    none, all_ = torch.zeros(()), torch.full((), math.inf)
    found = none, none
    if n.kind == "bool":
        found = torch.where(y, all_, none), torch.where(y, none, all_)
    elif n.op in ("maximum", "minimum") and n.args[0].dims == n.args[1].dims == n.dims:
        found = xs[1] - xs[0], xs[0] - xs[1]
    elif n.op == "where":  # half of 0 is no sight of the half that a tie has
        yes = align(xs[0], n.args[0].dims, n.dims, 2)
        a, b = (all_ if is_number(x) else y.abs() for x in n.args[1:])
        found = torch.where(yes, a, none), torch.where(yes, none, b)
    elif n.op == "scan":
        a, new = (align(x, m.dims, n.dims, 2) for x, m in zip(xs[:2], n.args, strict=False))
        start = align(xs[2], n.args[2].dims, n.dims[1:], 2)
        before = shift(y, start, 2, n.attr("reverse"))
        kept = a * before if COMBINES[n.attr("combine")].times else a + before
        found = kept - new, new - kept
    elif n.op == "floordiv":
        found = torch.where(y == 0, all_, none), y.abs()
    elif n.op in ("maximum", "minimum", "clamp", "mod"):
        whole = next((x for x, a in zip(xs, n.args, strict=True) if a.dims == n.dims), None)
        if whole is not None:  # is it the first operand that came through, or another?
            found = torch.where(y == whole, all_, none), (y - whole).abs()
    elif n.op in ("relu", "abs", "sign", "elu"):
        found = -xs[0], xs[0]
    return _most(found[0]), _most(found[1])


def _most(x: Tensor) -> float:
    return max(float(x.nan_to_num(0.0, posinf=math.inf).max()), 0.0) if x.numel() else 0.0


def _scale(x: Tensor) -> float:
    """The largest finite entry."""
    finite = x[torch.isfinite(x)]
    return float(finite.abs().max()) if finite.numel() else 0.0
