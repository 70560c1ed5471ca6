"""What was derived, for people: the step, why it has its form, the chunk's equations and its adjoint."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import reduce

from mixc.codegen.notation import WIDTH, Spelling, dim_name, meanings
from mixc.ir.build import maybe_mul
from mixc.ir.node import COL, ROW, Node, is_number, number, postorder, source
from mixc.ir.program import Decl, Program
from mixc.ir.ranges import proving
from mixc.passes.affine import Affine, AffineForms
from mixc.passes.block import block_rows
from mixc.passes.cell import cell
from mixc.passes.chunk import chunk
from mixc.passes.classify import classify, parts_of
from mixc.passes.context import context, has_context
from mixc.passes.differentiate import differentiate
from mixc.passes.planes import is_complex, planes
from mixc.passes.scan import scan_form
from mixc.passes.simplify import PLAIN, plain, rewrite

WORDS = "Words in these"  # of formulas as text
Term = tuple[str, str, Node]  # what `split` gives: kind, state, value


def spelled(results: Mapping[Node, str]) -> list[str]:
    """An equation a value, under its name; what is used more than once has a line and a name of its own."""
    return _spelled(list(results), results)[0]


def _spelled(roots: list[Node], results: Mapping[Node, str]) -> tuple[list[str], dict[Node, str]]:
    """The equations of `results`, and of what is used more than once below the roots, and all names."""
    uses = Counter(a for n in postorder(roots) for a in n.args)
    names: dict[Node, str] = {}
    lines = []
    for n in postorder(roots):
        if n in results or (n.args and uses[n] > 1 and n.op not in ("rename", "expand", "live")):
            called = results.get(n) or f"x{sum(n not in results for n in names) + 1}"
            axes = f"[{', '.join(map(dim_name, n.dims))}]" if n.dims else ""
            lines.append(f"{called}{axes} = {Spelling(names, whole=True).text(n, top=True)}")
            names[n] = called
    return lines, names


def split_lines(made: list[Term]) -> list[str]:
    """`split` as text; where that would fill more than a line, what is used more than once has a name."""
    def told(names: Mapping[Node, str]) -> list[str]:
        return [f"{kind}, {state}: {Spelling(names, whole=True).text(n)}" for kind, state, n in made]
    lines = told({})
    if all(len(line) <= WIDTH for line in lines):
        return lines
    before, names = _spelled([n for *_, n in made], {})
    return [*before, *told(names)]


def equations(p: Program, prefix: str = "") -> list[str]:
    """The results of a program as equations, intermediate values first."""
    left: dict[Node, str] = {}
    again = []
    for r in p.results:
        name = f"{'d' if r.role in ('grad', 'sum') or prefix else ''}{r.name}" + "'" * (r.role == "next")
        if left.setdefault(r.value, name) != name:
            again.append(f"{name} = {left[r.value]}")
    return spelled(left) + again


def lowered(step: Program) -> Program:
    """What chunks are derived from: lags and positions are inputs, complex values their planes (where all have some)."""
    step = context(step).program if has_context(step) else step
    return (planes(step) or step) if is_complex(step) else step


@dataclass(frozen=True)
class Section:
    """What is said under a title: words (markdown; a list has "- " in front), then the equations of a program, its results
    cotangents if it is an `adjoint`, or these terms of its (`split`)."""

    title: str
    words: list[str] = field(default_factory=list)
    program: Program | None = None
    adjoint: bool = False
    terms: list[Term] = field(default_factory=list)


def explain(step: Program) -> str:
    """Markdown: the step, the form of every state and why, the chunk's equations, and its adjoint."""
    lines = [f"# {step.name}", *(["", step.doc] if step.doc else []), *_markdown(of_step(step))]
    parts = parts_of(step)
    for part in parts if len(parts) > 1 else ():
        lines += [*_markdown([Section(f"Part `{part.name}`", program=part)]), *_markdown(of_run(part), "###")]
    return "\n".join([*lines, *(_markdown(of_run(step)) if len(parts) < 2 else [])]) + "\n"


def _markdown(sections: list[Section], level: str = "##") -> list[str]:
    lines = list[str]()
    for s in sections:
        formulas = split_lines(s.terms) or (equations(s.program, "d" * s.adjoint) if s.program else [])
        fenced = [*[""] * bool(s.words), "```", *formulas, "```"] if formulas else []
        lines += ["", f"{level} {s.title}", "", *s.words, *fenced]
    return lines


