"""Memory of results is taken again when nobody holds them, and never before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mixc.runtime import memory

CPU = torch.device("cpu")
SHAPE = [3, 1 << 17]


@pytest.fixture(autouse=True)
def nothing_remembered() -> None:
    """Whatever ran in this process before: its blocks may have the size of ours."""
    memory.forget()


def _made(value: float) -> torch.Tensor:
    return memory.empty(SHAPE, torch.float32, CPU).fill_(value)


def test_memory_comes_back() -> None:
    first = _made(1.0)
    at = first.data_ptr()
    del first
    assert _made(2.0).data_ptr() == at


@pytest.mark.parametrize("hold", [
    lambda x: x, lambda x: x[1:, 5], lambda x: x.detach(), lambda x: x.untyped_storage(), lambda x: x.numpy(),
    lambda x: (torch.ones(SHAPE, requires_grad=True) * x).grad_fn, lambda x: torch.utils.dlpack.to_dlpack(x)])
def test_what_is_held_stays(hold: Callable[[torch.Tensor], Any]) -> None:
    x = _made(1.0)
    at, held = x.data_ptr(), hold(x)
    del x
    others = [_made(2.0) for _ in range(5)]
    assert all(y.data_ptr() != at for y in others)
    del held


def test_what_other_processes_see_stays() -> None:
    x = _made(1.0).share_memory_()
    at = x.data_ptr()
    del x
    assert all(y.data_ptr() != at for y in [_made(2.0) for _ in range(5)])


def test_a_bound() -> None:
    held = [memory.empty([1 << 23], torch.float32, CPU) for _ in range(5)]  # 32 MB each
    assert sum(x.nbytes for x in memory._known) <= memory.MOST
    assert len({x.data_ptr() for x in held}) == 5
