"""Memory of what a call hands out: taken again once nobody holds the result.

On a CPU a fresh tensor of 16 MB costs several times the work of writing it, in page faults, since allocators give
large blocks back to the system.  The latest `MOST` bytes of results are remembered; one whose storage has no other
holder (views, graphs, numpy arrays and processes count) gives its memory to the next of its size.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence

import torch

Tensor = torch.Tensor
LEAST, MOST = 1 << 18, 1 << 26
_lock = threading.Lock()
_known: list[Tensor] = []  # uint8, the latest last


def _holders(x: Tensor) -> tuple[int, int]:
    """How many hold its storage, in C++ and in Python."""
    storage = x.untyped_storage()
    return torch._C._storage_Use_Count(storage._cdata), sys.getrefcount(storage)  # type: ignore[attr-defined]


def _alone() -> tuple[int, int] | None:
    """What `_holders` says of a tensor that nobody else holds; None: this torch does not count."""
    if not hasattr(torch._C, "_storage_Use_Count"):
        return None
    x = torch.empty(1)
    _holders(x)  # from now on the storage has a Python object
    return _holders(x)


_ALONE = _alone()


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A contiguous tensor to be filled and handed out."""
    bytes_ = torch.Size(shape).numel() * dtype.itemsize
    if _ALONE is None or device.type != "cpu" or not LEAST <= bytes_ <= MOST or torch.is_inference_mode_enabled():
        return torch.empty(shape, dtype=dtype, device=device)
    with _lock:
        at = next((i for i, x in enumerate(_known) if x.nbytes == bytes_ and _holders(x) == _ALONE
                   and not x.untyped_storage().is_shared() and x.untyped_storage().nbytes() == bytes_), None)
        memory = torch.empty(bytes_, dtype=torch.uint8) if at is None else _known.pop(at)
        _known.append(memory)
        while sum(x.nbytes for x in _known) > MOST:
            _known.pop(0)
        _holders(memory)
        return torch.empty(0, dtype=dtype).set_(memory.untyped_storage(), 0, torch.Size(shape))  # type: ignore[call-overload]


def forget() -> None:
    """Gives back what nobody holds (figures of memory start from here)."""
    with _lock:
        _known.clear()
