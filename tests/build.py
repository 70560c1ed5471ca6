"""Step programs built node by node, for tests of what lies below the language."""

from __future__ import annotations

from mixc.ir.build import exp
from mixc.ir.node import Node, make, number
from mixc.ir.program import Decl, Dim, Program, Range, Result

KINDS = ("none", "log", "number", "between", "before")


def contract(a: Node, b: Node, *out: str) -> Node:
    return make("contract", a, b, out=out)


def scalar_decay(kind: str) -> Program:
    """Linear attention with a normaliser, a skip by a param, and one decay for the whole state.

    kind: "none"; "log" (exp of an input); "number" (an input of any sign); "between" (two writes, a read between
    them, a second decay after it); "before" (reads of the old and of the decayed state)."""
    q, k, v = Decl("in", "q", ("K",)), Decl("in", "k", ("K",)), Decl("in", "v", ("V",))
    g, a = Decl("in", "g", (), ranges=(Range(high=number(0)),)), Decl("in", "a")
    D, o = Decl("param", "D", ("V",)), Decl("out", "o", ("V",))
    S, n = Decl("state", "S", ("K", "V")), Decl("state", "n", ("K",))
    decay = {"none": None, "number": a.leaf()}.get(kind, exp(g.leaf()))
    S1, n1 = (s.leaf() if decay is None else decay * s.leaf() for s in (S, n))
    S2, n2 = S1 + k.leaf() * v.leaf(), n1 + k.leaf()
    read, last = contract(q.leaf(), S2, "V"), S2
    if kind == "between":
        last = S2 * make("sigmoid", a.leaf()) + (k.leaf() * 0.5) * v.leaf()
        read = read + contract(q.leaf(), last, "V")
    if kind == "before":
        read = contract(q.leaf(), S.leaf(), "V") + contract(q.leaf(), S1, "V")
    size = make("abs", contract(q.leaf(), n2)) + 1.0
    value = read / size + D.leaf() * v.leaf()
    results = (Result("out", "o", value), Result("next", "S", last), Result("next", "n", n2))
    return Program("step", f"mixer_{kind}", (Dim("K"), Dim("V")), (q, k, v, g, a, D, S, n, o), results)
