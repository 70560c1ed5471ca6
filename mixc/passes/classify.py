"""Step -> Stages: group the states that need each other, and give each group its form.

before: one token's DAG.
after:  the same DAG, with `group` lines: the strongly connected components of "is read by" in
        the order in which they can be found, each "chunk", "scan" or "sequential" and the term
        that decided it.
"""

from __future__ import annotations

from dataclasses import replace

from mixc.errors import Diagnostic
from mixc.ir.node import postorder
from mixc.ir.program import Decl, Group, Program, once_a_program
from mixc.ir.ranges import proving
from mixc.passes.advice import advice, as_complex, lags_apart
from mixc.passes.affine import AffineForms
from mixc.passes.block import block_rows
from mixc.passes.block import reason as coupled_reason
from mixc.passes.components import components
from mixc.passes.context import context
from mixc.passes.detached import detached
from mixc.passes.parts import divided
from mixc.passes.planes import Split, is_complex, part_names, planes
from mixc.passes.reads import reads_apart
from mixc.passes.scan import is_scan, reason
from mixc.passes.why import text_of, turns, why_chunk, why_not_chunk


def classify(step: Program, advise: bool = True) -> Program:
    """The program at level "stages": groups in topological order, notes for what is sequential; `advise`: with what
    would help."""
    step.read_again()
    step = reads_apart(step, components(step))
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
        groups = _fed(step, [_group(step, names, advise) for names in components(step)])
    parts = _parts(step, groups)
    groups = [g for part in parts for g in part.groups] if parts else _whole(step, groups)
    notes = tuple(_note(step, g) for g in groups if g.form == "sequential")
    return replace(step, level="stages", groups=tuple(groups), notes=(*step.notes, *notes),
                   parts=tuple(replace(p, level="step", groups=(), notes=()) for p in parts))


@once_a_program
def parts_of(step: Program) -> tuple[Program, ...]:
    """The programs that run after each other: its parts, or the step itself."""
    return classify(step).parts or (step,)


def of_complex(step: Program) -> Program | None:
    """The stages of a step with complex values, where its complex states are of form chunk as they stand: what turns
    them is known by its phase, so that it goes with what is read and written.  Else None."""
    groups = []
    step = reads_apart(step, components(step))
    if detached(step) is not None:  # two programs of planes
        return None
    with proving(step):
        for names in components(step):
            states = [step.decl(n) for n in names]
            if any(s.kind == "complex" for s in states):
                if not turns(step, states) or why_not_chunk(step, states) is not None:
                    return None
                groups.append(Group(tuple(names), "chunk", why_chunk(step, states)))
            else:
                groups.append(_group(step, names, False))  # what would help is tried out by classifying again
    if not is_complex(step) or any(g.form == "sequential" for g in groups) or planes(step) is None:
        return None
    scans = [d for g in groups if g.form == "scan" for d in map(step.decl, g.states)]
    if any(n.kind == "complex" for d in scans for n in postorder([step.result("next", d.name)])):
        return None
    return replace(step, level="stages", groups=tuple(groups), origin=None)


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


def _group(step: Program, names: list[str], advise: bool = True) -> Group:
    states = [step.decl(name) for name in names]
    scan = scan_words(step, states)
    if scan is not None and not (len(states) > 1 and coupled_by_scalars(step, states)):
        return Group(tuple(names), "scan", _advised(scan, lags_apart(step, names) or as_complex(step, names)))
    refusal = why_not_chunk(step, states)
    if refusal is None:
        return Group(tuple(names), "chunk", why_chunk(step, states))
    if scan is not None:
        return Group(tuple(names), "scan", _advised(scan, lags_apart(step, names)))
    if (group := _detached(step, names)) is not None:
        return group
    return Group(tuple(names), "sequential", _advised(refusal[0], advice(step, names) if advise else None))


def _detached(step: Program, names: list[str]) -> Group | None:
    """States whose updates read them where no gradient goes, if no program of `detached` needs a loop for them, and
    what takes over from them in one group with them in both."""
    if (found := detached(step)) is None:
        return None
    groups: list[Group] = []
    with_them = {s.name for s in step.states}
    for p in (found.values, found.given):
        with proving(p):
            whole = _fed(p, [_group(p, some, False) for some in components(p)])
        own = [g for g in whole if {*g.states} & {*names}]
        with_them &= {*names, *(s for g in own for s in g.states)}
        groups += own
    if any(g.form == "sequential" for g in groups):
        return None
    why = f"with {found.words} found first, where no gradient goes: {groups[0].why}"
    return Group(tuple(s.name for s in step.states if s.name in with_them), groups[0].form, why)


def _fed(step: Program, groups: list[Group]) -> list[Group]:
    """Matrices that take over whole matrices, `S = a * S + M`, in one group with those, where that is of form chunk:
    else all of M would be formed for every token."""
    found: list[Group] = []
    for g in groups:
        if any({*g.states} <= {*x.states} for x in found):  # `_detached` found it with another
            continue
        found = [x for x in found if not {*x.states} <= {*g.states}]
        feeding = [x for x in found if _reads(step, g, x)] if g.form != "chunk" else []
        for some in (feeding, *([x] for x in feeding)):
            between = [x for x in feeding if x not in some and any(_reads(step, x, y) for y in some)]
            order = [s.name for s in step.states if any(s.name in x.states for x in (*some, g))]
            states = [step.decl(n) for n in order]
            if (some and not between and all(x.form == "chunk" for x in some) and len(states[0].dims) > 1
                    and why_not_chunk(step, states) is None and _of_scalars(step, states)):
                found = [x for x in found if x not in some]
                g = Group(tuple(order), "chunk", why_chunk(step, states))
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


def coupled_by_scalars(step: Program, states: list[Decl]) -> bool:
    """Are they matrices, with factors between them that are the same for every entry?"""
    rows = block_rows(step, states)
    return len(states[0].dims) > 1 and rows is not None and not any(
        set(a.dims) & set(states[0].dims) for r in rows for a in r.a)


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
