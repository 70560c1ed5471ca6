"""What would make a sequential state parallel, where that is known: for `mixer.why` and its note.

A recurrent product `R @ h` with weights of its own is tried out: the step without such products is classified
again.  One that is linear in its states needs no change of what it can express, only another basis.
"""

from __future__ import annotations

from mixc.ir.build import expand, number
from mixc.ir.node import Node, depends, postorder, substitute
from mixc.ir.program import Program

_LINEAR = {"add": None, "sub": None, "neg": None, "expand": None, "rename": None, "mul": 1, "contract": 1, "div": 0}


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
    return all(n in leaves or n not in reads or (n.op in _LINEAR and (
        _LINEAR[n.op] is None or (n.args[0] in reads) + (n.args[1] in reads) == 1)
        and (n.op != "div" or n.args[1] not in reads)) for n in postorder(nexts))


def advice(step: Program, names: list[str]) -> str | None:
    """The change that would help, in words; None: none is known."""
    return (_without(step, names, recurrent_products(step, names))
            or _without(step, names, recurrent_products(step, names, ("contract", "mul"))))


def _without(step: Program, names: list[str], products: list[Node]) -> str | None:
    from mixc.passes.classify import classify, text_of

    if not products:
        return None
    first = text_of(products[0])
    if is_linear(step, names):
        return f"{first} is linear: in the basis that diagonalises its weights (complex where they turn) it is a scan"
    nothing = {n: expand(number(0), n.dims) for n in products}
    found = classify(step.with_values(substitute(step.values(), nothing)))
    more = {1: "", 2: " and another product like it"}.get(len(products), f" and {len(products) - 1} products like it")
    if not any(n.op == "state" for n in postorder([found.result("next", n) for n in names])):
        return f"without {first}{more}, nothing would be carried"
    forms = [g.form for g in found.groups if set(g.states) & set(names)]
    if "sequential" in forms:
        return None
    return f"without {first}{more}, it would be a {forms[0] if len(set(forms)) == 1 else 'scan'}"
