"""Why states are a chunk, or what of them is to blame that they are none, in the words of the spec."""

from __future__ import annotations

from collections.abc import Iterable

from mixc.errors import Span
from mixc.ir.brackets import filled, leaf_text
from mixc.ir.node import Node, is_number, number, postorder
from mixc.ir.program import Decl, Program
from mixc.ir.ranges import bounds
from mixc.passes.affine import Affine, AffineForms, Write
from mixc.passes.block import MOST
from mixc.passes.separate import factors_of
from mixc.passes.simplify import PLAIN, rewrite

Blame = tuple[str, Span | None]  # what, and where it stands


def why_chunk(step: Program, states: list[Decl]) -> str:
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


def why_not_chunk(step: Program, states: list[Decl]) -> Blame | None:
    """None if the states are affine in each other with separable decays, writes outer products, and are corrected along
    one side; else the term to blame, and where it stands."""
    several = ", ".join(s.name for s in states)
    forms = AffineForms(step, states)
    if any(s.kind == "complex" for s in states) and not turns(step, states):
        if (bent := next(filter(None, (_not_affine(forms, step, s, states) for s in states)), None)) is not None:
            return bent
        return (f"{several} is complex" if len(states) == 1 else
                f"{several} are complex and need each other: {2 * len(states)} coupled states in real and imaginary "
                f"planes, where at most {MOST} are solved"), states[0].span
    widest = max(states, key=lambda s: len(s.dims))
    if any(not {*s.dims} <= {*widest.dims} for s in states) and (other := _other_dims(step, states)) is not None:
        return other
    if any(sum({*s.dims} == {*o.dims} for o in states) > MOST for s in states):
        bent = next(filter(None, (_not_affine(forms, step, s, states) for s in states)), None)
        return bent or (f"{several} are {len(states)} coupled states, each of which is read by the next one's update, "
                        f"where at most {MOST} are solved", states[0].span)
    found: list[Affine] = []
    for s in states:
        form = forms.form(step.result("next", s.name))
        if form is None:
            return _not_affine(forms, step, s, states)
        found.append(form)
        refusal = _one_state(s, form, forms.apart)
        if refusal is not None:
            return refusal
    return _two_sides(states, forms, found) or _crossed(states, forms, found) or _endless(states)


def _not_affine(forms: AffineForms, step: Program, s: Decl, states: list[Decl]) -> Blame | None:
    update = step.result("next", s.name)
    if forms.form(update) is not None:
        return None
    blame = _blame(forms, update)
    return f"the update of {s.name} is not affine in {_itself(states)}: {text_of(blame)}", blame.span


def _other_dims(step: Program, states: list[Decl]) -> Blame | None:
    """States of different dims that need each other: the first term by which one reads another."""
    for s in states:
        inside = list(postorder([step.result("next", s.name)]))
        for other in states:
            term = next((n for n in inside if other.leaf() in n.args), None) if {*other.dims} != {*s.dims} else None
            if term is not None:
                had = " and ".join(f"{d.name} [{', '.join(d.dims)}]" if d.dims else f"{d.name}, a number,"
                                   for d in (s, other))
                return f"{had} are coupled and differ in their dims: {text_of(term)}", term.span
    return None


def _itself(states: list[Decl]) -> str:
    return "it" if len(states) == 1 else " and ".join(s.name for s in states)


def _one_state(state: Decl, form: Affine, apart: frozenset[str]) -> Blame | None:
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


def turns(step: Program, states: list[Decl]) -> bool:
    """Matrices, or vectors that are corrected by what they hold."""
    forms = AffineForms(step, states)
    found = [forms.form(step.result("next", s.name)) for s in states]
    return all(f is not None for f in found) and (
        len(forms.dims) > 1 or any(w.value is not None for u in found if u is not None for w in u.writes))


def _crossed(states: list[Decl], forms: AffineForms, found: list[Affine]) -> Blame | None:
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


def _two_sides(states: list[Decl], forms: AffineForms, found: list[Affine]) -> Blame | None:
    """Corrections along different dims, or with a weight that has the dims they sum over, form no triangular system
    over rows."""
    sides: dict[frozenset[str], Node] = {}
    for w in forms.in_order(w for f in found for w in f.writes):
        for r in w.value.coefs if w.value is not None else ():
            if forms.summed(r):
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


def _endless(states: list[Decl]) -> Blame | None:
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
    if not node.args:
        return leaf_text(node)
    if node.op in ("expand", "rename"):
        return _words(node.args[0])
    if node.op == "sub" and is_number(node.args[0], 0.0):
        return filled("-{0}", [_words(node.args[1])])
    args = [_words(a) for a in node.args]
    return filled(_SIGNS[node.op], args) if node.op in _SIGNS else f"{node.op}({', '.join(args)})"


_LONGEST = 80
_SIGNS = {"neg": "-{0}", "contract": "{0} @ {1}", **{op: f"{{0}} {sign} {{1}}" for op, sign in dict(
    add="+", sub="-", mul="*", div="/", lt="<", le="<=", eq="==", ne="!=").items()}}
