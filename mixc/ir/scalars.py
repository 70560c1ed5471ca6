"""Values of numbers, consts and sizes, formed on the host in double precision."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mixc.ir.node import Node

_BINARY: dict[str, Any] = {"add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b,
                           "div": lambda a, b: a / b, "pow": lambda a, b: a**b, "mod": lambda a, b: a % b,
                           "floordiv": lambda a, b: a // b, "maximum": max, "minimum": min}


def python_value(x: Node, consts: Mapping[str, float], defaults: Mapping[str, Node | None],
                 sizes: Mapping[str, int] | None = None) -> float:
    """Raises LookupError if x depends on more than numbers, consts and the given sizes."""
    def value(n: Node) -> float:
        if n.op == "number":
            return float(n.attr("value"))
        if n.op == "const":
            name = n.attr("name")
            if name in consts:
                return float(consts[name])
            default = defaults[name]
            if default is None:
                raise LookupError(name)
            return value(default)
        if n.op == "size":
            return float((sizes or {})[n.attr("dim")])
        args = [value(a) for a in n.args]
        if n.op in _BINARY:
            return float(_BINARY[n.op](*args))
        if n.op == "neg":
            return -args[0]
        if n.op == "ipow":
            return float(args[0] ** n.attr("n"))
        if n.op in ("exp", "log", "log1p", "expm1", "sqrt", "sin", "cos", "tanh"):
            return float(getattr(math, n.op)(args[0]))
        raise LookupError(n.op)
    return value(x)
