"""What tests say: `assert_agree`. The criterion itself is `mixc.runtime.agree`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from mixc.runtime.agree import BOUNDS, Finding, Run, judge, ratio, run
from mixc.runtime.draw import draw, normal

__all__ = ["BOUNDS", "Run", "assert_agree", "assert_runs_agree", "draw", "normal", "ratio", "run"]


def assert_agree(got: torch.Tensor, want: torch.Tensor, dtype: torch.dtype = torch.float32, kind: str = "out", *,
                 floor: float = 0.0, bound: float | None = None, name: str = "value") -> None:
    """RMS(error) / max(RMS(want), floor) within the bound of the dtype; `kind`: "out", "grad" or "gate"."""
    finding = Finding(name, kind, ratio(got, want, floor), BOUNDS[dtype][kind] if bound is None else bound)
    assert finding.ok, str(finding)


def assert_runs_agree(mixer: Any, got: Run, want: Run, dtype: torch.dtype = torch.float32,
                      plain: Callable[[], Run] | None = None) -> None:
    """Outs, final states and gradients of two runs, each within its bound; all that fail are named."""
    bad = [str(f) for f in judge(mixer.declared, got, want, dtype, plain) if not f.ok]
    assert not bad, "; ".join(bad)
