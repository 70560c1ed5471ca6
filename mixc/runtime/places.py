"""What the functions of a segment are given of a block whatever its tensors hold, made once for a shape.

A short call is over in less time than it takes to find its places: they are kept, buffers by thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from mixc.codegen.torch_segment import Segment
from mixc.ir.node import ROW, Node
from mixc.runtime.memory import Frame, Workspace
from mixc.runtime.segments import Block, Group

if TYPE_CHECKING:
    from mixc.runtime.shapes import Shapes

Tensor = torch.Tensor
Wanted = frozenset[str] | None  # the inputs and params whose gradient is asked for; None: a forward


class Load:
    """Rows of an input, or of an out's cotangent: 0 where no token is."""

    def __init__(self, arg: str, node: Node):
        self.arg, self.cot = arg, node.op == "cot"
        self.name = ("d" if self.cot else "") + node.attr("name")

    def __call__(self, block: Block, x: Tensor, place: Tensor, views: dict[Any, Tensor]) -> None:
        block.load(x, place, views)
        if self.cot and block.partial:
            place.mul_(block.live.view(block.M, block.C, *[1] * (place.ndim - 2)))  # type: ignore[attr-defined]


class Part:
    """Blocks of a function that hold as much.

    Attributes:
        fixed: arguments that stay. results: (role, name, shape to take, shape in whole) of what `run` gives, in order.
        loads: what is copied into buffers of `frame`, or lent; `apart`: the buffers are no thread's scratch.
    """

    def __init__(self, shapes: Shapes, s: Segment, block: Block, loads: list[Load], buffers: dict[str, tuple[int, ...]],
                 results: list[tuple[str, str, tuple[str, ...]]], borrows: bool = False, apart: bool = False):
        self.M, self.loads, self.borrows, self.apart = block.M, loads, borrows, apart
        live = {"live": block.live} if s.partial else {}  # type: ignore[attr-defined]
        self.fixed = {"M": block.M, "steps": block.steps, **shapes.numbers(s), **live, **shapes.common}
        done: list[None] = [None] * len(block.counts)
        self.fixed |= {"finish": done, **{f"{'d' * s.program.reverse}{name}_done": done for name in s.carried}}
        self.frame: Frame = (block.M, tuple(buffers.items()))
        self.results = [(role, name, *_whole(shapes, role, name, axes)) for role, name, axes in results]

    def ready(self, work: Workspace) -> Ready:
        """Buffers included: valid until the next is asked for."""
        found: Ready | None = work.ready.get(self)
        if found is None:
            if self.apart:
                with torch.inference_mode(False):  # they are kept, for calls in any mode
                    buffers = {name: torch.empty(self.frame[0], *shape, dtype=work.flat.dtype, device=work.flat.device)
                               for name, shape in self.frame[1]}
            else:
                buffers = work.frame(self.frame)
            loads = [] if self.borrows else [(x, buffers[x.arg], dict[Any, Tensor]()) for x in self.loads]
            found = work.ready[self] = Ready({**self.fixed, **buffers}, loads)
        return found

    def whole(self, y: Tensor, take: list[int] | None, row: tuple[int, ...]) -> Tensor:
        """A result [M, axes...] with all axes of its declaration."""
        if take is not None:
            y = y.reshape(y.shape[0], *[y.shape[i] if i else 1 for i in take])
        whole = (self.M, *row)
        return y if y.shape == whole else y.expand(whole)


@dataclass(frozen=True)
class Ready:
    """given: arguments of a function. loads: how rows get to their buffers."""

    given: dict[str, Any]
    loads: list[tuple[Load, Tensor, dict[Any, Tensor]]]

    def load(self, block: Block, rows: dict[str, Tensor]) -> None:
        for load, place, views in self.loads:
            load(block, rows[load.name], place, views)


def _whole(shapes: Shapes, role: str, name: str, axes: tuple[str, ...]) -> tuple[list[int] | None, tuple[int, ...]]:
    """(the axes of a result in the order of its declaration, 0 for those it lacks; sizes of all; None: as they are)."""
    want = (() if role == "sum" else (ROW,)) + shapes.code.step.decl(name).dims
    return (None if axes == want else [axes.index(n) + 1 if n in axes else 0 for n in want],
            tuple(shapes.sizes[n] for n in want))


class Steps:
    """A group: its functions, `whole` (of what `before` and `after` are given), and `parts`, those of `run`."""

    def __init__(self, shapes: Shapes, group: Group, wanted: Wanted, known: dict[object, Part]):
        self.group, borrows = group, shapes.borrow and group.whole.viewable
        self.s = s = shapes.function(group, wanted, borrows)
        small: dict[str, tuple[int, ...]] = dict.fromkeys(s.small, (shapes.C,))
        few = [Load(name, n) for name, n in s.small.items()]
        inside = [r for r in s.results if r[:2] not in s.direct.values()]
        self.inside = [i for i, r in enumerate(s.results) if r in inside]
        loads = [Load(name, n) for name, n in s.rows.items()]
        buffers = {} if borrows else {name: tuple(shapes.sizes[d] for d in n.dims) for name, n in s.rows.items()}
        buffers |= {n: tuple(shapes.shape[d] for d in shape) for n, shape in s.scratch.items()}

        def part(block: Block, apart: bool) -> Part:
            key = (id(s), apart, id(block) if block.partial else tuple(block.counts))
            if key not in known:
                known[key] = (Part(shapes, s, block, few, small, s.late, apart=True) if apart
                              else Part(shapes, s, block, loads, buffers, inside, borrows))
            return known[key]
        self.whole, self.parts = part(group.whole, True), [part(b, False) for b in group.blocks]
        self.saved = [(group.whole.M, *(shapes.sizes[d] for d in n.dims)) for n in s.saved.values()]