def of_step(step: Program) -> list[Section]:
    """The step, and what form it was found to have."""
    stages, terms = classify(step), split(step)
    forms = [f"- `{', '.join(g.states)}`: **{g.form}** — {g.why}" for g in stages.groups]
    return [Section("The step", program=step), Section("Form", forms or ["- no state"]),
            *([Section("What it was split into", program=step, terms=terms)] if terms else []),
            *([Section("What runs in which order", in_order(stages.parts))] if stages.parts else [])]


def in_order(parts: tuple[Program, ...]) -> list[str]:
    """Which parts a step runs in, and what each hands on."""
    lines = ["It runs in parts, one after another; what one hands on goes through memory, a row a token in fp32:", ""]
    return [*lines, *(f"- `{p.name}`: {_held(p)}" for p in parts)]


def _held(part: Program) -> str:
    """Its states, and what it hands on."""
    handed = ", ".join(f"`{o.name}[{', '.join(o.dims)}]`" for o in part.outs if o.exact)
    states = ", ".join(f"`{s.name}`" for s in part.states) or "of the inputs alone"
    return states + (f"; hands on {handed}" if handed else "")


def _apart(step: Program) -> list[str]:
    """In which parts kernels may run where heads are large."""
    from mixc.codegen.apart import cuts

    found = [] if is_complex(step) else cuts(step)
    ways = "; or ".join(f"first {_held(a)}, then {_held(b)}" for a, b in found)
    return [f"- with heads of 128 and more kernels run one after the other where the model finds that faster: {ways}"] if ways else []


def of_run(step: Program) -> list[Section]:
    """What one program is: its equations and adjoint, kernels, costs."""
    from mixc.codegen.triton_program import has_kernels

    stages, step = classify(step), lowered(step)
    kernels = has_kernels(stages)
    if any(g.form == "sequential" for g in stages.groups):
        return _of_cell(step, kernels)
    forward = chunk(classify(step))
    backward = differentiate(forward)
    rows = "Rows t and s of a chunk, x[s] is a value of row s, x[t=-1] that of the last one; primed states are what the next chunk " \
        "receives."
    program = "one Triton kernel each, the state on chip; on a CPU the same program in torch"
    runs = ["- forward and backward: " + (_instead(step) or program if kernels else "the same program in torch, on any device"),
            "- kept for the backward: the inputs" + ", and the state at the start of every chunk" * bool(step.states),
            "- decode: the step on one token", *_around(step, kernels), *(_apart(step) if kernels else []), *_kernels(step)]
    return [*_both_ways(("One chunk of tokens", "Its adjoint, from the last chunk to the first"), forward, backward, [rows], runs),
            Section("Bytes and FLOPs of the products", _costs(forward, backward))]


def _both_ways(titles: tuple[str, str], forward: Program, backward: Program, words: list[str], runs: list[str]) -> list[Section]:
    """The equations of a program and of its adjoint, and what runs."""
    adjoint, through_starts = apart_from_starts(plain(backward, drop_live=True))
    found = meanings([n for p in (forward, backward) for n in plain(p, drop_live=True).values()])
    told = [f"- `{word}`: {text}" for word, text in (x.split(": ", 1) for x in found)]
    return [Section(titles[0], words, plain(forward, drop_live=True)), Section(titles[1], [], adjoint, adjoint=True),
            *([Section(WORDS, told)] if told else []),
            Section("What runs", [*runs, *[f"- {through_starts}"] * bool(through_starts)])]


def _kernels(step: Program) -> list[str]:
    return [f"- `{k}` {line}" for k, (told, _) in kernel_lines(step).items() for line in told]


def apart_from_starts(backward: Program) -> tuple[Program, str]:
    """An adjoint without the zeros of params that no token reads but a state starts at, and what is said of these."""
    read = {n.attr("name") for n in postorder(backward.inits) if n.op == "param"}
    zeros = [r for r in backward.results if r.role == "sum" and r.name in read and is_number(source(r.value, ("expand",)), 0.0)]
    said = f"the gradient to {', '.join(r.name for r in zeros)} comes from the cotangent of the first states, which start there"
    return replace(backward, results=tuple(r for r in backward.results if r not in zeros)), said if zeros else ""


