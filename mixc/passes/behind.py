"""What stands behind products of all tokens -> a step without states, one kernel.

before: y = C @ x_read + skip * u
after:  C_of_x = C @ x_read               a product of all tokens, in torch
        out y[D] = C_of_x + skip * u      entry by entry, in a kernel of its own: torch would write every value of it
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from mixc.ir.node import Node, first_below, postorder, substitute
from mixc.ir.program import Decl, Program, Result, free
from mixc.passes.around import Around, projection


@dataclass(frozen=True, eq=False)
class Behind:
    """`products`: by name of an in that `program` has and the step has not, the product that it holds; what `program`
    reads of the states has the name that `Around.read` gives it."""

    program: Program
    products: dict[str, Node]


def behind(found: Around) -> Behind | None:
    """Of the outs that are more than a product; None: there is none, or they need what no tensor has there."""
    step = found.step
    outs = {name: v for name, v in found.behind.items() if projection(v) is None}
    taken = step.names | found.program.names
    read = {v: name for name, v in found.read.items()}
    products: dict[str, Node] = {}
    given: dict[Node, Decl] = {}
    for n in first_below(outs.values(), lambda n: n in read or projection(n) is not None):
        if n in read:
            given[n] = Decl("in", read[n], n.dims, exact=found.program.decl(read[n]).exact)
        else:
            found_in = next(a.attr("name") for a in postorder([n]) if a.op == "param")
            name = free(f"{found_in}_product", taken)
            products[name], given[n] = n, Decl("in", name, n.dims, span=n.span, exact=True)
    values = substitute(outs.values(), {n: d.leaf() for n, d in given.items()})
    order = [*postorder(values)]
    here = {n.attr("name") for n in order if n.op in ("in", "param")}
    ins, params = ([d for d in of if d.name in here] for of in (step.ins, step.params))
    decls = (*ins, *given.values(), *params, *step.consts, *(d for d in step.outs if d.name in outs))
    made = step.part(f"{step.name}_behind", decls, [Result("out", *x) for x in zip(outs, values, strict=True)])
    told = step.told((*ins, *given.values(), *params))
    if not products or {d.name for d in made.dims} - told or any(n.op == "state" for n in order):
        return None
    return Behind(replace(made, doc=""), products)
