"""One call of a mixer in canonical form: what every backend is given."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from mixc.ir.evaluate import dtype_of
from mixc.ir.node import Node
from mixc.ir.program import Program
from mixc.runtime.plan import plan_of
from mixc.runtime.rows import Rows

Tensor = torch.Tensor


@dataclass(frozen=True)
class Call:
    """A validated call.

    Attributes:
        program: the step, elaborated for these sizes and structural consts.
        sizes: of every dim, other names of a size included.
        consts: of every const, re-evaluated under the call's own.
        ins: [B, T, G, dims...], in the caller's order of rows, dtype and strides; G divides H.
            (None: what kernels read some tokens ago off another; see `context.run`.)
        params: [G, dims...].
        states0: the initial states that were given, [N, H, dims...]; others start as declared.
        lags0: the histories that were given, [N, n, H, dims...], oldest first; others are 0.
        pos0: int64 [N], tokens before the call; None: 0.
        rows: the sequences; results are wanted in the caller's order of rows.
        dtype: the real dtype to compute in, float32 or float64.
        out_dtypes: promised dtype of every out (states: `dtype`, complex where they are).
        want_state: whether final states are asked for (they are computed either way if cheap).
        memo: what was found about this call, and holds for all that differ in the values of their tensors only.
    """

    program: Program
    sizes: dict[str, int]
    consts: dict[str, float]
    H: int
    ins: dict[str, Tensor]
    params: dict[str, Tensor]
    rows: Rows
    dtype: torch.dtype
    out_dtypes: dict[str, torch.dtype]
    device: torch.device
    states0: dict[str, Tensor] = field(default_factory=dict)
    lags0: dict[str, Tensor] = field(default_factory=dict)
    pos0: Tensor | None = None
    want_state: bool = False
    headless: bool = False
    memo: dict[Any, Any] = field(default_factory=dict, init=False, compare=False)

    def bare(self) -> Call:
        """Without the tensors."""
        made = object.__new__(Call)
        made.__dict__.update(vars(self), ins={}, params={}, states0={}, lags0={})
        return made

    def state_dtype(self, kind: str) -> torch.dtype:
        return dtype_of(kind, self.dtype)


def histories(program: Program, sizes: dict[str, int]) -> dict[str, tuple[Node, int]]:
    """By name of x in `lag(x, n)` and `lag[W](x)`: its node, and how many values a history keeps."""
    found = plan_of(program).lags.items()
    depths = {name: (x, max(n, *(sizes[d] - 1 for d in windows), 0)) for name, (x, n, windows) in found}
    return {name: (x, depth) for name, (x, depth) in depths.items() if depth > 0}


def counts_tokens(program: Program) -> bool:
    """Does the step read `pos`?"""
    return plan_of(program).counts_tokens
