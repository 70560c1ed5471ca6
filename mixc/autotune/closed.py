"""What the launches of a step move, multiply and keep, as polynomials in B, T, H, the dims, C and the segment.

The same terms that the tuner evaluates, with names in place of sizes: whole blocks, T a multiple of the segment `L`
and that of the chunk `C`. Beside them the lower bound on bytes: every input and output once; and, where the
state does not fit on chip, its way to memory and back once a chunk.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import sympy

from mixc.autotune.cost import LaunchModel, Shape
from mixc.autotune.schedule import Variant
from mixc.autotune.terms import Constraint, Term, term, total
from mixc.codegen.names import own_names
from mixc.ir.launch import sums_over
from mixc.ir.node import bare, postorder
from mixc.ir.program import Program
from mixc.passes.around import projection
from mixc.passes.context import context
from mixc.targets import Target

BLOCK = 16  # the least block of a dim
FALLBACK = 32  # rows of a chunk where the number of products depends on it


@dataclass(frozen=True)
class Closed:
    """Of one launch, in bytes and FLOPs for 16-bit tensors; `chunk`: the C these hold for, None for every C; `split`:
    the dims of the step that its programs divide among them."""

    launch: str
    bytes: sympy.Expr
    flops: sympy.Expr
    saved: sympy.Expr
    bound: sympy.Expr
    chunk: int | None
    split: tuple[str, ...]


def closed_forms(step: Program, target: Target) -> list[Closed]:
    """Of every launch.

    Raises:
        SpecError: a step without kernels, or with token loops."""
    from mixc.codegen.triton_program import tuned_kernels

    module = tuned_kernels(step, {})
    names = {n: Term("var", name=n) for n in ("B", "T", "H", "C", "L")}
    dims = {module.own[d.name]: term(d.size) if d.size else Term("var", name=module.own[step.root[d.name]])
            for d in step.dims}
    shape: Any = _Symbolic(names["B"], names["T"], names["H"], dims)
    out = []
    for launch, kernel in module.kernels.items():
        found = Variant(kernel, module).counts((FALLBACK, 2 * FALLBACK), 2)
        held_for, count = next(iter(found.items()))
        counts = count()
        chunk = None if len(held_for) > 1 else FALLBACK
        given: dict[str, Any] = {"C": names["C"] if chunk is None else chunk, "SEGMENT": names["L"]}
        model = LaunchModel(kernel, counts, target, shape, given | {f"B{d}": dims[d] for d in kernel.dims}, 4, 1)
        bound, saved = (total(map(model.extent, group)) for group in model.pointers)
        out.append(Closed(launch, _sympy(model.bytes()), _sympy(model.flops()), _sympy(saved), _sympy(bound), chunk,
                          tuple(d for d, own in module.own.items() if own in kernel.launch.split)))
    last = closed_forms(module.behind[0].program, target) if module.behind else []
    return [*out, *(replace(c, launch=f"{c.launch} behind products") for c in last)]


class _Symbolic(Shape):
    """A shape of names."""

    def __init__(self, B: Any, T: Any, H: Any, dims: Mapping[str, Any]):
        for name, value in {"B": B, "T": T, "H": H, "dims": tuple(dims.items()), "operand": 2}.items():
            object.__setattr__(self, name, value)


def state_traffic(step: Program, sizes: Mapping[str, int], target: Target, chunk: int, split: Collection[str] = ()
                  ) -> float:
    """Bytes that states too large for an SM's registers and shared memory move, once out and in a chunk; of a dim of
    `split` an SM has a block."""
    def entries(least: int) -> int:
        return sum(math.prod(min(sizes[d], least) if d in split else sizes[d] for d in s.dims) for s in step.states)
    numbers = entries(max(sizes.values()))
    if 4 * entries(BLOCK) <= 4 * target.registers_sm + target.shared_block:
        return 0.0
    return 8.0 * numbers * sizes["B"] * sizes["H"] * -(-sizes["T"] // chunk)


def told(forms: list[Closed], step: Program, sizes: Mapping[str, int], target: Target) -> list[str]:
    """Lines of markdown: the polynomials, and their values at a shape over the bound."""
    lines, names = [], own_names(step)
    own = {d.name: names.get(d.name, d.name) for d in step.dims}
    for f in forms:
        chunk = f.chunk or FALLBACK
        at = {sympy.Symbol(own.get(n, n), positive=True): v for n, v in (*sizes.items(), ("C", chunk), ("L", 64))}
        moved, bound = float(f.bytes.subs(at)), float(f.bound.subs(at))
        more = state_traffic(step, sizes, target, chunk, f.split)
        fixed = f" (C = {f.chunk})" if f.chunk else ""
        lines += [f"- {f.launch}: bytes `{f.bytes}`, of these kept for the backward `{f.saved}`",
                  f"  - FLOPs `{f.flops}`{fixed}",
                  f"  - lower bound on bytes `{f.bound}`" + (f" + {more / 1e6:.0f} MB of states" if more else "")
                  + f"; at this shape {moved / 1e6:.0f} MB, {moved / (bound + more):.2f} times the bound"]
    seen = context(step)
    if any(d.name in seen.given and d.ago is None for d in seen.program.ins):  # others kernels read themselves
        lines.append("- before them torch forms what is read of earlier tokens and of positions; "
                     "neither the bytes nor the bound count that")
    return lines + products_told(step)


def products_told(step: Program) -> list[str]:
    """What the products move that stand in front of the kernels and behind them, and what they multiply."""
    from mixc.codegen.triton_program import kernels

    found = kernels(step).around
    if found is None:
        return []
    read = {v: found.program.decl(o) for o, v in found.read.items()}
    made = [n for n in postorder([*found.front.values(), *found.behind.values()], read) if n not in read]
    narrow = {n for name, n in found.front.items() if not found.program.decl(name).exact} | {
        n for name, n in found.behind.items() if not found.step.decl(name).exact}
    size = {d.name: sympy.Integer(d.size) if d.size else sympy.Symbol(d.alias or d.name) for d in found.step.dims}

    def entries(*dims: str) -> sympy.Expr:
        return sympy.prod([size[d] for d in dict.fromkeys(dims)])
    moved = flops = sympy.Integer(0)
    for n in made:
        x, w = projection(n) or (n, n)
        if x is not n:
            whole = bare(x).op != "in" and (bare(x) not in read or read[bare(x)].exact)
            moved += (4 if whole else 2) * entries(*x.dims) + (2 if n in narrow else 4) * entries(*n.dims)
            flops += 2 * entries(*x.dims, *w.dims)
        elif any(sums_over(n, d) for a in n.args for d in a.dims):  # states that lie beside each other are its own
            moved += 4 * sum((entries(*a.dims) for a in n.args), entries(*n.dims))
            flops += entries(*{d: None for a in n.args for d in a.dims}) * (2 if n.op == "contract" else 1)
    rows, names = sympy.prod(sympy.symbols("B T H")), ", ".join(f"`{n}`" for n in (*found.front, *found.behind))
    moved, flops = sympy.factor_terms(rows * moved), sympy.factor_terms(rows * flops)
    return [f"- products of all tokens in torch, for {names}, which neither the bytes nor the bound above count: "
            f"forward bytes `{moved}`, FLOPs `{flops}`; backward twice that"]


def _sympy(t: Term) -> sympy.Expr:
    """The expanded polynomial; a division that rounds up is exact here, and `where` is decided."""
    return sympy.factor_terms(sympy.expand(_plain(t)))


def _plain(t: Term) -> sympy.Expr:
    if t.op == "const":
        return sympy.nsimplify(t.value, rational=True)
    if t.op == "var":
        return sympy.Symbol(t.name, positive=True)
    if t.op == "where":
        return _plain(t.args[1] if _decided(t.args[0]) else t.args[2])
    a, b = map(_plain, t.args)
    return {"add": lambda: a + b, "sub": lambda: a - b, "mul": lambda: a * b, "div": lambda: a / b,
            "cdiv": lambda: a / b, "max": lambda: sympy.Max(a, b), "min": lambda: sympy.Min(a, b)}[t.op]()


def _decided(c: Constraint) -> bool:
    a, b = (_plain(x) for x in c.args)
    return bool({"lt": a < b, "le": a <= b, "eq": sympy.Eq(a, b)}[c.op])


def explained(step: Program, target: Target, shape: Mapping[str, int]) -> str:
    """The section of `explain`: at the usual training shape, but for the sizes that `shape` names."""
    from mixc.codegen.triton_program import whole_shape
    from mixc.errors import SpecError
    from mixc.passes.classify import parts_of

    parts = parts_of(step)
    if len(parts) > 1:
        return "".join(explained(p, target, shape).replace("multiply\n", f"multiply: `{p.name}`\n", 1) for p in parts)
    sizes = whole_shape(step, shape)
    try:
        lines = told(closed_forms(step, target), step, sizes, target)
    except SpecError:
        return ""
    at = ", ".join(f"{n} = {s}" for n, s in sizes.items())
    head = ("16-bit tensors, whole blocks, a state kept for the backward every L rows; "
            f"on {target.title} at {at}, C = 32, L = 64:")
    return "\n".join(["", "## What the launches move and multiply", "", head, "", *lines, ""])
