"""Memory that outlives a call: fresh memory costs a page fault every 4 KB, more than most uses of it.

`Workspace`: scratch, one per thread, dtype and device.  It is as large as the largest segment so far (some
20 MB: segments are cut to a fixed size), whatever the length of the sequences.
`lasting`: small scratch, by name: whoever asks under the same name gets it again, with what was made of it.
`empty`: what a call hands out, or keeps for its backward.  On a CPU allocators give large blocks back to the system:
the latest `MOST` bytes are remembered, and a tensor whose storage has no other holder (views, graphs, numpy arrays
and processes count) gives its memory to the next of its size.
"""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch

Tensor = torch.Tensor
_local = threading.local()
_LINE = 16  # values: buffers start at a cache line
Frame = tuple[int, tuple[tuple[str, tuple[int, ...]], ...]]  # M, and what a row of each buffer is: name, shape


class Workspace:
    def __init__(self, dtype: torch.dtype, device: torch.device):
        self.flat = torch.empty(0, dtype=dtype, device=device)
        self.frames: dict[Frame, dict[str, Tensor]] = {}
        self.ready: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()  # what `places` makes of them

    @staticmethod
    def mine(dtype: torch.dtype, device: torch.device) -> Workspace:
        """This thread's."""
        pool: dict[tuple[torch.dtype, torch.device], Workspace] = _local.__dict__.setdefault("pool", {})
        if (dtype, device) not in pool:
            pool[dtype, device] = Workspace(dtype, device)
        return pool[dtype, device]

    def frame(self, wanted: Frame) -> dict[str, Tensor]:
        """A tensor [M, shape...] for every name; valid until the next frame is asked for."""
        found = self.frames.get(wanted)
        if found is None:
            with torch.inference_mode(False):  # it is kept, for calls in any mode
                found = self.frames[wanted] = self._made(*wanted)
        return found

    def _forget(self) -> None:
        self.frames.clear()
        self.ready.clear()

    def _made(self, M: int, wanted: tuple[tuple[str, tuple[int, ...]], ...]) -> dict[str, Tensor]:
        shapes = dict(wanted)
        sizes = {name: M * math.prod(shape) for name, shape in shapes.items()}
        total = sum(-(-n // _LINE) * _LINE for n in sizes.values())
        if total > self.flat.numel():
            self.flat = torch.empty(total, dtype=self.flat.dtype, device=self.flat.device)
            self._forget()
        if len(self.frames) > 64:
            self._forget()
        views, at = {}, 0
        for name, n in sizes.items():
            views[name] = self.flat[at:at + n].view(M, *shapes[name])
            views[name].mixc_scratch = True  # type: ignore[attr-defined]
            at += -(-n // _LINE) * _LINE
        return views


LASTING = 1 << 25  # bytes of it, one thread's


def lasting(name: object, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A tensor on the CPU to be filled, and read before this thread asks for one of that name again."""
    key, known = (name, *shape, dtype), _local.__dict__.setdefault("lasting", {})
    if key not in known:
        if sum(x.nbytes for x in known.values()) > LASTING:
            known.clear()
        with torch.inference_mode(False):  # it is kept, for calls in any mode
            known[key] = torch.empty(tuple(shape), dtype=dtype)
        known[key].mixc_scratch = True
    return known[key]  # type: ignore[no-any-return]


LEAST, MOST = 1 << 18, 1 << 27
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
    """A contiguous tensor to be filled."""
    bytes_ = math.prod(shape) * dtype.itemsize
    if bytes_ < LEAST or bytes_ > MOST or _ALONE is None or device.type != "cpu" or torch.is_inference_mode_enabled():
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