def _around(step: Program, kernels: bool) -> list[str]:
    """What is formed over all tokens in front of the kernels, and behind them."""
    from mixc.codegen.triton_program import kernels as kernels_of

    made = kernels_of(step) if kernels else None
    if made is None or made.around is None:
        return []
    found, last = made.around, made.behind and made.behind[0]
    names: dict[Node, str] = {}

    def told(where: str, values: Mapping[str, Node]) -> list[str]:
        formed = [f"`{name} = {Spelling(names, whole=True).text(n, top=True)}`" for name, n in values.items()]
        return [f"- {where}: {', '.join(formed)}"] * bool(formed)
    lines = told("in front of the kernels, of all tokens at once in torch", found.front)
    names |= {n: name for name, n in (found.front | found.read).items()}
    rest = {d.name: last.program.result("out", d.name) for d in last.program.outs} if last else {}
    behind = {**(last.products if last else {}), **{n: v for n, v in found.behind.items() if n not in rest}}
    lines += told("behind them, of all tokens at once in torch", behind)
    names.clear()
    return lines + told("behind those, one Triton kernel each way", rest)


def _instead(step: Program) -> str:
    """Of a step whose chunks have no kernels, but its tokens."""
    from mixc.codegen.token_module import TokenModule
    from mixc.codegen.triton_program import kernels_at, whole_shape

    made = kernels_at(step, whole_shape(step, {}))
    if not isinstance(made, TokenModule):
        return ""
    return (f"one Triton kernel each, but token by token (no kernel of chunks holds {made.instead}), the state on chip; on a "
            "CPU the chunk's program in torch")


def _of_cell(step: Program, kernels: bool) -> list[Section]:
    """Of a step that is not parallel over time."""
    from mixc.codegen.cell_module import CellModule
    from mixc.codegen.triton_program import kernels as kernels_of

    torch = "a loop over tokens in torch: what reads no state before it, gates that read one state in one product"
    runs = ["- token by token: `mixer.why` names the term that decided it"]
    if not kernels:
        runs.append(f"- forward and backward: {torch}")
    elif isinstance(module := kernels_of(step), CellModule):
        made = module.made
        kept = ", ".join(f"{s} (the out {k})" if k in {o.name for o in module.outs} else s for s, k in made.kept.items())
        weights = ", ".join(dict.fromkeys(f"d{p.param}" for p in made.products))
        runs += ["- forward and backward: one Triton kernel each over all tokens, states on chip, 16 or more sequences a program; on a "
                 f"CPU {torch}", *_weights(module.p),
                 *[f"- kept for the backward: the inputs, and after every token {kept}"] * bool(kept),
                 *[f"- products over all tokens, a launch each: {weights}"] * bool(weights), *_around(step, True), *_kernels(step)]
    else:
        runs += ["- forward and backward: one Triton kernel each over all tokens, the state on chip, a sequence a program; on a CPU "
                 f"{torch}", f"- kept for the backward: the inputs, and every 32 tokens {', '.join(module.starts)}, from which it "
                 "forms the states between again", *_around(step, True), *_kernels(step)]
    titles = "All tokens at once but for the loop over the state", "Its adjoint, from the last token to the first"
    forward = cell(step, (ROW,))
    return _both_ways(titles, forward, differentiate(forward), [], runs)


def _weights(step: Program) -> list[str]:
    """Where the matrices of a head are, and what it costs if that is not on chip."""
    values = " + ".join("*".join(d.dims) for d in step.params if len(d.dims) > 1)
    if not values:
        return []
    return [f"- weights of a head, {values} values: on chip for all tokens where they take at most two thirds of a block's "
            "shared memory (H100: 151 KB; the backward has them twice); larger ones come from the L2 at every token, 16 KB "
            f"at a time: 2*({values}) bytes a program and token in bf16, twice that in the backward, some 18 ns a KB on an H100"]


def split(step: Program) -> list[Term]:
    """Of every state: what multiplies what was there, and what is added, as the forms have them: kind, state, value.

    Kinds: "decay", "written" (an outer product), "low rank" (one that reads the state); of a scan "factor" and "added",
    or what it is moved by and joined with."""
    parts = classify(step).parts
    if parts:
        return [line for p in parts for line in split(p)]
    found = _split(step)
    return [(kind, s, n) for (kind, s, _), n in zip(found, rewrite([n for *_, n in found], PLAIN), strict=True)]


