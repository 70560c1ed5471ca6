"""What was derived, for people: the step, why it has its form, the chunk's equations and its adjoint."""

from __future__ import annotations

from collections import Counter

from mixc.ir.node import COL, ROW, Node, postorder
from mixc.ir.program import Program

_INFIX = {"add": " + ", "sub": " - ", "mul": " * ", "div": " / "}


class Formulas:
    """Values as equations: what is used once stands where it is used, the rest has a line of its own."""

    def __init__(self, roots: list[Node]):
        self.uses = Counter(a for n in postorder(roots) for a in n.args)
        self.names: dict[Node, str] = {}
        self.lines: list[str] = []

    def define(self, root: Node, name: str) -> None:
        for n in postorder([root]):
            if n.args and n is not root and self.uses[n] > 1 and n.op not in ("rename", "expand") and n not in self.names:
                self._line(n, f"x{len(self.names) + 1}")
        self.lines.append(f"{name}{_axes(root)} = {self.text(root, top=True)}")

    def _line(self, n: Node, name: str) -> None:
        text = self.text(n, top=True)
        self.names[n] = name
        self.lines.append(f"{name}{_axes(n)} = {text}")

    def text(self, n: Node, top: bool = False) -> str:
        if n in self.names and not top:
            return self.names[n]
        if not n.args:
            return _leaf(n)
        args = [self.text(a) for a in n.args]
        if n.op in _INFIX:
            body = _INFIX[n.op].join(args)
            return body if top else f"({body})"
        if n.op == "neg":
            return f"(-{args[0]})"
        if n.op == "contract":
            over = [d for d in n.args[0].dims if d in n.args[1].dims and d not in n.dims]
            return f"sum[{_dims(over)}]({args[0]} * {args[1]})"
        if n.op == "rename":
            return f"{args[0]}[{', '.join(f'{_dim(a)}->{_dim(b)}' for a, b in n.attr('to'))}]"
        if n.op == "expand":
            return args[0]
        if "over" in dict(n.attrs):
            return f"{n.op}[{_dims(n.attr('over'))}]({args[0]})"
        extra = "".join(f", {k}={v}" for k, v in n.attrs)
        return f"{n.op}({', '.join(args)}{extra})"


def _leaf(n: Node) -> str:
    if n.op == "number":
        return f"{n.attr('value'):g}" if not isinstance(n.attr("value"), complex) else str(n.attr("value"))
    if n.op == "cot":
        return "d" + n.attr("name")
    return str(n.attr("name") or n.attr("dim") or n.op)


def _dim(d: str) -> str:
    return {ROW: "t", COL: "s", "_u": "u"}.get(d, d)


def _dims(dims: list[str] | tuple[str, ...]) -> str:
    return ", ".join(map(_dim, dims))


def _axes(n: Node) -> str:
    return f"[{_dims(n.dims)}]" if n.dims else ""


def equations(p: Program, prefix: str = "") -> list[str]:
    """The results of a program as equations, intermediate values first."""
    out = Formulas(p.values())
    marks = {"next": "'", "grad": "", "sum": "", "out": ""}
    for r in p.results:
        out.define(r.value, f"{'d' if r.role in ('grad', 'sum') or prefix else ''}{r.name}{marks.get(r.role, '')}")
    return out.lines


def explain(step: Program) -> str:
    """Markdown: the step, the form of every state and why, the chunk's equations, and its adjoint."""
    from mixc.codegen.triton_program import has_kernels
    from mixc.passes.chunk import chunk
    from mixc.passes.classify import classify
    from mixc.passes.differentiate import differentiate

    stages = classify(step)
    lines = [f"# {step.name}", "", step.doc, "", "## The step", "", "```", *equations(step), "```", "", "## Form", ""]
    lines += [f"- `{', '.join(g.states)}`: **{g.form}** — {g.why}" for g in stages.groups] or ["- no state"]
    if stages.groups and all(g.form != "sequential" for g in stages.groups):
        forward = chunk(stages)
        backward = differentiate(forward)
        lines += ["", "## One chunk of tokens", "", "Rows t and s of a chunk; primed states are what the next chunk receives.",
                  "", "```", *equations(forward), "```", "", "## Its adjoint, from the last chunk to the first", "",
                  "```", *equations(backward, "d"), "```", "", "## What runs", "",
                  "- forward and backward: " + ("one Triton kernel each, the state on chip; on a CPU the same program in torch"
                                                if has_kernels(stages) else "the same program in torch, on any device"),
                  "- kept for the backward: the inputs, and the state at the start of every chunk",
                  "- decode: the step on one token", "", "## Bytes and FLOPs of the products", "", *_costs(forward, backward)]
    else:
        lines += ["", "It runs token by token; `mixer.why` names the term that decided it.", *_cell(step, has_kernels(stages))]
    return "\n".join(lines) + "\n"


def _cell(step: Program, kernels: bool) -> list[str]:
    """What runs of a step that is not parallel over time."""
    torch = "a loop over tokens in torch: what reads no state before it, gates that read one state in one product"
    if not kernels:
        return ["", "## What runs", "", f"- forward and backward: {torch}"] if step.states else []
    from mixc.passes.cell_launches import cell_launches

    made = cell_launches(step)
    lines = ["", "## Its adjoint, from the last token to the first", "", "Rows t are sequences, all at the same token.", "",
             "```", *equations(made.backward.program, "d"), "```", "", "## What runs", "",
             "- forward and backward: one Triton kernel each over all tokens, states and weights of a head on chip, 16 "
             f"sequences a program; on a CPU {torch}"]
    kept = ", ".join(f"{s} (the out {k})" if k in {o.name for o in step.outs} else s for s, k in made.kept.items())
    lines += [f"- kept for the backward: the inputs, and after every token {kept}"] * bool(kept)
    weights = ", ".join(dict.fromkeys(f"d{p.param}" for p in made.products))
    return lines + [f"- products over all tokens, a launch each: {weights}"] * bool(weights)


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



