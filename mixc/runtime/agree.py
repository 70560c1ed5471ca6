"""When two runs of a mixer agree: the one criterion, used by every test and by `mixc check`.

RMS(error) / RMS(reference) of every out, final state and gradient, random cotangents for outs and
final states.  A gradient is divided by at least 1e-4 of the largest RMS among the gradients of its
run, so that one that is truly near 0 is not judged by its rounding.  In fp32 the bound is 1e-5, or
four times the error of the step itself run token by token in fp32, whichever is larger.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from mixc.runtime import arguments, sequential
from mixc.runtime.draw import is_gate, normal

Tensor = torch.Tensor
FLOOR, TINY = 1e-4, 1e-300

# dtype of the inputs -> bound for outs and states, for gradients, for the gradients of gates
BOUNDS: dict[torch.dtype, dict[str, float]] = {
    torch.float64: dict(out=1e-10, grad=1e-10, gate=1e-10),
    torch.float32: dict(out=1e-5, grad=1e-5, gate=1e-5),
    torch.bfloat16: dict(out=0.005, grad=0.008, gate=0.02),
    torch.float16: dict(out=0.005, grad=0.008, gate=0.02),
}


@dataclass
class Run:
    """What a call gave: outs, final states and gradients by name; `start`: the states it was given."""

    outs: dict[str, Tensor] = field(default_factory=dict)
    states: dict[str, Tensor] = field(default_factory=dict)
    grads: dict[str, Tensor] = field(default_factory=dict)
    start: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Finding:
    """One value compared. `kind`: "out" (states too), "grad" or "gate"."""

    name: str
    kind: str
    error: float
    bound: float

    @property
    def ok(self) -> bool:
        return self.error <= self.bound

    def __str__(self) -> str:
        return f"{self.name}: {self.error:.2e} {'≤' if self.ok else '>'} {self.bound:.1e}"


def rms(x: Tensor) -> float:
    return 0.0 if not x.numel() else float(x.abs().to(torch.float64).square().mean().sqrt())


def ratio(got: Tensor, want: Tensor, floor: float = 0.0) -> float:
    """RMS(got - want) / max(RMS(want), floor); inf where one is finite and the other is not."""
    if got.shape != want.shape:
        raise ValueError(f"shapes differ: {list(got.shape)} and {list(want.shape)}")
    wide = torch.complex128 if got.is_complex() or want.is_complex() else torch.float64
    got, want = got.detach().to(wide).cpu(), want.detach().to(wide).cpu()
    finite = torch.isfinite(want)
    if not torch.equal(finite, torch.isfinite(got)) or not torch.equal(got[~finite], want[~finite]):
        return math.inf
    error, size = rms((got - want)[finite]), max(rms(want[finite]), floor)
    return 0.0 if error == 0 else math.inf if size == 0 else error / size


def run(mixer: Any, tensors: Mapping[str, Tensor], *, backend: str = "reference", seed: int = 0,
        initial_state: Mapping[str, Tensor] | None = None, grads: bool = True, wide: bool = False,
        state_cotangents: bool = True, **options: Any) -> Run:
    """Call `mixer`, then pull random cotangents of its outs and final states back to all inputs.

    Args:
        tensors: ins and params by name (consts too, as numbers).
        wide: inputs are turned into fp64 first, so that nothing is rounded.
        state_cotangents: whether gradients flow from the final states too.
        options: of the call (cu_seqlens, mask, reverse, consts).
    """
    leaves = {n: _leaf(x, wide, grads) for n, x in tensors.items()}
    start = {n: _leaf(x, wide, grads) for n, x in initial_state.items()} if initial_state else None
    o, state = mixer(**leaves, initial_state=start, output_final_state=True, backend=backend, **options)
    names = [d.name for d in mixer.declared.outs]
    outs = dict(zip(names, [o] if isinstance(o, Tensor) else list(o), strict=True))
    found = Run({n: x.detach() for n, x in outs.items()}, {n: x.detach() for n, x in state.items()},
                start={n: x.detach() for n, x in (start or {}).items()})
    if not grads:
        return found
    wanted = leaves | {f"{n}0": x for n, x in (start or {}).items()}
    wanted = {n: x for n, x in wanted.items() if isinstance(x, Tensor) and x.requires_grad}
    roots = outs | state if state_cotangents else outs
    ends = [(x, f"d{n}") for n, x in roots.items() if x.requires_grad]
    pulled = torch.autograd.grad([x for x, _ in ends], list(wanted.values()),
                                 [cotangent(x, seed, n) for x, n in ends], allow_unused=True) if ends else ()
    for (name, leaf), g in zip(wanted.items(), pulled, strict=bool(ends)):
        found.grads[name] = torch.zeros_like(leaf) if g is None else g
    return found


def _leaf(x: Any, wide: bool, grads: bool) -> Any:
    if not isinstance(x, Tensor):
        return x
    x, smooth = x.detach(), x.is_floating_point() or x.is_complex()
    if wide and smooth:
        x = x.to(torch.complex128 if x.is_complex() else torch.float64)
    return x.clone().requires_grad_(grads and smooth)


def cotangent(x: Tensor, seed: int, name: str) -> Tensor:
    """Rounded to the half dtype, so that every run of a comparison is given the same numbers."""
    shape = list(x.shape)
    c = normal(shape, seed, name).to(torch.bfloat16).to(torch.float32)
    if x.is_complex():
        return torch.complex(c, normal(shape, seed, name + "*").to(torch.bfloat16).float()).to(x)
    return c.to(x)


class Plain:
    """A mixer whose calls run its step token by token in the call's own dtype: the error of doing it plainly."""

    def __init__(self, mixer: Any):
        self.mixer, self.declared = mixer, mixer.declared

    def __call__(self, **given: Any) -> tuple[Any, dict[str, Tensor]]:
        options = {n: given.pop(n) for n in list(given) if n in arguments.OPTIONS}
        call = arguments.bind(self.mixer, (), given, options)
        outs, states = sequential.run(call)
        return self.mixer._outs(outs, call), self.mixer._states(states, call)


