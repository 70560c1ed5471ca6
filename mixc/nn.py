"""A mixer as a torch module that owns its params.

    mix = mixc.nn.Mixer("mamba1", heads=1, D=64, N=16, init={"A": lambda A: A.uniform_(-1, 0)})
    y, state = mix(x, dt, B, C)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from mixc.errors import InputError
from mixc.hashing.evaluate import const_values
from mixc.ir.evaluate import dtype_of
from mixc.ir.program import Decl
from mixc.runtime.describe import expression, shape
from mixc.runtime.draw import draw_one
from mixc.runtime.load import load
from mixc.runtime.mixer import Mixer as Function

Tensor = torch.Tensor
Init = Callable[[Tensor], Any] | Tensor | float


class Mixer(torch.nn.Module):
    """Owns the params of a spec, `[heads, dims...]`, named as there; consts are attributes, forward is the call."""

    def __init__(self, spec: Function | str | Path, *, heads: int | None = 1, init: Mapping[str, Init] | None = None,
                 device: Any = None, dtype: torch.dtype | None = None, **given: Any):
        """
        Args:
            spec: a mixer, or what `mixc.load` takes.
            heads: H of the params; None: params and tensors without a head axis.
            init: by param, a function that fills a tensor in place (or returns one), a tensor or a number; without
                it a param is drawn from its range, or normal with variance 1 / (product of its dims).
            given: sizes of dims, which every param needs and inputs are held against, and values of consts.
        Raises:
            InputError: a name that is no dim and no const, a size that is missing or disagrees.
        """
        super().__init__()
        mixer = spec if isinstance(spec, Function) else load(spec)
        declared = mixer.declared
        consts = {d.name for d in declared.consts}
        object.__setattr__(self, "_names", consts)
        self._overrides: dict[str, Any] = {n: given.pop(n) for n in list(given) if n in consts}
        self.mixer, self.heads, self.sizes = mixer, heads, _sizes(mixer, given)
        self._init = dict(init or {})
        wrong = sorted(set(self._init) - {d.name for d in declared.params})
        if wrong:
            raise InputError(f"init: {declared.name} has no param `{wrong[0]}`")
        if heads is not None and (isinstance(heads, bool) or not isinstance(heads, int) or heads < 1):
            raise InputError(f"heads: expected a whole number from 1 on, or None, got {heads!r}")
        real = dtype or torch.get_default_dtype()
        for d in declared.params:
            kind = dtype_of(d.kind, real)
            full = [*([] if heads is None else [heads]), *(self._size(d, n) for n in d.dims)]
            self.register_parameter(d.name, torch.nn.Parameter(torch.empty(full, device=device, dtype=kind)))
        self.reset_parameters()

    def _size(self, d: Decl, dim: str) -> int:
        if dim not in self.sizes:
            raise InputError(f"param {shape(d)} needs the size of `{dim}`: "
                             f"mixc.nn.Mixer({self.mixer.__name__!r}, {dim}=64)")
        return self.sizes[dim]

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws every param anew, from torch's generator."""
        for d in self.mixer.declared.params:
            p, how = getattr(self, d.name), self._init.get(d.name)
            if how is None:
                if p.device.type != "meta":
                    values = const_values(self.mixer.declared.consts, {n: self.sizes.get(n, 1) for n in self._dims()},
                                          {n: float(x) for n, x in self._overrides.items()})
                    p.copy_(draw_one(d, list(p.shape), self.sizes, values))
                continue
            made = how(p) if callable(how) else how
            if made is not None and made is not p:
                p.copy_(_of_shape(d, made, p))

    def _dims(self) -> list[str]:
        return [d.name for d in self.mixer.declared.dims]

    # ------------------------------------------------------------ consts
    def __getattr__(self, name: str) -> Any:
        if name in self.__dict__.get("_names", ()):
            if name in self._overrides:
                return self._overrides[name]
            d = self.mixer.declared.decl(name)
            try:
                given = {n: float(x) for n, x in self._overrides.items()}
                return const_values(self.mixer.declared.consts, self.sizes, given)[name]
            except KeyError as e:
                raise AttributeError(f"const {name} = {expression(d.init)} needs the size of {e}") from None  # type: ignore[arg-type]
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__.get("_names", ()):
            self._overrides[name] = value
        else:
            super().__setattr__(name, value)

    # ------------------------------------------------------------ running
    def forward(self, *ins: Tensor, **options: Any) -> Any:
        """`(o, state)` of the mixer; ins by position or keyword, consts and options as in its call."""
        return self.mixer(*ins, **self._given(ins, options, 2))

    def step(self, state: Any, *ins: Tensor, **options: Any) -> Any:
        """One token: `(o_t, state)`."""
        return self.mixer.step(state, *ins, **self._given(ins, options, 1))

    def _given(self, ins: tuple[Tensor, ...], options: dict[str, Any], lead: int) -> dict[str, Any]:
        declared = self.mixer.declared
        for i, d in enumerate(declared.ins):
            x = ins[i] if i < len(ins) else options.get(d.name)
            for at, dim in enumerate(reversed(d.dims), 1):
                if dim not in self.sizes or x is None or x.ndim < lead + len(d.dims):
                    continue
                if x.shape[-at] != self.sizes[dim]:
                    raise InputError(f"`{d.name}`: expected {shape(d)} with {dim} = {self.sizes[dim]}, as the module "
                                     f"was made, got {list(x.shape)}")
        params = {d.name: getattr(self, d.name) for d in declared.params}
        return {**params, **self._overrides, **options}

    def extra_repr(self) -> str:
        """`gated_delta_rule, heads=4, K=64, V=64, scale=0.1`"""
        shown = {"heads": self.heads, **self.sizes, **self._overrides}
        return ", ".join([self.mixer.__name__, *(f"{n}={x}" for n, x in shown.items())])


def _of_shape(d: Decl, made: Any, p: Tensor) -> Tensor:
    """What an init gave: a number, or a tensor of the param's shape."""
    try:
        found = torch.as_tensor(made)
    except (TypeError, ValueError, RuntimeError):
        found = None
    if found is None or found.shape not in ((), p.shape):
        got = type(made).__name__ if found is None else list(found.shape)
        raise InputError(f"init: expected for {shape(d)} a number, a tensor {list(p.shape)}, or a function that fills "
                         f"one, got {got}")
    return found


def _sizes(mixer: Function, given: dict[str, Any]) -> dict[str, int]:
    """Sizes of the dims that are given or fixed, second names included."""
    dims = {d.name: d for d in mixer.declared.dims}
    found: dict[str, int] = {n: d.size for n, d in dims.items() if d.size is not None}
    for name, size in given.items():
        if name not in dims:
            consts = ", ".join(d.name for d in mixer.declared.consts) or "none"
            raise InputError(f"{mixer.__name__} has no dim and no const `{name}`; dims: {', '.join(dims)}, "
                             f"consts: {consts}")
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise InputError(f"`{name}`: expected a size of at least 1, got {size!r}")
        root = mixer.declared.root[name]
        if found.setdefault(root, size) != size:
            raise InputError(f"`{name}`: expected {found[root]}, the size of {root}, got {size}")
    for name, d in dims.items():
        if d.alias and d.alias in found:
            found[name] = found[d.alias]
    return {n: found[n] for n in dims if n in found}


__all__ = ["Mixer"]
