"""Memory that outlives a call: fresh memory costs a page fault every 4 KB, more than most uses of it.

`Workspace`: scratch, one per thread, dtype and device.  It is as large as the largest segment so far (some
20 MB: segments are cut to a fixed size), whatever the length of the sequences.
`Kept`: what a forward keeps for its backward.  It goes back to a pool of at most `POOL_BYTES` when the
graph that holds it is freed.
"""

from __future__ import annotations

import math
import threading

import torch

Tensor = torch.Tensor
_local = threading.local()
_LINE = 16  # values: buffers start at a cache line


class Workspace:
    def __init__(self, dtype: torch.dtype, device: torch.device):
        self.flat = torch.empty(0, dtype=dtype, device=device)
        self.frames: dict[tuple[object, ...], dict[str, Tensor]] = {}

    @staticmethod
    def mine(dtype: torch.dtype, device: torch.device) -> Workspace:
        """This thread's."""
        pool: dict[tuple[torch.dtype, torch.device], Workspace] = _local.__dict__.setdefault("pool", {})
        if (dtype, device) not in pool:
            pool[dtype, device] = Workspace(dtype, device)
        return pool[dtype, device]

    def frame(self, M: int, shapes: dict[str, list[int]]) -> dict[str, Tensor]:
        """A tensor [M, shape...] for every name; valid until the next frame is asked for."""
        key = (M, tuple((name, tuple(shape)) for name, shape in shapes.items()))
        if key not in self.frames:
            sizes = {name: M * math.prod(shape) for name, shape in shapes.items()}
            total = sum(-(-n // _LINE) * _LINE for n in sizes.values())
            if total > self.flat.numel():
                self.flat = torch.empty(total, dtype=self.flat.dtype, device=self.flat.device)
                self.frames.clear()
            if len(self.frames) > 64:
                self.frames.clear()
            views, at = {}, 0
            for name, n in sizes.items():
                views[name] = self.flat[at:at + n].view(M, *shapes[name])
                views[name].mixc_scratch = True  # type: ignore[attr-defined]
                at += -(-n // _LINE) * _LINE
            self.frames[key] = views
        return self.frames[key]


def hooked() -> bool:
    """Do hooks take away what graphs keep (to move it, or to form it again)?  Then it belongs to them alone."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


POOL_BYTES = 1 << 26
_lock = threading.Lock()
_pool: dict[tuple[object, ...], list[Tensor]] = {}
_pooled = 0


class Kept:
    """Tensors that live as long as this object, which nobody else may hold."""

    def __init__(self, pooled: bool = True) -> None:
        self.mine: list[Tensor] = []
        self.pooled = pooled

    def empty(self, shape: list[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        if not self.pooled:
            return torch.empty(shape, dtype=dtype, device=device)
        global _pooled
        key, numel = (math.prod(shape), dtype, device), math.prod(shape)
        with _lock:
            flat = _pool[key].pop() if _pool.get(key) else None
            _pooled -= 0 if flat is None else flat.nbytes
        if flat is None:
            flat = torch.empty(numel, dtype=dtype, device=device)
        self.mine.append(flat)
        return flat.view(shape)

    def __del__(self) -> None:
        global _pooled
        with _lock:
            for flat in self.mine:
                if _pooled + flat.nbytes <= POOL_BYTES:
                    _pool.setdefault((flat.numel(), flat.dtype, flat.device), []).append(flat)
                    _pooled += flat.nbytes
