"""The loop a person would write: the step verbatim in torch, token by token. The baseline of `mixc bench`.

Time is unbound before the loop (indexing `a[t]` would make the backward quadratic) and products are
matrix products, so that what is compared is the form and not the care taken.

before: S = exp(g) * S + k * v;  o = q @ S
after:  for (q, k, v, g) in zip(q.unbind(1), k.unbind(1), v.unbind(1), g.unbind(1)):
            S = torch.exp(g)[:, :, None, None] * S + k[:, :, :, None] * v[:, :, None]
            o = (q.unsqueeze(-2) @ S).squeeze(-2)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F

from mixc.codegen.expressions import Expressions
from mixc.codegen.lines import defined
from mixc.ir.evaluate import Env, dtype_of, evaluate, heads
from mixc.ir.node import Node, postorder
from mixc.ir.program import Decl, Program

Tensor = torch.Tensor
Loop = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
_VARYING = {"in", "param", "state", "pos", "lag", "window"}


def eager_loop(program: Program, sizes: dict[str, int], consts: dict[str, float], H: int) -> tuple[Loop, str]:
    """A function of fp32 from ins [B, T, G, ...] and params [G, ...] to outs [B, T, H, ...], and its text."""
    text, constants, start = loop_text(program, sizes, consts, torch.float32)
    run = defined(text, f"eager loop of {program.name}", {"torch": torch, "F": F, "REAL": torch.float32, **constants})["loop"]

    def loop(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        ins = [heads(tensors[d.name], H, 2) for d in program.ins]
        params = [heads(tensors[d.name], H, 0)[None] for d in program.params]
        B = ins[0].shape[0]
        states = [start[d.name].expand(B, H, *(sizes[n] for n in d.dims)) for d in program.states]
        outs = run(*ins, *params, *states)
        return dict(zip((d.name for d in program.outs), outs, strict=True))
    return loop, text


def loop_text(program: Program, sizes: dict[str, int], consts: dict[str, float], dtype: torch.dtype
              ) -> tuple[str, dict[str, Tensor], dict[str, Tensor]]:
    """The text of `loop(*ins, *params, *states)`, every tensor [B, ..., H, ...], params [1, H, ...], which gives a
    list of outs; the constants it names (and torch, F, REAL: its dtype); and the initial states [1, 1, dims...], those
    that read params being formed in the loop's first lines instead."""
    writer = Writer(program, sizes, consts, dtype)
    return writer.text(), writer.constants, _starts(program, sizes, consts, dtype)


def _starts(program: Program, sizes: dict[str, int], consts: dict[str, float], dtype: torch.dtype) -> dict[str, Tensor]:
    """Initial states [1, 1, dims...]."""
    found = {}
    for d in program.states:
        kind = dtype_of(d.kind, dtype)
        value = torch.zeros(()) if d.init is None or _learned(d) else evaluate([d.init], _env(sizes, consts, dtype))[0]
        found[d.name] = value.to(kind).reshape(1, 1, *(value.shape[2:] or [1] * len(d.dims)))
    return found


def _learned(d: Decl) -> bool:
    return d.init is not None and any(n.op == "param" for n in postorder([d.init]))


def _env(sizes: dict[str, int], consts: dict[str, float], dtype: torch.dtype) -> Env:
    return Env(lambda n: torch.full((1, 1), consts[n.attr("name")], dtype=dtype), sizes, dtype=dtype, batch=2)


