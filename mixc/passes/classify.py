"""Step -> Stages: group the states that need each other, and give each group its form.

before: one token's DAG.
after:  the same DAG, with `group` lines: the strongly connected components of "is read by" in
        the order in which they can be found, each "chunk", "scan" or "sequential" and the term
        that decided it.
"""

from __future__ import annotations

from dataclasses import replace

from mixc.errors import Diagnostic, Span
from mixc.ir.node import Node, depends, postorder
from mixc.ir.program import Decl, Group, Program
from mixc.ir.ranges import proving
from mixc.passes.advice import advice
from mixc.passes.affine import Affine, AffineForms
from mixc.passes.block import block_rows
from mixc.passes.block import reason as coupled_reason
from mixc.passes.context import context
from mixc.passes.planes import is_complex, part_names, planes
from mixc.passes.scan import is_scan, reason
from mixc.passes.separate import factors_of


def classify(step: Program) -> Program:
    """The program at level "stages": groups in topological order, notes for what is sequential."""
    import networkx as nx  # slow to import, and only needed to compile

    if is_complex(step):
        by_planes = _by_planes(step)
        if by_planes is not None:
            return replace(step, level="stages", groups=by_planes)
    graph: nx.DiGraph = nx.DiGraph()
    graph.add_nodes_from(s.name for s in step.states)
    for reader in step.states:
        below = set(postorder([step.result("next", reader.name)]))
        graph.add_edges_from((s.name, reader.name) for s in step.states if s.leaf() in below)
    condensed = nx.condensation(graph)
    order = {s.name: i for i, s in enumerate(step.states)}
    with proving(step):
        groups = [_group(step, sorted(condensed.nodes[c]["members"], key=order.__getitem__))
                  for c in nx.lexicographical_topological_sort(
                      condensed, key=lambda c: min(order[m] for m in condensed.nodes[c]["members"]))]
    groups = _whole(step, groups)
    notes = tuple(_note(step, g) for g in groups if g.form == "sequential")
    return replace(step, level="stages", groups=tuple(groups), notes=(*step.notes, *notes))


def _by_planes(step: Program) -> tuple[Group, ...] | None:
    """The groups of the step of real and imaginary planes, where all of them have a chunk program."""
    real = planes(context(step).program)
    found = None if real is None else classify(real).groups
    if found is None or not found or any(g.form == "sequential" for g in found):
        return None
    whole = {p: d.name for d in step.states if d.kind == "complex" for p in part_names(step, d.name)}
    groups: list[Group] = []
    seen: set[str] = set()
    for g in found:
        names = tuple(n for n in dict.fromkeys(whole.get(s, s) for s in g.states) if n not in seen)
        seen.update(names)
        if names:
            why = "in its real and imaginary planes: " if set(g.states) & set(whole) else ""
            groups.append(Group(names, g.form, why + g.why))
    return tuple(groups)


def _group(step: Program, names: list[str]) -> Group:
    if len(names) > 1:
        states = [step.decl(name) for name in names]
        if block_rows(step, states) is not None:
            return Group(tuple(names), "scan", coupled_reason(states))
        coupled = f"{', '.join(names)} are coupled: each is read by the next one's update"
        return Group(tuple(names), "sequential", _with_advice(step, names, coupled))
    state = step.decl(names[0])
    scan = None if state.kind == "complex" else is_scan(step, state)
    if scan is not None:
        return Group((state.name,), "scan", reason(state, scan))
    refusal = why_not_chunk(step, state)
    if refusal is None:
        forms = affine_forms(step, state)
        form = forms.form(step.result("next", state.name))
        assert form is not None
        return Group((state.name,), "chunk", _reason(form, forms))
    return Group((state.name,), "sequential", _with_advice(step, names, refusal[0]))


def _with_advice(step: Program, names: list[str], why: str) -> str:
    change = advice(step, names)
    return why if change is None else f"{why}; {change}"


