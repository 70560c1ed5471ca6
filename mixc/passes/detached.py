"""A step that reads its states where no gradient goes: what it reads is found by one program, what it gives by another.

before: S = S + b * k * (v - stop_gradient(k @ S));  o = q @ S
after:  values: S = S + b * k * (v - k @ S);  out r[V] = k @ S      gradients everywhere: the same numbers
        given:  in r[V];  S = S + b * k * (v - r);  o = q @ S       the same gradients

Both are of a form as any other; in a chunk's program r is put in its place again, and no cotangent enters it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from mixc.ir.node import ROW, Node, depends, first_below, fold, make, postorder, substitute
from mixc.ir.program import Decl, Program, Result, free, once_a_program
from mixc.passes.components import components
from mixc.passes.why import text_of


@dataclass(frozen=True, eq=False)
class Detached:
    """`reads`: the names that both programs have and the step has not; `words`: what they are, in the language."""

    values: Program
    given: Program
    reads: tuple[str, ...]
    words: str


@once_a_program
def detached(step: Program) -> Detached | None:
    """None: no gradient ends at what a state's update reads of it, or it does at every entry of a matrix."""
    roots, cut = step.values(), _in_the_way(step)
    found = first_below(roots, lambda n: n in cut)
    matrices = [{*s.dims} for s in step.states if len(s.dims) > 1]
    if not found or any(dims <= {*n.dims} for n in found for dims in matrices):
        return None
    taken = step.names
    decls = [Decl("in", free("read", taken, ""), n.dims, n.kind, exact=True) for n in found]
    leaves = dict(zip(found, (d.leaf() for d in decls), strict=True))
    through = dict(zip(found, fold(found, _through), strict=True))
    ins, others = ([d for d in step.decls if (d.role == "in") is own] for own in (True, False))
    rest = tuple(d for d in others if d.role != "out")
    nexts = [r for r in step.results if r.role == "next"]
    following = fold([r.value for r in nexts], _through)
    values = replace(
        step, origin=None, decls=(*ins, *rest, *(replace(d, role="out") for d in decls)),
        results=(*(Result("out", d.name, through[n]) for n, d in zip(found, decls, strict=True)),
                 *(replace(r, value=x) for r, x in zip(nexts, following, strict=True))))
    given = replace(step.with_values(substitute(roots, leaves)), decls=(*ins, *decls, *others))
    return Detached(values, given, tuple(d.name for d in decls), ", ".join(dict.fromkeys(map(text_of, found))))


def _in_the_way(step: Program) -> set[Node]:
    """Where a gradient ends between a state and its own next value, in however many steps."""
    roots, found = step.values(), set[Node]()
    for names in components(step):
        below = depends(roots, [step.decl(s).leaf() for s in names])
        nexts = [step.result("next", s) for s in names]
        found |= {n for n in postorder(nexts) if n.op == "stop_gradient" and n in below}
    return found


def _through(node: Node, args: list[Node]) -> Node:
    return args[0] if node.op == "stop_gradient" else node.on(*args)


def in_place(values: Program, given: Program, reads: tuple[str, ...]) -> Program:
    """The chunk program of the step, of those of the two."""
    found = {given.decl(name).leaf(): make("stop_gradient", values.result("out", name)) for name in reads}
    rows = {make("in", name=n.attr("name"), dims=(ROW, *n.dims), kind=n.kind): x for n, x in found.items()}
    made = given.with_values(substitute(given.values(), rows))
    return replace(made, decls=tuple(d for d in made.decls if d.name not in reads),
                   dims=tuple(dict.fromkeys((*made.dims, *values.dims))))
