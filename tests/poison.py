"""Memory that nobody wrote is NaN: `torch.empty` and its kin, the workspace, the pool.

What a program reads before it writes, or leaves unwritten, then shows in every comparison.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch

from mixc.runtime import memory
from mixc.runtime.memory import Frame, Workspace


def poison(x: torch.Tensor) -> torch.Tensor:
    """x filled with NaN, an integer with its least value."""
    with torch.no_grad():
        if x.is_floating_point() or x.is_complex():
            return x.fill_(float("nan"))
        return x if x.dtype == torch.bool else x.fill_(torch.iinfo(x.dtype).min)


def _fills(fn: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(fn)
    def filled(*args: Any, **options: Any) -> torch.Tensor:
        return poison(fn(*args, **options))
    return filled


def _frame(self: Workspace, wanted: Frame, frame: Any = Workspace.frame) -> Any:
    found = frame(self, wanted)
    poison(self.flat)
    return found


@contextmanager
def poisoned() -> Iterator[None]:
    """Within it, memory is poisoned each time it is handed out: before every launch and every segment."""
    with patch.object(torch, "empty", _fills(torch.empty)), \
            patch.object(torch, "empty_like", _fills(torch.empty_like)), \
            patch.object(torch.Tensor, "new_empty", _fills(torch.Tensor.new_empty)), \
            patch.object(Workspace, "frame", _frame), \
            patch.object(memory, "empty", _fills(memory.empty)):
        yield
