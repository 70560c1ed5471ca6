"""Triton's interpreter made to do what a GPU does, where it is kinder or cruder.

Lanes outside a load's mask hold anything where no `other` is given (it gives zeros), and fp32 becomes bf16 by
rounding to the nearest (it truncates, which doubles the error and gives it a bias).  The rows of a scan, which it
combines entry by entry, are taken whole.
"""

from __future__ import annotations

from typing import Any

import torch


def masked_load(self: Any, ptrs: Any, mask: Any, other: Any, *rest: Any, load: Any) -> Any:
    if other is None and not mask.data.all():
        from triton.runtime.interpreter import TensorHandle, _get_np_dtype, np

        kind = _get_np_dtype(ptrs.get_element_ty())
        junk = float("nan") if np.issubdtype(kind, np.floating) else 0x7FC0  # in bf16, which it holds as uint16: NaN
        other = TensorHandle(np.full_like(ptrs.data, junk, dtype=kind), ptrs.get_element_ty())
    return load(self, ptrs, mask, other, *rest)


def cast(self: Any, src: Any, to: Any, *, plain: Any) -> Any:
    import triton.language as tl
    from triton.runtime.interpreter import TensorHandle, np

    if src.dtype.scalar == tl.float32 and to.scalar == tl.bfloat16:
        rounded = torch.from_numpy(np.ascontiguousarray(src.data)).to(torch.bfloat16).view(torch.int16)
        return TensorHandle(rounded.numpy().view(np.uint16).reshape(src.data.shape), tl.bfloat16)
    return plain(self, src, to)


def scan_by_rows(self: Any, given: Any) -> Any:
    """`ScanOps.generic_scan`, a whole row at once."""
    from triton.runtime.interpreter import np

    rows = [np.moveaxis(x.handle.data, self.axis, 0) for x in given]
    kinds = [x.dtype for x in given]
    out = [np.zeros_like(x) for x in rows]
    held: tuple[Any, ...] = ()
    for t in range(len(rows[0])):
        new = tuple(self.to_tensor(x[t], kind) for x, kind in zip(rows, kinds, strict=True))
        held = self.combine_fn.fn(*held, *new) if held else new
        held = held if isinstance(held, tuple) else (held,)
        for x, value in zip(out, held, strict=True):
            x[t] = value.handle.data.reshape(x[t].shape)
    return [self.to_tensor(np.ascontiguousarray(np.moveaxis(x, 0, self.axis)), kind)
            for x, kind in zip(out, kinds, strict=True)]


def amend() -> None:
    """For the rest of the process."""
    from triton.runtime.interpreter import InterpreterBuilder as Builder
    from triton.runtime.interpreter import ScanOps

    from tests.quick_interpreter import hasten  # which imports triton, and so only where it is asked for

    hasten()
    ScanOps.generic_scan = scan_by_rows

    load, plain = Builder.create_masked_load, Builder.cast_impl
    Builder.create_masked_load = lambda self, *args: masked_load(self, *args, load=load)
    Builder.cast_impl = lambda self, src, to: cast(self, src, to, plain=plain)
