"""Expressions over numbers, consts and sizes as Python text: formed on the host in double precision."""

from __future__ import annotations

from collections.abc import Callable

from mixc.codegen.lines import literal
from mixc.ir.node import Node

_BINARY = {"add": "+", "sub": "-", "mul": "*", "div": "/", "pow": "**", "mod": "%", "floordiv": "//"}
_UNARY = {"exp", "log", "log1p", "expm1", "sqrt", "sin", "cos", "tanh"}


def python_text(node: Node, called: Callable[[str], str] = str) -> str:
    """The expression as Python; names are those of consts and dims, as `called` says."""
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
