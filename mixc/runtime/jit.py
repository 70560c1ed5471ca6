"""`@mixc.jit`: a mixer from a Python function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

from mixc.errors import InputError, SpecError
from mixc.runtime.mixer import Mixer


@overload
def jit(fn: Callable[..., Any], /) -> Mixer: ...
@overload
def jit(*, dims: str | None = None) -> Callable[[Callable[..., Any]], Mixer]: ...
def jit(fn: Callable[..., Any] | None = None, /, *, dims: str | None = None) -> Any:
    """The mixer that a function describes.  Its body is read from the source and never run.

    Args:
        dims: the header, where it says more than the signature: `@mixc.jit(dims="D, E = D")`.
    Raises:
        SpecError: what is wrong with it, with spans in the Python file.
    """
    if dims is not None and not isinstance(dims, str):
        raise InputError(f'`dims`: expected the header as a text, dims="K, V = 4", got {type(dims).__name__} {dims!r}')
    if fn is None:
        return lambda f: jit_with(f, dims)
    return jit_with(fn, dims)


def jit_with(fn: Any, dims: str | None) -> Mixer:
    from mixc.frontend.python_surface import in_python, syntax

    try:
        mixer = Mixer(syntax(fn, dims))
    except SpecError as e:
        raise SpecError([in_python(d) for d in e.diagnostics]) from None
    mixer.__module__ = getattr(fn, "__module__", __name__)
    mixer.__qualname__ = getattr(fn, "__qualname__", mixer.__name__)
    return mixer
