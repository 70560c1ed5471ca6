"""What a forward keeps so that its backward need not form it again.

Each value that both read is kept (a write, a read, and page faults of fresh memory), or formed again from
others that are there, or not needed.  Which is cheapest in all is a maximum closure, found as a minimum
cut (Picard 1976): of every value x, "x is there" costs keeping it; "x is formed again" gives that back less
the price of forming it, and wants x and its arguments there.
"""

from __future__ import annotations

from mixc.codegen.torch_stages import ALIAS, origin, small
from mixc.ir.blocks import PART
from mixc.ir.node import COL, ROW, Node, postorder
from mixc.ir.program import Program

# Microseconds for a matrix of 64 x 64 in fp32 on two cores, temporaries in cache
KEEP, PRODUCT, PASS, SPAN = 2.0, 4.0, 0.8, 4.5
EXTREMA = ("max", "min")
_SIDE, _LEVELS = 64, 6  # of every axis; halvings of a chunk


def worth_keeping(forward: Program, backward: Program) -> tuple[Node, ...]:
    """The values to keep, in the order the forward forms them; none where nothing is carried, and all is near."""
    if not forward.states:
        return ()
    made = [n for n in postorder(forward.values()) if _counts(n)]
    own = set(postorder(forward.values()))
    again = list(postorder(backward.values()))
    needed = {origin(a) for n in again if n not in own for a in n.args} | {origin(n) for n in backward.values()}
    needed &= set(made)
    there = _closure([n for n in made if n in set(again)], needed)
    return tuple(n for n in made if n in there)


def _counts(n: Node) -> bool:
    """Values of one number a row are formed again for next to nothing; sums over spans, with their exponential.
    Scans, and what has a matrix a row, are never kept: the backward forms them from the state that came in; nor are
    extrema: one that is kept is none of the entries that are formed again, when these are rounded otherwise."""
    if n.op in ("scan", "scan_end", "scan_block", "previous", *EXTREMA) or n.attr("dim") == PART:
        return False
    if n.dims[:1] == (ROW,) and len(n.dims) > 2 and COL not in n.dims:
        return False
    return bool(n.args) and n.op not in (*ALIAS, "segsum") and n.kind == "real" and not small(n) and not _constant(n)


def _constant(n: Node) -> bool:
    return all(x.args or x.op in ("number", "size", "const", "index", "param") for x in postorder([n])) and not any(
        x.op in ("live", "state") for x in postorder([n]))


def _price(n: Node) -> tuple[float, float]:
    """(of keeping it, of forming it from its arguments)"""
    size = float(_SIDE) ** (len(n.dims) - 2)
    if n.op == "span_factors":
        return _LEVELS * KEEP, _LEVELS * SPAN
    if n.op in ("span_product", "unit_inverse"):
        return KEEP, _LEVELS * PRODUCT
    if n.op == "contract":
        return KEEP * size, PRODUCT * size
    if n.op == "exp" and origin(n.args[0]).op == "segsum":
        return KEEP * size, SPAN * size
    widest = max([len(n.dims), *(len(a.dims) for a in n.args)])
    return KEEP * size, (4 if n.op == "segprod" else 1) * PASS * float(_SIDE) ** (widest - 2)


def _closure(values: list[Node], needed: set[Node]) -> set[Node]:
    """Of `values` (needed ones among them), those that are there because they are kept."""
    import networkx as nx  # slow to import, and only needed to compile

    graph: nx.DiGraph = nx.DiGraph()
    inside = set(values)
    for n in values:
        keep, form = _price(n)
        if n not in needed:
            graph.add_edge(("there", n), "sink", capacity=keep)
        if keep > form:
            graph.add_edge("source", ("formed", n), capacity=keep - form)
            graph.add_edge(("formed", n), ("there", n))
            for a in map(origin, n.args):
                if a in inside:
                    graph.add_edge(("formed", n), ("there", a))
    if "source" not in graph or "sink" not in graph:
        formed: set[Node] = {n for n in values if _price(n)[0] > _price(n)[1]}
        return needed - formed
    _, (chosen, _) = nx.minimum_cut(graph, "source", "sink")
    there = {x[1] for x in chosen if x[0] == "there"} | needed
    return there - {x[1] for x in chosen if x[0] == "formed"}
