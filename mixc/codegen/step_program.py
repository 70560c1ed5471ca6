"""One token as straight-line torch: what decoding runs, forward, with autograd's backward.

before: S = exp(g) * S + k * v;  o = q @ S
after:  def step(q_, k_, v_, g_, S_):
            x5 = torch.exp(g_)
            ...
            return x9, x8

Values keep their precision and their guarded gradients (see `runtime/guarded.py`) as in the sequential run.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from mixc.codegen.eager import Writer
from mixc.codegen.lines import defined
from mixc.ir.evaluate import Env
from mixc.ir.node import Node, postorder
from mixc.ir.program import Decl
from mixc.ir.risk import guarded_nodes
from mixc.runtime.call import Call
from mixc.runtime.guarded import RULES

Tensor = torch.Tensor


def step_function(call: Call, grad: bool) -> Callable[..., tuple[Tensor, ...]]:
    """From ins [B, G, ...], params [G, ...] and states [B, H, ...] as the call's to outs and states [B, H, ...].

    Args:
        grad: gradients may be asked for: guarded where they have to be.

    Raises:
        NotImplementedError: the step looks back in time or counts tokens."""
    p, dtype = call.program, call.dtype
    writer = _Step(call, grad)
    text = writer.step_text()
    given = {"torch": torch, "F": F, "REAL": dtype, "inf": math.inf, **writer.constants, **writer.given}
    return defined(text, f"step of {p.name}", given)["step"]  # type: ignore[no-any-return]


class _Step(Writer):
    def __init__(self, call: Call, grad: bool):
        # numbers and consts are formed in fp64 and rounded once
        super().__init__(call.program, call.sizes, call.consts, torch.float64)
        self.call, self.H, self.dtype = call, call.H, call.dtype
        self.grad, self.guarded = grad, guarded_nodes(call.program) if grad else frozenset()
        self.given: dict[str, Any] = {"run_env": Env(self.env.leaf, call.sizes, dtype=call.dtype, device=call.device)}

    def step_text(self) -> str:
        p = self.p
        body = self.body()
        args = [f"{d.name}_" for d in (*p.ins, *p.params, *p.states)]
        lines = [f"def step({', '.join(args)}):"]
        for d in (*p.ins, *p.params, *p.states):
            lines += [f"    {line}" for line in self._argument(d)]
        lines += [f"    {line}" for line in body]
        roots = [(p.result("out", d.name), d) for d in p.outs] + [(p.result("next", d.name), d) for d in p.states]
        lines.append(f"    return {', '.join(self._result(n, d) for n, d in roots)},")
        return "\n".join(lines) + "\n"

    def lines(self, order: list[Node], roots: list[Node]) -> list[str]:
        """What is used once stands where it is used, and what is used up is freed: memory of a state's size that is
        not at hand costs more than what is computed in it."""
        if any(n.op in ("pos", "lag", "window") for n in postorder(roots)):
            raise NotImplementedError("the step looks back")
        uses = Counter(a for n in order for a in n.args) + Counter(roots)
        found, named = list[str](), list[Node]()
        for node in order:
            if uses[node] == 1 and node not in roots and node.op not in ("rename", "pick", "expand"):
                self.names[node] = f"({self.expression(node)})"
            else:
                found.append(self._line(node))
                named.append(node)
        for node in named:
            at = max(i for i, line in enumerate(found) if re.search(rf"\b{self.names[node]}\b", line))
            if node not in roots and not found[at].startswith(f"{self.names[node]} ="):
                found.insert(at + 1, f"del {self.names[node]}")
        return found

    def _argument(self, d: Decl) -> list[str]:
        """Lines that bring an argument to the run's dtype and heads."""
        x, lines = f"{d.name}_", []
        given = {"in": self.call.ins, "param": self.call.params, "state": self.call.states0}[d.role][d.name]
        wide = self.call.state_dtype(d.kind)
        if given.dtype != wide:
            lines.append(f"{x} = {x}.to({wide})")
        if d.role == "param":
            lines.append(f"{x} = {x}[None]")
        G = self.H if d.role == "state" else given.shape[0 if d.role == "param" else 2]
        if G not in (1, self.H):
            lines.append(f"{x} = {x}.repeat_interleave({self.H // G}, 1)")
        if self.grad and d.open_ended:
            lines.append(f"if {x}.requires_grad: {x} = torch.where({x}.abs() == inf, {x}.detach(), {x})")
        return lines

    def _result(self, node: Node, d: Decl) -> str:
        x = self.over(node, d.dims)
        if node.kind != "complex" and d.kind == "complex":
            x = f"({x} + 0j)"
        batch = next(f"{s.name}_" for s in (*self.p.states, *self.p.ins))
        sizes = ", ".join(str(self.env.sizes[n]) for n in d.dims)
        full = f"{x}.expand({batch}.shape[0], {self.H}, {sizes})" if sizes else f"{x}.expand({batch}.shape[0], {self.H})"
        return x if self._has_batch(node) else full

    def _has_batch(self, node: Node) -> bool:
        """Is it surely [B, H, ...]?  What a state is in, is."""
        return node in self.varies and any(n.op == "state" for n in postorder([node]))

    def _constant(self, node: Node) -> Tensor:
        """fp64 where it depends on nothing but positions, numbers and consts, rounded once."""
        value = super()._constant(node)
        if value.is_complex():
            value = value.to(torch.promote_types(self.dtype, torch.complex64))
        elif value.is_floating_point():
            value = value.to(self.dtype)
        return value.to(self.call.device)

    def expression(self, node: Node) -> str:
        if node not in self.guarded or node.op not in RULES:
            return super().expression(node)
        rule, at = f"r{len(self.given)}", f"n{len(self.given)}"
        self.given |= {rule: RULES[node.op], at: node}
        return f"{rule}({at}, [{', '.join(self.name(a) for a in node.args)}], run_env)"
