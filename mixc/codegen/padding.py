"""What stands behind the end of a dim, where its block is larger than the dim: is it 0, or at least finite?"""

from __future__ import annotations

import math

from mixc.ir.node import Node, flat
from mixc.ir.ranges import bounds

_ZERO_AT_ZERO = {"square", "abs", "sqrt", "sin", "tanh", "relu", "silu", "gelu", "elu", "expm1", "log1p", "sign",
                 "neg", "live", "once", "mask", "cumsum", "sum", "stop_gradient", "pick", "place", "conj"}
_SINGULAR = {"log", "log1p", "rsqrt", "pow", "logaddexp"}
_SUMMED = {"add", "cumsum", "sum", "live", "rename", "expand", "segsum", "mask", "where"}


def zero_padded(node: Node, dim: str) -> bool:
    """Is the value 0 behind the end of `dim`, where its block is larger than the dim?"""
    if (several := flat([dim])) != (dim,):
        return all(zero_padded(node, d) for d in several)
    if node.op in ("expand", "flatten", "unflatten"):
        return dim in flat(node.args[0].dims) and zero_padded(node.args[0], dim)
    if dim not in flat(node.dims) or node.op == "index":
        return False
    if node.op == "softmax":
        return dim in node.attr("over")  # of -inf
    if not node.args:
        return True  # loads are masked with 0
    if node.op == "rename":
        return zero_padded(node.args[0], _renamed(node, dim))
    if node.op in ("add", "sub", "maximum", "minimum"):
        return all(zero_padded(a, dim) for a in node.args)
    if node.op in ("mul", "contract", "guard"):
        a, b = node.args
        return (zero_padded(a, dim) and (node.op == "guard" or finite_padded(b, dim))) or (
            zero_padded(b, dim) and finite_padded(a, dim))
    if node.op == "div":
        return zero_padded(node.args[0], dim) and dim not in flat(node.args[1].dims)
    if node.op == "where":
        return all(zero_padded(a, dim) for a in node.args[1:])
    return node.op in _ZERO_AT_ZERO and zero_padded(node.args[0], dim)


def finite_padded(node: Node, dim: str) -> bool:
    """Is the value finite there, so that 0 times it is 0?  Behind the end of `dim`, 0 stands for what was loaded."""
    if node.op == "rename":
        return finite_padded(node.args[0], _renamed(node, dim))
    if dim not in flat(node.dims) or not node.args:
        return not (node.op == "number" and math.isinf(abs(node.attr("value"))))
    if node.op in ("exp", "expm1"):
        return _nonpositive_padded(node.args[0], dim)
    if node.op == "div" and dim in flat(node.args[1].dims):
        return False
    if node.op == "sqrt":  # a range that keeps what is loaded away from 0 says nothing there
        return zero_padded(node.args[0], dim)
    odd = node.op in _SINGULAR or node.attr("combine", "affine") != "affine" or (node.op == "ipow" and node.attr("n") < 0)
    return not odd and all(finite_padded(a, dim) for a in node.args)


def _renamed(node: Node, dim: str) -> str:
    """What a rename's argument calls the dim."""
    return {new: old for old, new in node.attr("to")}.get(dim, dim)


def _nonpositive_padded(x: Node, dim: str) -> bool:
    if x.op == "rename":
        return _nonpositive_padded(x.args[0], _renamed(x, dim))
    args = x.args[1:] if x.op == "where" else x.args
    return zero_padded(x, dim) or bounds(x).nonpositive or (
        x.op in _SUMMED and all(_nonpositive_padded(a, dim) for a in args))
