"""Triton's interpreter made to do what a GPU does, where it is kinder or cruder.

Lanes outside a load's mask hold anything where no `other` is given (it gives zeros), and fp32 becomes bf16 by
rounding to the nearest (it truncates, which doubles the error and gives it a bias).
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


def amend() -> None:
    """For the rest of the process."""
    from triton.runtime.interpreter import InterpreterBuilder as Builder

    load, plain = Builder.create_masked_load, Builder.cast_impl
    Builder.create_masked_load = lambda self, *args: masked_load(self, *args, load=load)
    Builder.cast_impl = lambda self, src, to: cast(self, src, to, plain=plain)