def _split(step: Program) -> list[Term]:
    real = planes(context(step).program) if is_complex(step) else step
    if real is None:
        return []
    found: list[Term] = []
    with proving(real):
        for group in classify(real).groups:
            states = [real.decl(s) for s in group.states]
            rows = block_rows(real, states) if group.form == "scan" else None
            for s, row in zip(states, rows or (), strict=False):
                found += [(f"factor of {o.name}", s.name, a) for o, a in zip(states, row.a, strict=True)]
                found.append(("added", s.name, row.b))
            if rows or group.form == "sequential":
                continue
            scan = scan_form(real, states[0]) if group.form == "scan" else None
            if scan is not None:
                found += [("moved by" if scan.combine.endswith("+") else "factor", states[0].name, scan.a),
                          ("added" if scan.combine == "affine" else "joined with", states[0].name, scan.b)]
                continue
            forms = AffineForms(real, states)
            for s in states:
                found += _terms(s, forms.form(real.result("next", s.name)))
    return found


def _terms(s: Decl, form: Affine | None) -> list[Term]:
    """What an affine update has: its decay, what it takes over from others, what is written."""
    found: list[Term] = []
    for leaf, decay in form.decays.items() if form is not None else ():
        kind = "decay" if leaf is s.leaf() else f"factor of {leaf.attr('name')}"
        if decay is not None or leaf is not s.leaf():
            found.append((kind, s.name, decay or number(1)))
    for w, coef in form.writes.items() if form is not None else ():
        outer = maybe_mul(reduce(maybe_mul, w.factors, None), coef) or number(1)
        if w.value is None or w.value.constant is not None:
            found.append(("written", s.name, maybe_mul(outer, w.value.constant if w.value else None) or outer))
        for read, c in (w.value.coefs if w.value else {}).items():
            found.append(("low rank", s.name, maybe_mul(outer, maybe_mul(read.node, c)) or read.node))
    return found


def kernel_lines(step: Program) -> dict[str, tuple[list[str], str]]:
    """Of every kernel: its loop, its loads, what it carries and its stores, in words; and its text. Empty where there
    are none."""
    from mixc.codegen.triton_program import has_kernels, kernels

    if not has_kernels(classify(step)):
        return {}
    found = {}
    parts = [m for p in parts_of(step) for made in [kernels(p)] for m in (made, *(made.behind or ())[1:])]
    for kind, k in [x for made in parts for x in made.kernels.items()]:
        each = "chunk" if k.launch.loop == "chunks" else "token"
        way = f"from the last {each} to the first" if k.launch.reverse else f"from the first {each} to the last"
        loads = [*k.loads, *(f"the cotangent of {c}" for c in k.cots)]
        starts = ", ".join(k.launch.starts or k.launch.keeps)
        lines = [f"loop: {way}; sequences, heads" + "".join(f", blocks of {d}" for d in k.launch.split)
                 + " in parallel", f"loads a row at a time: {', '.join(loads)}",
                 "carries on chip: " + (", ".join(f"{c.name}[{', '.join(c.dims)}]" for c in k.launch.carries) or "nothing"),
                 "stores: " + ", ".join(f"{s.name} ({_STORED[s.kind]})" for s in k.launch.stored)]
        if starts and k.launch.loop == "cells":
            lines.append(f"{'reads' if kind == 'bwd' else 'keeps'} {starts} after every token")
        elif starts:
            lines.append(f"{'reads' if kind == 'bwd' else 'keeps'} {starts} at the start of every segment"
                         + (f", and forms the {each}s between again" if kind == "bwd" else ", when gradients are asked for"))
        found[k.launch.name] = (lines, k.text)
    return found


_STORED = {"rows": "a row a token", "chunk": "one a chunk", "partial": "summed over the loop"}


def _costs(forward: Program, backward: Program) -> list[str]:
    import sympy

    def flops(p: Program) -> sympy.Expr:
        count = sympy.Integer(0)
        for n in postorder(p.values()):
            if n.op == "contract":
                dims = dict.fromkeys((*n.args[0].dims, *n.args[1].dims))
                count += 2 * sympy.prod([sympy.Symbol("C" if d in (ROW, COL, "_u") else d) for d in dims])
        B, T, H, C = sympy.symbols("B T H C")
        return sympy.expand(count * B * H * T / C)

    return [f"- products, forward: {flops(forward)} FLOPs", f"- products, backward: {flops(backward)} FLOPs"]
