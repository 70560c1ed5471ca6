"""Values of a step as torch expressions: what all writers of text for whole tensors share.

Every tensor has `lead` axes and then the dims of its node.  How a leaf is called, which values are numbers, and what a
lag is, every writer says for itself.
"""

from __future__ import annotations

from collections.abc import Callable

from mixc.codegen.lines import broadcast, literal
from mixc.ir.node import Node
from mixc.ir.ops import OPS

_BINARY = {"add": "+", "sub": "-", "mul": "*", "div": "/", "pow": "**", "mod": "%", "floordiv": "//"}
_UNARY = {"exp", "log", "log1p", "expm1", "sqrt", "sin", "cos", "tanh"}
PLAIN = {"add", "sub", "mul", "div", "neg", "lt", "le", "eq", "ne"}  # take Python numbers as they are


class Expressions:
    lead = 2

    def name(self, node: Node) -> str:
        """What a tensor is called."""
        raise NotImplementedError

    def number(self, node: Node) -> str | None:
        """The value as a Python number, if it is one."""
        raise NotImplementedError

    def size(self, dim: str) -> str:
        raise NotImplementedError

    def template(self, node: Node) -> str:
        return OPS[node.op].torch or ""

    def back(self, node: Node) -> str:
        """A lag or a window."""
        raise NotImplementedError(f"the step uses {node.op}")

    def over(self, node: Node, want: tuple[str, ...], plain: bool = False) -> str:
        """The value of `node` as [..., want...], of size 1 where it lacks a dim; `plain`: numbers may stay numbers."""
        number = self.number(node) if plain else None
        return broadcast(self.name(node), node.dims, want, self.lead) if number is None else number

    def expression(self, node: Node) -> str:
        """What forms a value out of those of its arguments."""
        row, args = OPS[node.op], node.args
        if node.op == "contract":
            return self._product(node)
        if row.elementwise and row.torch is not None:
            wide = [self.over(a, node.dims, plain=node.op in PLAIN) for a in args]
            return self.template(node).format(*wide, n=node.attr("n"))
        if node.op in ("lag", "window"):
            return self.back(node)
        x = self.name(args[0])
        axes = [self.lead + args[0].dims.index(d) for d in node.attr("over", ())]
        if node.op == "pick":
            return f"{x}.select({self.lead + args[0].dims.index(node.attr('dim'))}, {node.attr('i')})"
        if node.op == "rename":
            return x
        if node.op == "expand":
            sizes = ["-1"] * self.lead + [self.size(d) for d in node.dims]
            return f"{self.over(args[0], node.dims)}.expand({', '.join(sizes)})"
        if node.op == "norm":
            return f"torch.linalg.vector_norm({x}, dim={axes})"
        if node.op == "softmax":
            return f"torch.softmax({x}, {axes[0]})" if len(axes) == 1 else f"torch.exp({x} - torch.logsumexp({x}, {axes}, True))"
        if node.op in ("sum", "max", "min") and axes:
            return f"{x}.{dict(sum='sum', max='amax', min='amin')[node.op]}({axes})"
        if node.op == "place":
            dim, i = node.attr("dim"), node.attr("i")
            at = node.dims.index(dim)
            around = [0, 0] * (len(node.dims) - 1 - at) + [f"{i}", f"{self.size(dim)} - {i + 1}"]
            return f"torch.nn.functional.pad({x}.unsqueeze({self.lead + at}), ({', '.join(map(str, around))}))"
        raise NotImplementedError(f"the step uses {node.op}")

    def _product(self, node: Node) -> str:
        a, b = node.args
        inner = [d for d in a.dims if d in b.dims and d not in node.dims]
        both = [d for d in a.dims if d in b.dims and d in node.dims]
        rows, cols = ([d for d in x.dims if d not in inner + both] for x in (a, b))
        if len(inner) == 1 and not rows and not cols and node.dims == tuple(both):
            return f"({self.over(a, (*both, *inner))} * {self.over(b, (*both, *inner))}).sum(-1)"
        if len(inner) == 1 and not both and len(rows) <= 1 and len(cols) <= 1 and node.dims == (*rows, *cols):
            left, right = self._alike(node, self.over(a, (*rows, *inner)), self.over(b, (*inner, *cols)))
            left = left if rows else f"{left}.unsqueeze(-2)"
            right = right if cols else f"{right}.unsqueeze(-1)"
            squeeze = ".squeeze(-2)" if not rows else ".squeeze(-1)" if not cols else ""
            return f"({left} @ {right}){squeeze}"
        letters = {d: chr(ord("A") + i) for i, d in enumerate(dict.fromkeys((*a.dims, *b.dims)))}
        left, right, out = ("".join(letters[d] for d in x.dims) for x in (a, b, node))
        operands = ", ".join(self._alike(node, self.name(a), self.name(b)))
        return f"torch.einsum('...{left},...{right}->...{out}', {operands})"

    @staticmethod
    def _alike(node: Node, *operands: str) -> list[str]:
        """Operands of one kind: matrix products take no mixture."""
        kinds = {a.kind for a in node.args}
        return [f"({x} + 0j)" if len(kinds) > 1 and a.kind != "complex" else x
                for x, a in zip(operands, node.args, strict=True)]


def python_text(node: Node, called: Callable[[str], str] = str) -> str:
    """The expression as Python, formed on the host in double precision; names are those of consts and dims, as `called` says."""
    if node.op == "number":
        return literal(node.attr("value"))
    if node.op in ("size", "const"):
        return called(node.attr("dim") or node.attr("name"))
    args = [python_text(a, called) for a in node.args]
    if node.op in _BINARY:
        return f"({args[0]} {_BINARY[node.op]} {args[1]})"
    if node.op == "neg":
        return f"(-{args[0]})"
    if node.op == "ipow":
        return f"({args[0]} ** {node.attr('n')})"
    if node.op in _UNARY:
        return f"math.{node.op}({args[0]})"
    if node.op in ("maximum", "minimum"):
        return f"{node.op[:3]}({args[0]}, {args[1]})"
    if node.op == "abs":
        return f"abs({args[0]})"
    raise NotImplementedError(f"`{node.op}` in a const")
