"""Triton's interpreter made to do what a GPU does, where it is kinder or cruder.

Lanes outside a load's mask hold anything where no `other` is given (it gives zeros), and fp32 becomes bf16 by
rounding to the nearest (it truncates, which doubles the error and gives it a bias).  And faster: it combines the rows
of a scan entry by entry, looks through all of triton.language at every call of a function, makes a table of all types
at every value, and asks of every sum of 32-bit integers whether it overflows, which nothing does at a test's sizes.
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


def patch_once() -> None:
    """All of triton.language, for good, where the interpreter would do it again at every call of a function."""
    from types import SimpleNamespace

    import triton.language as tl
    from triton.runtime import interpreter

    interpreter._patch_lang(SimpleNamespace(__globals__={"tl": tl, "core": tl.core}))
    interpreter._patch_lang = lambda fn: interpreter._LangPatchScope()


def remember_types() -> None:
    """numpy's type of every type of triton, found once."""
    import triton.language as tl
    from triton.runtime import interpreter

    find, known = interpreter._get_np_dtype, dict[str, Any]()

    def numpy_type(kind: Any) -> Any:
        scalar = kind.element_ty if isinstance(kind, tl.block_type) else kind
        if scalar.name not in known:
            known[scalar.name] = find(scalar)
        return known[scalar.name]
    interpreter._get_np_dtype = numpy_type


def remember_shapes() -> None:
    """The shape of a value, found once for every type; operands of one shape are not broadcast to it, nor those of the
    dtype of a result cast to it."""
    import triton.language as tl
    from triton.language import semantic

    types, shapes = dict[tuple[int, ...], Any](), dict[tuple[int, ...], tuple[Any, Any]]()
    new_type, new_tensor = tl.block_type.__init__, tl.tensor.__init__
    broadcast, convert = semantic.TritonSemantic.broadcast_impl_value, semantic.TritonSemantic.cast

    def block_type(self: Any, element_ty: Any, shape: Any) -> None:
        key = (id(element_ty), *(getattr(size, "value", size) for size in shape))
        if key in types:
            self.__dict__.update(types[key].__dict__)
        else:
            new_type(self, element_ty, shape)
            types[key] = self  # which holds the element type, so that its id stays its own

    def tensor(self: Any, handle: Any, type: Any) -> None:
        key = (*type.shape,) if type.is_block() else ()
        if key in shapes:
            self.handle, self.type, self.dtype = handle, type, type.scalar
            self.shape, self.numel = shapes[key]
        else:
            new_tensor(self, handle, type)
            shapes[key] = self.shape, self.numel

    def broadcast_impl_value(self: Any, lhs: Any, rhs: Any) -> tuple[Any, Any]:
        return (lhs, rhs) if lhs.shape is rhs.shape else broadcast(self, lhs, rhs)

    def cast(self: Any, value: Any, to: Any, *rest: Any) -> Any:
        return value if value.dtype is to else convert(self, value, to, *rest)

    semantic.TritonSemantic.cast = cast
    tl.block_type.__init__, tl.tensor.__init__ = block_type, tensor
    semantic.TritonSemantic.broadcast_impl_value = broadcast_impl_value


def amend() -> None:
    """For the rest of the process."""
    from triton.runtime import interpreter
    from triton.runtime.interpreter import InterpreterBuilder as Builder
    from triton.runtime.interpreter import ScanOps

    patch_once()
    remember_types()
    remember_shapes()
    interpreter.interpreter_builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)
    ScanOps.generic_scan = scan_by_rows

    load, plain = Builder.create_masked_load, Builder.cast_impl
    Builder.create_masked_load = lambda self, *args: masked_load(self, *args, load=load)
    Builder.cast_impl = lambda self, src, to: cast(self, src, to, plain=plain)