class Writer(Expressions):
    def __init__(self, program: Program, sizes: dict[str, int], consts: dict[str, float], dtype: torch.dtype):
        self.p = program
        self.constants: dict[str, Tensor] = {}
        self.env = _env(sizes, consts, dtype)
        self.names: dict[Node, str] = {}
        self.varies: set[Node] = set()

    def body(self, first: Sequence[Node] = ()) -> list[str]:
        """The lines of one token; sets what they name, what varies, and as `before` the lines of `first`, before the
        loop."""
        p = self.p
        roots = [p.result("out", d.name) for d in p.outs] + [p.result("next", d.name) for d in p.states]
        order = list(postorder([*first, *roots]))
        for node in order:
            if node.op in _VARYING or any(a in self.varies for a in node.args):
                self.varies.add(node)
        self.names = {d.leaf(): d.name + "_" for d in (*p.ins, *p.params, *p.states)}
        self.names |= {n: "pos_" for n in order if n.op == "pos"}
        looked = list(dict.fromkeys(n.args[0] for n in order if n.op in ("lag", "window")))
        self.past = {n: f"past{i}" for i, n in enumerate(looked)}
        order = [n for n in order if n in self.varies and n.args]
        self.before = [self._line(n) for n in order if n in set(postorder(first))]
        return self.lines([n for n in order if n not in self.names], roots)

    def lines(self, order: list[Node], roots: list[Node]) -> list[str]:
        return [self._line(n) for n in order]

    def text(self) -> str:
        p = self.p
        starts = {d: d.init for d in p.states if d.init is not None and _learned(d)}
        body = self.body(list(starts.values()))
        ins, states = [d.name for d in p.ins], [d.name for d in p.states]
        args = ", ".join(f"{n}_" for n in (*ins, *(d.name for d in p.params), *states))
        rows = ", ".join(f"{n}_.unbind(1)" for n in ins)
        lines = [f"def loop({args}):", "    found = []", *(f"    {line}" for line in self.before),
                 *(f"    {d.name}_ = {self.over(n, d.dims)}.expand_as({d.name}_)" for d, n in starts.items()),
                 *(f"    {x} = []" for x in self.past.values()),
                 f"    for {', '.join(f'{n}_' for n in ins)}{',' if len(ins) == 1 else ''} in zip({rows}):",
                 *([f"        pos_ = torch.full((1, 1), float(len(found)), dtype=REAL, device={ins[0]}_.device)"] if "pos_" in self.names.values() else []),
                 *(f"        {line}" for line in body)]
        outs = ", ".join(self.over(p.result("out", d.name), d.dims) for d in p.outs)
        lines += [f"        {x}.append({self.name(n)})" for n, x in self.past.items()]
        lines.append(f"        found.append(({outs},))")
        if states:
            new = ", ".join(self.over(p.result("next", d.name), d.dims) for d in p.states)
            lines.append(f"        {', '.join(f'{n}_' for n in states)} = {new}")
        lines.append("    return [torch.stack(x, 1) for x in zip(*found)]")
        return "\n".join(lines) + "\n"

    def _line(self, node: Node) -> str:
        name = f"x{len(self.names)}"
        text = f"{name} = {self.expression(node)}"
        self.names[node] = name
        return text

    def name(self, node: Node) -> str:
        """What does not vary is a tensor formed once."""
        if node in self.varies:
            return self.names[node]
        name = f"c{len(self.constants)}"
        self.constants[name] = self._constant(node)
        return name

    def number(self, node: Node) -> str | None:
        if node in self.varies or node.dims:
            return None
        number = self._constant(node).item()
        return repr(number) if not isinstance(number, float) or math.isfinite(number) else f"float('{number}')"

    def _constant(self, node: Node) -> Tensor:
        return evaluate([node], self.env)[0]

    def size(self, dim: str) -> str:
        return str(self.env.sizes[dim])

    def back(self, node: Node) -> str:
        if node.op == "lag":
            return self._ago(node.args[0], node.attr("n"))
        count = self.env.sizes[node.attr("dim")]
        return f"torch.stack([{', '.join(self._ago(node.args[0], n) for n in range(count))}], 2)"

    def _ago(self, x: Node, n: int) -> str:
        """x of n tokens ago, 0 before the start."""
        now, past = self.name(x), self.past[x]
        return f"({past}[-{n}] if len({past}) >= {n} else torch.zeros_like({now}))" if n else now
