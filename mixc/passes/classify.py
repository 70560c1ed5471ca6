"""Step -> Stages: group the states that need each other, and give each group its form.

before: one token's DAG.
after:  the same DAG, with `group` lines: the strongly connected components of "is read by" in
        the order in which they can be found, each "chunk", "scan" or "sequential" and the term
        that decided it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from mixc.errors import Diagnostic, Span
from mixc.ir.brackets import filled
from mixc.ir.node import Node, is_number, number, postorder
from mixc.ir.program import Decl, Group, Program, once_a_program
from mixc.ir.ranges import bounds, proving
from mixc.passes.advice import advice, lags_apart
from mixc.passes.affine import Affine, AffineForms, Write
from mixc.passes.block import MOST, block_rows
from mixc.passes.block import reason as coupled_reason
from mixc.passes.context import context
from mixc.passes.parts import divided
from mixc.passes.planes import Split, is_complex, part_names, planes
from mixc.passes.scan import is_scan, reason
from mixc.passes.separate import factors_of
from mixc.passes.simplify import PLAIN, rewrite


def classify(step: Program) -> Program:
    """The program at level "stages": groups in topological order, notes for what is sequential."""
    step.read_again()
    if is_complex(step):
        whole = of_complex(context(step).program)
        by_planes = _by_planes(step) if whole is None else whole.groups
        if by_planes is not None:
            return replace(step, level="stages", groups=by_planes)
    if step.origin is not None:
        whole = of_complex(step.origin)
        if whole is not None:
            return replace(step, level="stages", groups=Split(whole).groups())
    with proving(step):
        groups = _fed(step, [_group(step, names) for names in components(step)])
    parts = _parts(step, groups)
    groups = [g for part in parts for g in part.groups] if parts else _whole(step, groups)
    notes = tuple(_note(step, g) for g in groups if g.form == "sequential")
    return replace(step, level="stages", groups=tuple(groups), notes=(*step.notes, *notes),
                   parts=tuple(replace(p, level="step", groups=(), notes=()) for p in parts))


@once_a_program
def parts_of(step: Program) -> tuple[Program, ...]:
    """The programs that run after each other: its parts, or the step itself."""
    return classify(step).parts or (step,)


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


def of_complex(step: Program) -> Program | None:
    """The stages of a step with complex values, where its complex states are of form chunk as they stand: what turns
    them is known by its phase, so that it goes with what is read and written.  Else None."""
    groups = []
    with proving(step):
        for names in components(step):
            states = [step.decl(n) for n in names]
            if any(s.kind == "complex" for s in states):
                if not _turns(step, states) or why_not_chunk(step, states) is not None:
                    return None
                groups.append(Group(tuple(names), "chunk", _reason(step, states)))
            else:
                groups.append(_group(step, names))
    if not is_complex(step) or any(g.form == "sequential" for g in groups) or planes(step) is None:
        return None
    scans = [d for g in groups if g.form == "scan" for d in map(step.decl, g.states)]
    if any(n.kind == "complex" for d in scans for n in postorder([step.result("next", d.name)])):
        return None
    return replace(step, level="stages", groups=tuple(groups), origin=None)


def _turns(step: Program, states: list[Decl]) -> bool:
    """Matrices, or vectors that are corrected by what they hold."""
    forms = AffineForms(step, states)
    found = [forms.form(step.result("next", s.name)) for s in states]
    return all(f is not None for f in found) and (
        len(forms.dims) > 1 or any(w.value is not None for u in found if u is not None for w in u.writes))


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
    states = [step.decl(name) for name in names]
    scan = scan_words(step, states)
    if scan is not None and not (len(states) > 1 and coupled_by_scalars(step, states)):
        return Group(tuple(names), "scan", _advised(scan, lags_apart(step, names)))
    refusal = why_not_chunk(step, states)
    if refusal is None:
        return Group(tuple(names), "chunk", _reason(step, states))
    if scan is not None:
        return Group(tuple(names), "scan", _advised(scan, lags_apart(step, names)))
    return Group(tuple(names), "sequential", _advised(refusal[0], advice(step, names)))


def _fed(step: Program, groups: list[Group]) -> list[Group]:
    """Matrices that take over whole matrices, `S = a * S + M`, in one group with those, where that is of form chunk:
    else all of M would be formed for every token."""
    found: list[Group] = []
    for g in groups:
        feeding = [x for x in found if _reads(step, g, x)] if g.form != "chunk" else []
        for some in (feeding, *([x] for x in feeding)):
            between = [x for x in feeding if x not in some and any(_reads(step, x, y) for y in some)]
            order = [s.name for s in step.states if any(s.name in x.states for x in (*some, g))]
            states = [step.decl(n) for n in order]
            if (some and not between and all(x.form == "chunk" for x in some) and len(states[0].dims) > 1
                    and why_not_chunk(step, states) is None and _of_scalars(step, states)):
                found = [x for x in found if x not in some]
                g = Group(tuple(order), "chunk", _reason(step, states))
                break
        found.append(g)
    return found


def _reads(step: Program, group: Group, other: Group) -> bool:
    below = set(postorder([step.result("next", n) for n in group.states]))
    return any(step.decl(n).leaf() in below for n in other.states)


def _of_scalars(step: Program, states: list[Decl]) -> bool:
    forms = AffineForms(step, states)
    updates = [forms.form(step.result("next", s.name)) for s in states]
    return not any(d is not None and set(d.dims) & forms.dims for u in updates if u for d in u.decays.values())


def scan_words(step: Program, states: list[Decl]) -> str | None:
    """Why the group is a scan, or None."""
    if len(states) > 1:
        return coupled_reason(states) if block_rows(step, states) is not None else None
    form = None if states[0].kind == "complex" else is_scan(step, states[0])
    return None if form is None else reason(step, states[0], form)


def _advised(why: str, change: str | None) -> str:
    return why if change is None else f"{why}; {change}"


def _reason(step: Program, states: list[Decl]) -> str:
    forms = AffineForms(step, states)
    updates = [f for f in (forms.form(step.result("next", s.name)) for s in states) if f is not None]
    own = [f.decays.get(leaf, number(0)) for f, leaf in zip(updates, forms.leaves, strict=True)]
    along = [d for d in states[0].dims if any(c is not None and d in c.dims for c in own)]
    decay = "no decay" if own == [None] * len(own) else f"a decay that differs along {', '.join(along)}" if along else \
        "a decay that is the same for the whole state"
    if any(c is not None and c.kind == "complex" for c in own):
        decay += ", complex, its phase turning what is read and written,"
    writes = {w for f in updates for w in f.writes}
    n, low = len(writes), [w for w in writes if w.value is not None]
    if forms.apart:
        decay += f", matrices beside each other along {', '.join(d for d in states[0].dims if d in forms.apart)}"
    def summed(writes: Iterable[Write]) -> list[str]:
        return [d for d, new in forms.ranks.items() if any(new in f.dims for w in writes for f in w.factors)]
    of_rank = f" and summed over {', '.join(summed(writes))}" if summed(writes) else ""
    if low:
        alone = [w for w in low if not summed([w])]
        rank = [*([str(len(alone))] if alone else []), *(" * ".join(summed([w])) for w in low if w not in alone)]
        of_rank += f", {len(low)} of which read{'s' if len(low) == 1 else ''} it (rank {' + '.join(sorted(rank))})"
    written = f"{n} outer product{'s' if n != 1 else ''} written{of_rank}"
    if len(states) == 1:
        return f"affine in itself, with {decay} and {written}"
    taken = [f"{s.name} from {o.name}" for s, f in zip(states, updates, strict=True)
             for o, leaf in zip(states, forms.leaves, strict=True) if o is not s and leaf in f.decays]
    through = f"; {', '.join(taken)} by a factor that is carried through the chunk" if taken else ""
    return f"{' and '.join(s.name for s in states)} are affine in each other, with {decay} and {written}{through}"


def why_not_chunk(step: Program, states: list[Decl]) -> tuple[str, Span | None] | None:
    """None if the states are affine in each other with separable decays, writes outer products, and are corrected along
    one side; else the term to blame, and where it stands."""
    several = ", ".join(s.name for s in states)
    if any(s.kind == "complex" for s in states) and not _turns(step, states):
        return (f"{several} is complex" if len(states) == 1 else
                f"{several} are complex and need each other: {2 * len(states)} coupled states in real and imaginary "
                f"planes, where at most {MOST} are solved"), states[0].span
    if len(states) > MOST or any(set(s.dims) != set(states[0].dims) for s in states):
        return f"{several} are coupled: each is read by the next one's update", states[0].span
    forms = AffineForms(step, states)
    found: list[Affine] = []
    for s in states:
        update = step.result("next", s.name)
        form = forms.form(update)
        if form is None:
            blame = _blame(forms, update)
            return f"the update of {s.name} is not affine in {_itself(states)}: {text_of(blame)}", blame.span
        found.append(form)
        refusal = _one_state(s, form, forms.apart)
        if refusal is not None:
            return refusal
    return _two_sides(states, forms, found) or _crossed(states, forms, found) or _endless(states)


def _itself(states: list[Decl]) -> str:
    return "it" if len(states) == 1 else " and ".join(s.name for s in states)


def _one_state(state: Decl, form: Affine, apart: frozenset[str]) -> tuple[str, Span | None] | None:
    """Decays that do not separate, writes that are no outer products."""
    for leaf, decay in form.decays.items():
        if decay is not None and factors_of(decay, state.dims) is None:
            where = ", ".join(d for d in decay.dims if d in state.dims)
            of = "the decay of" if leaf is state.leaf() else f"what {leaf.attr('name')} adds to"
            return f"{of} {state.name} does not separate over {where}: {text_of(decay)}", decay.span
    for write in form.writes:
        for f in write.factors:
            if len(set(f.dims) & set(state.dims) - apart) > 1:
                return f"what is added to {state.name} is no sum of outer products: {text_of(f)}", f.span
    return None


def coupled_by_scalars(step: Program, states: list[Decl]) -> bool:
    """Are they matrices, with factors between them that are the same for every entry?"""
    rows = block_rows(step, states)
    return len(states[0].dims) > 1 and rows is not None and not any(
        set(a.dims) & set(states[0].dims) for r in rows for a in r.a)


def _crossed(states: list[Decl], forms: AffineForms, found: list[Affine]) -> tuple[str, Span | None] | None:
    """States that take over from each other under decays along both dims: no factor of a pair of rows separates."""
    if not any(leaf in f.decays for i, f in enumerate(found) for j, leaf in enumerate(forms.leaves) if i != j):
        return None
    decays = [d for f in found for d in f.decays.values() if d is not None]
    along = [d for d in states[0].dims if any(d in x.dims for x in decays)]
    if len(along) < 2:
        return None
    blame = next(d for d in decays if along[1] in d.dims)
    return (f"{_itself(states)} take over from each other, with decays along {' and '.join(along)}: {text_of(blame)}",
            blame.span)


def _two_sides(states: list[Decl], forms: AffineForms, found: list[Affine]) -> tuple[str, Span | None] | None:
    """Corrections along different dims, or with a weight that has the dims they sum over, form no triangular system
    over rows."""
    sides: dict[frozenset[str], Node] = {}
    for w in forms.in_order(w for f in found for w in f.writes):
        for r in w.value.coefs if w.value is not None else ():
            sides.setdefault(frozenset(forms.summed(r)), r.node)
            if forms.summed(r) & forms.apart:
                along = ", ".join(d for d in states[0].dims if d in forms.summed(r) & forms.apart)
                names = ", ".join(s.name for s in states)
                return f"{names} is corrected by a sum over {along}: {text_of(r.node)}", r.node.span
    if len(sides) > 1:
        (_, a), (_, b) = list(sides.items())[:2]
        is_ = f"{states[0].name} is" if len(states) == 1 else f"{_itself(states)} are"
        return f"{is_} corrected along both sides: {text_of(a)} and {text_of(b)}", b.span
    return None


def _endless(states: list[Decl]) -> tuple[str, Span | None] | None:
    return next(((f"{s.name} starts at an infinity, which no factor of 0 forgets", s.span) for s in states
                 if bounds(s.leaf()).infinite), None)


def _blame(forms: AffineForms, node: Node) -> Node:
    """The innermost node that lost the form although its arguments had it."""
    while True:
        bad = [a for a in node.args if not forms.free(a) and forms.form(a) is None and forms.value(a) is None]
        if not bad or bad[0].op == "rename":  # `h[E]` is the state; what is done with it is to blame
            return node
        node = bad[0]


def text_of(node: Node) -> str:
    """The user's own words for a node, or for what it is made of, where they are known."""
    words = _words(node if node.span is not None else rewrite([node], PLAIN)[0])
    span = next((n.span for n in (node, *postorder([node])) if n.span is not None), None)
    return f"`{words if len(words) <= _LONGEST else node.op + '(...)'}`" + (f" (line {span.line})" if span else "")


