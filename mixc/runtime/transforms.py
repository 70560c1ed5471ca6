"""Derivatives of other kinds than autograd's reverse ones, which no program of a mixer carries: they are refused.

A program writes into memory of its own and has an adjoint of its own, so that a tangent would be lost on the way, and
what comes out would say that nothing depends on it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import forward_ad

from mixc.errors import InputError


def refuse(name: str, args: tuple[Any, ...], options: dict[str, Any], state: Any = None) -> None:
    """Raises where torch.jit traces, and for tensors with tangents but on the reference."""
    if torch._C._get_tracing_state():
        raise InputError(f"{name}: torch.jit.trace does not go through a mixer; torch.export and torch.compile do")
    if forward_ad._current_level >= 0 and options.get("backend") != "reference" and _tangents((args, options, state)):
        raise InputError(f"{name}: forward derivatives (torch.autograd.forward_ad) go through "
                         "backend=\"reference\" alone")


def _tangents(given: Any) -> bool:
    from torch.utils._pytree import tree_leaves

    tensors = (x for x in tree_leaves(given) if isinstance(x, torch.Tensor))
    return any(forward_ad.unpack_dual(x).tangent is not None for x in tensors)
