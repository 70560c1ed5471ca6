"""What would make a sequential state parallel, or a scan a chunk, where that is known: for `mixer.why` and its note.

A recurrent product `R @ h` with weights of its own is tried out: the step without such products is classified
again.  One that is linear in its states needs no change of what it can express, only another basis.
"""

from __future__ import annotations

from mixc.ir.build import expand, number, product
from mixc.ir.node import Node, depends, is_number, make, postorder, substitute
from mixc.ir.ops import OPS
from mixc.ir.program import Program
from mixc.ir.ranges import bounds, proving
from mixc.passes.block import block_rows
from mixc.passes.outer import Ranks, outer_products
from mixc.passes.why import text_of, why_not_chunk


def recurrent_products(step: Program, names: list[str], ops: tuple[str, ...] = ("contract",)) -> list[Node]:
    """Products of a state of `names` with weights that no token changes; of `ops` "mul" are those entry by entry."""
    nexts = [step.result("next", n) for n in names]
    reads = depends(nexts, [step.decl(n).leaf() for n in names])
    tokens = depends(nexts, [d.leaf() for d in (*step.ins, *step.states)])
    return [n for n in postorder(nexts) if n.op in ops and n in reads and sum(a in reads for a in n.args) == 1
            and any(a not in tokens and any(x.op == "param" for x in postorder([a])) for a in n.args)]


def is_linear(step: Program, names: list[str]) -> bool:
    """Do the next values depend on these states by sums and products with other values alone?"""
    leaves = [step.decl(n).leaf() for n in names]
    nexts = [step.result("next", n) for n in names]
    reads = depends(nexts, leaves)

    def linear(n: Node) -> bool:
        own = {i for i, a in enumerate(n.args) if a in reads}
        return own <= {*OPS[n.op].linear_in} and (len(own) == 1 or own <= {*OPS[n.op].jointly})
    return all(n in leaves or n not in reads or linear(n) for n in postorder(nexts))


def advice(step: Program, names: list[str]) -> str | None:
    """The change that would help, in words; None: none is known."""
    return (lags_apart(step, names) or _ordered(step, names) or _without(step, names, recurrent_products(step, names))
            or _without(step, names, recurrent_products(step, names, ("contract", "mul"))))


def lags_apart(step: Program, names: list[str]) -> str | None:
    """A lag of an outer product is a matrix of every token, any one at the start; the product of the lags of its
    factors is no matrix: that, if it makes a chunk."""
    states, values = [step.decl(n) for n in names], step.values()
    dims, apart, said = set(states[0].dims), dict[Node, Node](), ""
    for n in postorder([step.result("next", name) for name in names]):
        matrix = n.op == "lag" and len(n.dims) > 1
        factors = outer_products(n.args[0], dims, Ranks(values), lambda x: False) if matrix else []
        if len(factors) != 1 or any(len(f.dims) > 1 for f in factors[0]):
            continue
        apart[n] = product(f if is_number(f) else make("lag", f, n=n.attr("n"), name="x") for f in factors[0]) or n
        said = said or f"{text_of(n)} is a matrix of every token; as the product of the lags of " + " and ".join(
            f"`{f.attr('name')}`" if not f.args else text_of(f) for f in factors[0] if not is_number(f))
    if not apart or why_not_chunk(step.with_values(substitute(values, apart)), states) is not None:
        return None
    return f"{said} it would be a chunk"


def as_complex(step: Program, names: list[str]) -> str | None:
    """Two matrices that turn into each other, X = c * X - s * Y and Y = s * X + c * Y with factors that have dims, are
    the planes of one complex matrix, which is a chunk."""
    states, values = [step.decl(n) for n in names], step.values()
    rows = block_rows(step, states) if len(names) == 2 and len(states[0].dims) > 1 else None
    if rows is None:
        return None
    (c, back), (s, d) = (r.a for r in rows)
    written = [outer_products(r.b, {*states[0].dims}, Ranks(values), lambda x: False) for r in rows]
    if c is not d or not (_negated(back, s) or _negated(s, back)) or any(
            len({*f.dims} & {*states[0].dims}) > 1 for w in written for p in w for f in p):
        return None
    return f"as one complex state, `{names[0]} + 1j * {names[1]}`, which is turned by a factor, it would be a chunk"


def _negated(x: Node, y: Node) -> bool:
    return x.op in ("mul", "neg") and y in x.args and {*x.args} <= {y, number(-1)}


def _ordered(step: Program, names: list[str]) -> str | None:
    """Of a maximum or minimum with a multiple of the state: that the factor keeps the order, if that makes a scan."""
    nexts = [step.result("next", n) for n in names]
    reads = depends(nexts, [step.decl(n).leaf() for n in names])
    inside = list(postorder(nexts))
    if not any(n.op in ("maximum", "minimum") and n in reads for n in inside):
        return None
    with proving(step):
        signed = dict.fromkeys(a for n in inside if n.op == "mul" and n in reads for a in n.args
                               if a not in reads and not bounds(a).nonnegative)
    forms = _forms(step, names, {a: make("abs", a) for a in signed}) if signed else ["sequential"]
    if not forms or "sequential" in forms:
        return None
    known = " and ".join(map(text_of, signed))
    return f"if {known} were known to be >= 0 (as `where` declares it) it would be a {forms[0]}"


def _forms(step: Program, names: list[str], changes: dict[Node, Node]) -> list[str]:
    """Of these states, were the step so changed; none: nothing would be carried."""
    from mixc.passes.classify import classify

    found = classify(step.with_values(substitute(step.values(), changes)), advise=False)
    if not any(n.op == "state" for n in postorder([found.result("next", n) for n in names])):
        return []
    return [g.form for g in found.groups if set(g.states) & set(names)]


def _without(step: Program, names: list[str], products: list[Node]) -> str | None:
    if not products:
        return None
    if is_linear(step, names):
        return (f"{text_of(products[0])} is linear: in the basis that diagonalises its weights (complex where they "
                "turn) it is a scan")
    nothing = {n: expand(number(0), n.dims) for n in products}
    forms = _forms(step, names, nothing)
    for n in products[::-1] if forms and "sequential" not in forms else ():  # those alone that must go
        fewer = _forms(step, names, {p: zero for p, zero in nothing.items() if p is not n})
        if fewer and "sequential" not in fewer:
            del nothing[n]
            forms = fewer
    if not nothing:  # it is sequential beside others, and not for any of them
        return None
    products = [*nothing]
    first = text_of(products[0])
    more = {1: "", 2: " and another product like it"}.get(len(products), f" and {len(products) - 1} products like it")
    if not forms:
        return f"without {first}{more}, nothing would be carried"
    if "sequential" in forms:
        return None
    return f"without {first}{more}, it would be a {forms[0] if len(set(forms)) == 1 else 'scan'}"