def judge(program: Any, got: Run, want: Run, dtype: torch.dtype, plain: Callable[[], Run] | None = None
          ) -> list[Finding]:
    """Every value of `got` against `want`.

    Args:
        program: the step, for which inputs are gates.
        dtype: the narrowest dtype of the inputs.
        plain: another run of the step, as far from `want` as rounding takes it: token by token in fp32, or in fp64
            on inputs moved by a rounding. Asked for only if a bound is passed, which becomes four times its error."""
    kinds = {d.name: "gate" if is_gate(d) else "grad" for d in (*program.ins, *program.params)}
    floor = FLOOR * max((rms(g[torch.isfinite(g)]) for g in want.grads.values()), default=0.0)
    items = [(n, "out", n, "outs", 0.0) for n in want.outs]
    left = {n: FLOOR * rms(x) for n, x in want.start.items()}  # a state that was erased is not judged by its rounding
    items += [(f"final {n}", "out", n, "states", left.get(n, 0.0)) for n in want.states]
    items += [(f"d{n}", kinds.get(n, "grad"), n, "grads", floor) for n in want.grads]
    loop: Run | None = None
    found = []
    for label, kind, name, where, least in items:
        right = getattr(want, where)[name]
        mine = getattr(got, where).get(name)
        least = max(least, TINY)  # where the truth is exactly 0, rounding is held against rounding
        error = math.inf if mine is None else ratio(mine, right, least)
        bound = BOUNDS[dtype][kind]
        if error > bound and dtype in (torch.float32, torch.float64) and plain is not None and error < math.inf:
            loop = loop or plain()
            bound = max(bound, 4 * ratio(getattr(loop, where)[name], right, least))
        found.append(Finding(label, kind, error, bound))
    return found