def _words(node: Node) -> str:
    if node.span is not None:
        return node.span.source.line(node.span.line)[node.span.column - 1:node.span.end - 1]
    if node.op == "number":
        return f"{node.attr('value'):g}" if node.kind == "real" else str(node.attr("value"))
    if not node.args:
        return str(node.attr("name") or node.attr("dim") or node.op)
    if node.op in ("expand", "rename"):
        return _words(node.args[0])
    if node.op == "sub" and is_number(node.args[0], 0.0):
        return filled("-{0}", [_words(node.args[1])])
    args = [_words(a) for a in node.args]
    return filled(_SIGNS[node.op], args) if node.op in _SIGNS else f"{node.op}({', '.join(args)})"


_LONGEST = 80
_SIGNS = {"neg": "-{0}", "contract": "{0} @ {1}", **{op: f"{{0}} {sign} {{1}}" for op, sign in dict(
    add="+", sub="-", mul="*", div="/", lt="<", le="<=", eq="==", ne="!=").items()}}


def _parts(step: Program, groups: list[Group]) -> list[Program]:
    """The parts of a step whose states are not all sequential, nor all parallel over time; none: it is one program."""
    alone = frozenset(s for g in groups if g.form != "sequential" for s in g.states)
    turned = frozenset(d.name for d in step.states if d.kind == "complex")  # by their planes, perhaps: tried out
    for parallel in dict.fromkeys((alone | turned, alone)):
        while parallel and len(parallel) < len(step.states):
            parts, found = divided(step, [g.states for g in groups], parallel)
            stages = [classify(p) for p in parts] if len(parts) > 1 else []
            wrong = {s for p in stages for g in p.groups if g.form == "sequential" for s in g.states} & found
            if not wrong:
                return [inner for p in stages for inner in (map(classify, p.parts) if p.parts else [p])]
            parallel = found - wrong
    return []


def _whole(step: Program, groups: list[Group]) -> list[Group]:
    """What no chunk program holds yet makes every state sequential: they run in one loop."""
    reason = None
    for node in postorder(step.values()):
        if node.kind == "complex":
            reason = f"{text_of(node)} is complex"
    if reason is None:
        reason = next((g.why for g in groups if g.form == "sequential"), None)
        if reason:
            reason = "it shares a matrix of every token with a sequential state, and its loop: " + reason
    if reason is None:
        return groups
    return [g if g.form == "sequential" else Group(g.states, "sequential", reason) for g in groups]


def _note(step: Program, group: Group) -> Diagnostic:
    names = ", ".join(group.states)
    span, runs = step.decl(group.states[0]).span, "runs" if len(group.states) == 1 else "run"
    return Diagnostic("MX301", f"{names} {runs} token by token: {group.why}", span, None, "note")
