"""The options of a call, checked: cu_seqlens, mask and initial states."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from mixc.errors import InputError
from mixc.ir.program import Program
from mixc.runtime.call import counts_tokens, histories

Tensor = torch.Tensor
WHOLE = (torch.int32, torch.int64)


def _dtype(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def dense(name: str, x: Tensor, want: str) -> None:
    if x.is_nested:
        raise InputError(f"`{name}`: expected a dense tensor {want}, got a nested one; sequences lie one after the "
                         "other along T, with `cu_seqlens`")
    if x.layout != torch.strided:
        raise InputError(f"`{name}`: expected a dense tensor {want}, got one of layout "
                         f"{str(x.layout).removeprefix('torch.')}; `.to_dense()` makes one")


def flag(options: dict[str, Any], name: str) -> bool:
    """An option that is on or off; a text or a tensor is none: "no" would be on."""
    x = options.get(name)
    if not (x is None or isinstance(x, (int, np.bool_))):
        raise InputError(f"`{name}`: expected True or False, got {type(x).__name__} {x!r:.60}")
    return bool(x)


def packed_lengths(cu: Any, B: int, T: int, device: torch.device, check: bool) -> None:
    """cu_seqlens: int [N + 1], 0 ... T, not decreasing; values are looked at where that waits for no device."""
    if not isinstance(cu, Tensor):
        raise InputError(f"`cu_seqlens`: expected an int32 or int64 tensor [N + 1], got {type(cu).__name__}")
    if cu.dtype not in WHOLE or cu.ndim != 1 or len(cu) < 1:
        raise InputError(f"`cu_seqlens`: expected int32 or int64 [N + 1], got {_dtype(cu)} {list(cu.shape)}")
    if cu.device != device:
        raise InputError(f"`cu_seqlens`: expected on {device}, as the inputs, got {cu.device}")
    if B != 1:
        raise InputError(f"`cu_seqlens`: expected inputs with B = 1, all sequences along T, got B = {B}")
    if check or (cu.device.type == "cpu" and not torch.compiler.is_compiling()):
        ends = cu.tolist()
        if ends[0] != 0 or ends[-1] != T:
            raise InputError(f"`cu_seqlens`: expected to go from 0 to T = {T}, got {ends[0]} to {ends[-1]}")
        bad = next((i for i in range(1, len(ends)) if ends[i] < ends[i - 1]), None)
        if bad is not None:
            raise InputError(f"`cu_seqlens`: expected values that do not decrease, got {ends[bad - 1]}, {ends[bad]} "
                             f"at {bad - 1}, {bad}")


def token_mask(mask: Any, B: int, T: int, device: torch.device) -> None:
    """mask: bool [B, T]."""
    if not isinstance(mask, Tensor):
        raise InputError(f"`mask`: expected a bool tensor [B, T], got {type(mask).__name__}")
    if mask.dtype != torch.bool or mask.shape != (B, T):
        raise InputError(f"`mask`: expected bool [B, T] = [{B}, {T}], got {_dtype(mask)} {list(mask.shape)}")
    if mask.device != device:
        raise InputError(f"`mask`: expected on {device}, as the inputs, got {mask.device}")


@dataclass
class Start:
    """What a call starts from: given states [N, H, ...], histories [N, n, H, ...] and `pos` int64 [N]."""

    states: dict[str, Tensor] = field(default_factory=dict)
    lags: dict[str, Tensor] = field(default_factory=dict)
    pos: Tensor | None = None


def initial(program: Program, given: Any, sizes: dict[str, int], N: int, H: int, headless: bool,
            device: torch.device, argument: str = "initial_state", rows: str = "B") -> Start:
    """The entries of `initial_state`: a dict by name, or the bare tensor of the only declared state.

    Args:
        argument: what the caller knows it by. rows: what its first axis counts, "B" or "N".
    """
    start = Start()
    if given is None:
        return start
    lags = histories(program, sizes)
    names = [d.name for d in program.states]
    known = [*names, *lags, *(["pos"] if counts_tokens(program) else [])]
    if isinstance(given, Tensor):
        if len(names) != 1:
            raise InputError(f"`{argument}`: expected a dict by name ({', '.join(known) or 'no state'}): "
                             f"{program.name} has {len(names)} states; got one tensor")
        given = {names[0]: given}
    if not isinstance(given, dict):
        raise InputError(f"`{argument}`: expected a dict by name ({', '.join(known)}), got {type(given).__name__}")
    for name, x in given.items():
        if name not in known:
            have = ", ".join(known) or "none"
            raise InputError(f"`{argument}`: {program.name} has no state `{name}`; it has {have}")
        if name == "pos":
            start.pos = _pos(f"{argument}['pos']", x, N, device, rows)
        elif name in names:
            d = program.decl(name)
            x = _state(f"{argument}[{name!r}]", x, (rows, "H"), (N, H), d.dims, sizes, headless, d.kind, device)
            start.states[name] = x
        else:
            node, depth = lags[name]
            start.lags[name] = _state(f"{argument}[{name!r}]", x, (rows, str(depth), "H"), (N, depth, H), node.dims,
                                      sizes, headless, node.kind, device)
    return start


def _state(name: str, x: Any, lead: tuple[str, ...], lengths: tuple[int, ...], dims: tuple[str, ...],
           sizes: dict[str, int], headless: bool, kind: str, device: torch.device) -> Tensor:
    shape = [*lengths, *[sizes[d] for d in dims]]
    words = [*lead, *dims]
    axis = len(lead) - 1  # of the heads
    if headless:
        del shape[axis], words[axis]
    want = f"[{', '.join(words)}] = {shape}"
    if not isinstance(x, Tensor):
        raise InputError(f"`{name}`: expected a tensor {want}, got {type(x).__name__}")
    if not (x.is_floating_point() or (x.is_complex() and kind == "complex")):
        raise InputError(f"`{name}`: expected {kind} {want}, got {_dtype(x)}")
    if list(x.shape) != shape:
        raise InputError(f"`{name}`: expected {want}, got {list(x.shape)}")
    dense(name, x, want)
    if x.device != device:
        raise InputError(f"`{name}`: expected on {device}, as the inputs, got {x.device}")
    return x.unsqueeze(axis) if headless else x


def _pos(name: str, x: Any, N: int, device: torch.device, rows: str) -> Tensor:
    if not isinstance(x, Tensor) or x.dtype not in WHOLE or x.shape != (N,):
        came = f"{_dtype(x)} {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise InputError(f"`{name}`: expected int64 [{rows}] = [{N}], got {came}")
    if x.device != device:
        raise InputError(f"`{name}`: expected on {device}, as the inputs, got {x.device}")
    return x.to(torch.int64)
