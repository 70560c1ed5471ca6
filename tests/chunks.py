"""A chunk program run as it reads, in torch: the meaning that every pass and backend must keep.

Slow and plain on purpose: one chunk after the other, each evaluated node by node.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from mixc.ir.evaluate import Env, evaluate, heads
from mixc.ir.node import COL, LEVEL, ROW, Node
from mixc.ir.program import Program

Tensors = dict[str, torch.Tensor]


@dataclass
class ChunkRun:
    """What a run leaves: outs [B, T, H, ...] by name, the final states [B, H, ...], and every
    chunk's incoming states (what the backward reads)."""

    outs: Tensors = field(default_factory=dict)
    states: Tensors = field(default_factory=dict)
    starts: list[Tensors] = field(default_factory=list)
    sums: Tensors = field(default_factory=dict)


def _rows(x: torch.Tensor, start: int, C: int) -> torch.Tensor:
    """[B, T, H, ...] -> [B, H, C, ...]; rows behind the end repeat the last one."""
    index = torch.arange(start, start + C).clamp(max=x.shape[1] - 1)
    return x[:, index].movedim(2, 1)


def _leaf(program: Program, tensors: Tensors, carried: Tensors, cot_states: Tensors, consts: dict[str, float],
          start: int, C: int, H: int, env: list[Env]) -> Callable[[Node], torch.Tensor]:
    def leaf(node: Node) -> torch.Tensor:
        name = node.attr("name")
        if node.op == "in":
            return _rows(heads(tensors[name], H, 2), start, C)
        if node.op == "cot" and not name.endswith("'"):
            rows = _rows(tensors["cot:" + name], start, C)
            assert env[0].live is not None
            live = env[0].live.reshape(1, 1, C, *[1] * (rows.ndim - 3))
            return torch.where(live, rows, torch.zeros_like(rows))
        if node.op == "cot":
            return cot_states[name[:-1]]
        if node.op == "param":
            return heads(tensors[name], H, 0).unsqueeze(0)
        if node.op == "const":
            return torch.full((1, 1), consts[name], dtype=env[0].dtype)
        assert node.op == "state", node
        return carried[name]
    return leaf


def run_chunks(program: Program, tensors: Tensors, states: Tensors, sizes: dict[str, int], C: int, *,
               consts: dict[str, float] | None = None, starts: list[Tensors] | None = None,
               dtype: torch.dtype = torch.float64) -> ChunkRun:
    """Run a chunk program over T tokens.

    Args:
        tensors: ins [B, T, G, ...] and params [G, ...] by name; for a backward also the cotangents of
            outs under "cot:NAME", [B, T, H, ...].
        states: initial states [B, H, ...] (backward: the cotangents of the final ones).
        starts: for a backward, the incoming states of every chunk, from the forward's run.
    """
    T = next(t.shape[1] for d in program.ins for t in [tensors[d.name]])
    B, H = next(iter(states.values())).shape[:2] if states else (tensors[program.ins[0].name].shape[0],
                                                                 max(tensors[d.name].shape[2] for d in program.ins))
    result, carried = ChunkRun(states=dict(states)), dict(states)
    pieces: dict[str, list[torch.Tensor]] = {r.name: [] for r in program.results if r.role in ("out", "grad")}
    chunks = list(range(0, T, C))
    for n, start in reversed(list(enumerate(chunks))) if program.reverse else enumerate(chunks):
        box: list[Env] = []
        incoming = starts[n] if starts is not None else carried
        leaf = _leaf(program, tensors, incoming, carried, consts or {}, start, C, H, box)
        rows = {ROW: C, COL: C, "_u": C, LEVEL: max(1, (C - 1).bit_length())}
        box.append(Env(leaf, {**program.sized(sizes), **rows}, dtype=dtype,
                       live=(torch.arange(start, start + C) < T).reshape(1, 1, C)))
        result.starts.append(dict(carried))
        values = evaluate(program.values(), box[0])
        for r, v in zip(program.results, values, strict=True):
            dims = next((d.dims for d in program.decls if d.name == r.name), ())
            want = (ROW, *dims) if r.role in ("out", "grad") else dims
            v = v.permute(0, 1, *[2 + r.value.dims.index(d) for d in want])
            v = v.expand(B, H, *v.shape[2:])
            if r.role == "next":
                carried[r.name] = v
            elif r.role == "sum":
                result.sums[r.name] = result.sums.get(r.name, torch.zeros_like(v)) + v
            else:
                pieces[r.name].append(v.movedim(1, 2)[:, :T - start])
    for name, found in pieces.items():
        result.outs[name] = torch.cat(found[::-1] if program.reverse else found, 1) if found else torch.zeros(0)
    result.states = carried
    return result