def affine_forms(step: Program, state: Decl) -> AffineForms:
    return AffineForms(state, step.values())


def _reason(form: Affine, forms: AffineForms) -> str:
    along = [d for d in forms.state.dims if form.decay is not None and d in form.decay.dims]
    decay = "no decay" if form.decay is None else f"a decay that differs along {', '.join(along)}" if along else \
        "a decay that is the same for the whole state"
    n = len(form.writes)
    low = sum(w.value is not None for w in form.writes)
    of_rank = f", {low} of which read{'s' if low == 1 else ''} it (rank {low})" if low else ""
    return f"affine in itself, with {decay} and {n} outer product{'s' if n != 1 else ''} written{of_rank}"


def why_not_chunk(step: Program, state: Decl) -> tuple[str, Span | None] | None:
    """None if the state is affine with a separable decay, writes outer products, and is corrected along one side; else
    the term to blame, and where it stands."""
    if state.kind == "complex":
        return f"{state.name} is complex", state.span
    forms = affine_forms(step, state)
    update = step.result("next", state.name)
    form = forms.form(update)
    if form is None:
        blame = _blame(forms, update)
        return f"the update of {state.name} is not affine in it: {text_of(blame)}", blame.span
    if form.decay is not None and factors_of(form.decay, state.dims) is None:
        where = ", ".join(d for d in form.decay.dims if d in state.dims)
        return f"the decay of {state.name} does not separate over {where}: {text_of(form.decay)}", form.decay.span
    for write in form.writes:
        for f in write.factors:
            if len(set(f.dims) & set(state.dims)) > 1:
                return f"what is added to {state.name} is no sum of outer products: {text_of(f)}", f.span
    return _two_sides(state, forms, form)


def _two_sides(state: Decl, forms: AffineForms, form: Affine) -> tuple[str, Span | None] | None:
    """Corrections along different dims, or with a weight that has the dims they sum over, form no triangular system
    over rows."""
    sides: dict[frozenset[str], Node] = {}
    for w in form.writes:
        for r in w.value.coefs if w.value is not None else ():
            sides.setdefault(frozenset(forms.summed(r)), r.node)
    if len(sides) > 1:
        (_, a), (_, b) = list(sides.items())[:2]
        return f"{state.name} is corrected along both sides: {text_of(a)} and {text_of(b)}", b.span
    return None


def _blame(forms: AffineForms, node: Node) -> Node:
    """The innermost node that lost the form although its arguments had it."""
    while True:
        bad = [a for a in node.args if not forms.free(a) and forms.form(a) is None and forms.value(a) is None]
        if not bad or bad[0].op == "rename":  # `h[E]` is the state; what is done with it is to blame
            return node
        node = bad[0]


def text_of(node: Node) -> str:
    """The user's own words for a node where they are known."""
    if node.span is None:
        return repr(node)
    line = node.span.source.line(node.span.line)
    return f"`{line[node.span.column - 1:node.span.end - 1]}` (line {node.span.line})"


def _whole(step: Program, groups: list[Group]) -> list[Group]:
    """What no chunk program holds yet makes every state sequential: they run in one loop."""
    reason = None
    for node in postorder(step.values()):
        if node.kind == "complex":
            reason = f"{text_of(node)} is complex"
    if reason is None:
        reason = next((g.why for g in groups if g.form == "sequential"), None)
        if reason:
            reason = "it runs in one loop with a sequential state: " + reason
    if reason is None:
        return groups
    return [g if g.form == "sequential" else Group(g.states, "sequential", reason) for g in groups]


def _note(step: Program, group: Group) -> Diagnostic:
    names = ", ".join(group.states)
    span = step.decl(group.states[0]).span
    return Diagnostic("MX301", f"{names} runs token by token: {group.why}", span, None, "note")


def form_dependence(step: Program, state: Decl) -> set[Node]:
    return depends(step.values(), [state.leaf()])
