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
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F

from mixc.ir.evaluate import Env, evaluate, heads
from mixc.ir.node import Node, postorder
from mixc.ir.ops import OPS
from mixc.ir.program import Program

Tensor = torch.Tensor
Loop = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
_PLAIN = {"add", "sub", "mul", "div", "neg", "lt", "le", "eq", "ne"}  # take Python numbers as they are
_VARYING = {"in", "param", "state", "pos", "lag", "window"}


def eager_loop(program: Program, sizes: dict[str, int], consts: dict[str, float], H: int,
               dtype: torch.dtype = torch.float32) -> tuple[Loop, str]:
    """A function from ins [B, T, G, ...] and params [G, ...] to outs [B, T, H, ...], and its text.

    Raises:
        NotImplementedError: a state starts at a param, or the step uses an op that has no text here.
    """
    text, constants, start = loop_text(program, sizes, consts, dtype)
    scope: dict[str, Any] = {"torch": torch, "F": F, "REAL": dtype, **constants}
    exec(compile(text, f"<eager loop of {program.name}>", "exec"), scope)  # our own text, names checked

    def loop(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        ins = [heads(tensors[d.name], H, 2) for d in program.ins]
        params = [heads(tensors[d.name], H, 0)[None] for d in program.params]
        B = ins[0].shape[0]
        states = [start[d.name].expand(B, H, *(sizes[n] for n in d.dims)) for d in program.states]
        outs = scope["loop"](*ins, *params, *states)
        return dict(zip((d.name for d in program.outs), outs, strict=True))
    return loop, text


def loop_text(program: Program, sizes: dict[str, int], consts: dict[str, float], dtype: torch.dtype
              ) -> tuple[str, dict[str, Tensor], dict[str, Tensor]]:
    """The text of `loop(*ins, *params, *states)`, every tensor [B, ..., H, ...], params [1, H, ...], which gives a
    list of outs; the constants it names (and torch, F, REAL: its dtype); and the initial states [1, 1, dims...]."""
    writer = Writer(program, sizes, consts, dtype)
    return writer.text(), writer.constants, _starts(program, sizes, consts, dtype)


def _starts(program: Program, sizes: dict[str, int], consts: dict[str, float], dtype: torch.dtype) -> dict[str, Tensor]:
    """Initial states [1, 1, dims...]."""
    found = {}
    for d in program.states:
        if d.init is not None and any(n.op == "param" for n in postorder([d.init])):
            raise NotImplementedError(f"{d.name} starts at a param")
        kind = torch.promote_types(dtype, torch.complex64) if d.kind == "complex" else dtype
        value = torch.zeros(()) if d.init is None else evaluate([d.init], _env(sizes, consts, dtype))[0]
        found[d.name] = value.to(kind).reshape(1, 1, *(value.shape[2:] or [1] * len(d.dims)))
    return found


def _env(sizes: dict[str, int], consts: dict[str, float], dtype: torch.dtype) -> Env:
    return Env(lambda n: torch.full((1, 1), consts[n.attr("name")], dtype=dtype), sizes, dtype=dtype, batch=2)


class Writer:
    def __init__(self, program: Program, sizes: dict[str, int], consts: dict[str, float], dtype: torch.dtype):
        self.p = program
        self.constants: dict[str, Tensor] = {}
        self.env = _env(sizes, consts, dtype)
        self.names: dict[Node, str] = {}
        self.varies: set[Node] = set()

    def body(self) -> list[str]:
        """The lines of one token; sets what they name and what varies."""
        p = self.p
        roots = [p.result("out", d.name) for d in p.outs] + [p.result("next", d.name) for d in p.states]
        order = list(postorder(roots))
        for node in order:
            if node.op in _VARYING or any(a in self.varies for a in node.args):
                self.varies.add(node)
        self.names = {d.leaf(): d.name + "_" for d in (*p.ins, *p.params, *p.states)}
        self.names |= {n: "pos_" for n in order if n.op == "pos"}
        looked = list(dict.fromkeys(n.args[0] for n in order if n.op in ("lag", "window")))
        self.past = {n: f"past{i}" for i, n in enumerate(looked)}
        return self.lines([n for n in order if n in self.varies and n.args], roots)

    def lines(self, order: list[Node], roots: list[Node]) -> list[str]:
        return [self._line(n) for n in order]

    def text(self) -> str:
        p, body = self.p, self.body()
        ins, states = [d.name for d in p.ins], [d.name for d in p.states]
        args = ", ".join(f"{n}_" for n in (*ins, *(d.name for d in p.params), *states))
        rows = ", ".join(f"{n}_.unbind(1)" for n in ins)
        lines = [f"def loop({args}):", "    found = []", *(f"    {x} = []" for x in self.past.values()),
                 f"    for {', '.join(f'{n}_' for n in ins)}{',' if len(ins) == 1 else ''} in zip({rows}):",
                 *([f"        pos_ = torch.full((1, 1), float(len(found)), dtype=REAL, device={ins[0]}_.device)"] if "pos_" in self.names.values() else []),
                 *(f"        {line}" for line in body)]
        outs = ", ".join(self._as(p.result("out", d.name), d.dims) for d in p.outs)
        lines += [f"        {x}.append({self._name(n)})" for n, x in self.past.items()]
        lines.append(f"        found.append(({outs},))")
        if states:
            new = ", ".join(self._as(p.result("next", d.name), d.dims) for d in p.states)
            lines.append(f"        {', '.join(f'{n}_' for n in states)} = {new}")
        lines.append("    return [torch.stack(x, 1) for x in zip(*found)]")
        return "\n".join(lines) + "\n"

    def _line(self, node: Node) -> str:
        name = f"x{len(self.names)}"
        text = f"{name} = {self._rhs(node)}"
        self.names[node] = name
        return text

    def _name(self, node: Node, plain: bool = False) -> str:
        """The name of a value; what does not vary is a number, or a tensor formed once."""
        if node in self.varies:
            return self.names[node]
        value = self._constant(node)
        if plain and not node.dims:
            number = value.item()
            return repr(number) if not isinstance(number, float) or math.isfinite(number) else f"float('{number}')"
        name = f"c{len(self.constants)}"
        self.constants[name] = value
        return name

    def _constant(self, node: Node) -> Tensor:
        return evaluate([node], self.env)[0]

    def _as(self, node: Node, want: tuple[str, ...], plain: bool = False) -> str:
        """The value of `node` as [B, H, want...], of size 1 where it lacks a dim."""
        name, have = self._name(node, plain), node.dims
        if have == want or (plain and node not in self.varies and not have):
            return name
        inside = [d for d in want if d in have]
        if tuple(inside) != have:
            name = f"{name}.permute(0, 1, {', '.join(str(2 + have.index(d)) for d in inside)})"
        picks = [":" if d in have else "None" for d in want]
        while picks and picks[-1] == ":":
            picks.pop()
        return f"{name}[:, :, {', '.join(picks)}]" if "None" in picks else name

    def _rhs(self, node: Node) -> str:
        row, args = OPS[node.op], node.args
        if node.op == "contract":
            return self._product(node)
        if row.elementwise and row.torch is not None:
            wide = [self._as(a, node.dims, plain=node.op in _PLAIN) for a in args]
            return row.torch.format(*wide, n=node.attr("n"))
        x = self._name(args[0])
        axes = [2 + args[0].dims.index(d) for d in node.attr("over", ())]
        if node.op == "lag":
            return self._ago(args[0], node.attr("n"))
        if node.op == "window":
            count = self.env.sizes[node.attr("dim")]
            return f"torch.stack([{', '.join(self._ago(args[0], n) for n in range(count))}], 2)"
        if node.op == "pick":
            return f"{x}.select({2 + args[0].dims.index(node.attr('dim'))}, {node.attr('i')})"
        if node.op == "rename":
            return x
        if node.op == "expand":
            sizes = ", ".join(str(self.env.sizes[d]) for d in node.dims)
            return f"{self._as(args[0], node.dims)}.expand(-1, -1, {sizes})"
        if node.op == "norm":
            return f"torch.linalg.vector_norm({x}, dim={axes})"
        if node.op == "softmax" and len(axes) == 1:
            return f"torch.softmax({x}, {axes[0]})"
        if node.op in ("sum", "max", "min") and axes:
            return f"{x}.{dict(sum='sum', max='amax', min='amin')[node.op]}({axes})"
        raise NotImplementedError(f"the step uses {node.op}")

    def _ago(self, x: Node, n: int) -> str:
        """x of n tokens ago, 0 before the start."""
        now, past = self._name(x), self.past[x]
        return f"({past}[-{n}] if len({past}) >= {n} else torch.zeros_like({now}))" if n else now

    def _product(self, node: Node) -> str:
        a, b = node.args
        inner = [d for d in a.dims if d in b.dims and d not in node.dims]
        both = [d for d in a.dims if d in b.dims and d in node.dims]
        rows, cols = ([d for d in x.dims if d not in inner + both] for x in (a, b))
        if len(inner) == 1 and not rows and not cols and node.dims == tuple(both):
            return f"({self._as(a, (*both, *inner))} * {self._as(b, (*both, *inner))}).sum(-1)"
        if len(inner) == 1 and not both and len(rows) <= 1 and len(cols) <= 1 and node.dims == (*rows, *cols):
            left, right = self._alike(node, self._as(a, (*rows, *inner)), self._as(b, (*inner, *cols)))
            left = left if rows else f"{left}.unsqueeze(-2)"
            right = right if cols else f"{right}.unsqueeze(-1)"
            squeeze = ".squeeze(-2)" if not rows else ".squeeze(-1)" if not cols else ""
            return f"({left} @ {right}){squeeze}"
        letters = {d: chr(ord("A") + i) for i, d in enumerate(dict.fromkeys((*a.dims, *b.dims)))}
        left, right, out = ("".join(letters[d] for d in x.dims) for x in (a, b, node))
        operands = ", ".join(self._alike(node, self._name(a), self._name(b)))
        return f"torch.einsum('...{left},...{right}->...{out}', {operands})"

    @staticmethod
    def _alike(node: Node, *operands: str) -> list[str]:
        """Operands of one kind: matrix products take no mixture."""
        kinds = {a.kind for a in node.args}
        return [f"({x} + 0j)" if len(kinds) > 1 and a.kind != "complex" else x
                for x, a in zip(operands, node.args, strict=True)]
