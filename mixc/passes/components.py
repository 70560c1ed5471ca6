"""The states of a step in groups that need each other."""

from __future__ import annotations

from mixc.ir.node import postorder
from mixc.ir.program import Program


def components(step: Program) -> list[list[str]]:
    """The states in groups that need each other, in the order in which they can be found."""
    import networkx as nx  # slow to import, and only needed to compile

    graph: nx.DiGraph = nx.DiGraph()
    graph.add_nodes_from(s.name for s in step.states)
    for reader in step.states:
        below = set(postorder([step.result("next", reader.name)]))
        graph.add_edges_from((s.name, reader.name) for s in step.states if s.leaf() in below)
    condensed = nx.condensation(graph)
    order = {s.name: i for i, s in enumerate(step.states)}
    return [sorted(condensed.nodes[c]["members"], key=order.__getitem__) for c in nx.lexicographical_topological_sort(
        condensed, key=lambda c: min(order[m] for m in condensed.nodes[c]["members"]))]
