"""Calls of a shape seen before: what checking found about the first holds for the next.

A call without `cu_seqlens`, `mask` and `check`, whose tensors have the shapes, dtypes and devices of an earlier one and
whose other arguments are equal, is the same `Call` with other tensors; a decode step is then one straight-line
program (`codegen.step_program`), made once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from mixc.codegen.step_program import step_function
from mixc.runtime.call import Call, counts_tokens, histories
from mixc.runtime.once import all_once

if TYPE_CHECKING:
    from mixc.runtime.mixer import Mixer

Tensor = torch.Tensor
_PLAIN = (int, float, bool, str, type(None))
Stepper = Callable[..., tuple[Tensor, ...]]


def key(args: tuple[Any, ...], options: dict[str, Any], state: Any = None) -> tuple[Any, ...] | None:
    """What a call has but the values of its tensors; None where values must be looked at.  `state`: of a step."""
    try:
        found: list[Any] = []
        for x in args:
            if not isinstance(x, Tensor):
                return None
            found.append((x.shape, x.dtype, x.device, x.layout))
        for name, x in options.items():
            if isinstance(x, Tensor):
                if name in ("cu_seqlens", "mask", "initial_state") or not x.ndim:
                    return None
                found.append((name, x.shape, x.dtype, x.device, x.layout))
            elif isinstance(x, _PLAIN):
                if name == "check" and x:
                    return None
                found.append((name, type(x), x))
            elif name != "initial_state" or not _state_key(found, x):
                return None
        return tuple(found) if state is None or _state_key(found, state) else None
    except RuntimeError:  # a nested tensor has no shape
        return None


def _state_key(found: list[Any], state: Any) -> bool:
    if not isinstance(state, dict):
        return False
    for name, x in state.items():
        if not isinstance(x, Tensor):
            return False
        found.append((name, x.shape, x.dtype, x.device, x.layout))
    return True


class Seen:
    """A call of one shape: how to make the next from its tensors."""

    def __init__(self, mixer: Mixer, call: Call, backend: str, token: bool):
        self.backend, self.token = backend, token
        p = call.program
        tensors: dict[str, Any] = dict(ins={}, params={}, states0={}, lags0={}, pos0=None)
        self.base = {**vars(call), **tensors}
        self.ins, self.params = [d.name for d in p.ins], [d.name for d in p.params]
        self.order = [*self.ins, *self.params]
        self.lags = histories(p, call.sizes)
        self.headless = call.headless
        self.step = _stepper(mixer, call, backend) if token else None

    def tensors(self, args: tuple[Tensor, ...], options: dict[str, Any]) -> list[Tensor]:
        return [*args, *(options[n] for n in self.order[len(args):])]

    def call(self, args: tuple[Tensor, ...], options: dict[str, Any], state: Any) -> Call:
        """The call with these tensors."""
        xs, n = self.tensors(args, options), len(self.ins)
        ins, params = xs[:n], xs[n:]
        if self.token:
            ins = [x.unsqueeze(1) for x in ins]
        if self.headless:
            ins, params = [x.unsqueeze(2) for x in ins], [x.unsqueeze(0) for x in params]
        made = object.__new__(Call)
        made.__dict__.update(self.base, ins=dict(zip(self.ins, ins, strict=True)),
                             params=dict(zip(self.params, params, strict=True)))
        if state:
            made.__dict__.update(states0={}, lags0={})
            for name, x in state.items():
                if name == "pos":
                    made.__dict__["pos0"] = x.to(torch.int64)
                elif name in self.lags:
                    made.lags0[name] = x.unsqueeze(2) if self.headless else x
                else:
                    made.states0[name] = x.unsqueeze(1) if self.headless else x
        return made


def _stepper(mixer: Mixer, call: Call, backend: str) -> Stepper | None:
    """The straight-line program of one token; None where the step looks back, or the backend is the reference."""
    p = call.program
    if backend == "reference" or histories(p, call.sizes) or counts_tokens(p) or len(call.states0) < len(p.states):
        return None
    try:
        plain, recorded = step_function(call, False), step_function(call, True)
    except NotImplementedError:
        return None
    headless, names, n = call.headless, [d.name for d in p.states], len(p.ins)
    out_dtypes = [call.out_dtypes[d.name] for d in p.outs]
    single, count, kind = len(out_dtypes) == 1, len(out_dtypes), call.device.type

    def step(xs: list[Tensor], state: dict[str, Tensor]) -> tuple[Any, dict[str, Tensor]]:
        given = [state[name] for name in names]
        if headless:
            xs = [x.unsqueeze(1) for x in xs[:n]] + [x.unsqueeze(0) for x in xs[n:]]
            given = [x.unsqueeze(1) for x in given]
        run = plain
        if torch.is_grad_enabled():
            run = recorded
            xs, given = all_once(xs, given)
        if torch.is_autocast_enabled(kind):
            with torch.autocast(kind, enabled=False):
                found = run(*xs, *given)
        else:
            found = run(*xs, *given)
        if headless:
            found = tuple(x.squeeze(1) for x in found)
        if single:
            o = found[0] if found[0].dtype is out_dtypes[0] else found[0].to(out_dtypes[0])
            return o, dict(zip(names, found[1:], strict=True))
        outs = [x.to(t) for x, t in zip(found, out_dtypes, strict=False)]
        return mixer._outs_type(*outs), dict(zip(names, found[count:], strict=True))
    return step  # type: ignore[return-value]
