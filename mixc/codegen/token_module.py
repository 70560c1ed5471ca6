"""The emitted file of a step whose programs have a sequence each, token by token: as `Module`, with token loops for
kernels."""

from __future__ import annotations

import math
from collections.abc import Mapping

from mixc.codegen.config import Config, Tile, padded
from mixc.codegen.kernel import Kernel, safe
from mixc.codegen.module import Module
from mixc.codegen.triton_token import TokenWriter
from mixc.ir.program import Program
from mixc.passes.token_launches import token_launches

SEGMENT = 32  # the states of a segment, of all programs at once, should lie in the L2


class TokenModule(Module):
    """Raises SpecError (MX310) for what has no Triton form.

    Args:
        instead: why the step has no chunk kernels, if it has a chunk program."""

    by_rule = True

    def __init__(self, step: Program, spec: Program, instead: str = ""):
        self.instead = instead
        self._of_loops(step, spec, *token_launches(step), TokenWriter)

    def sizes(self, sizes: Mapping[str, int], operand: int) -> Config:
        """Sizes by rule: at most 4096 values of all that is carried, as far as its dims are divided, and 16 in a thread."""
        def tile(kernel: Kernel) -> Tile:
            blocks = {d: padded(sizes[d]) for d in kernel.launch.split if d in kernel.dims}
            held = [c.dims for c in kernel.launch.carries] + [s.dims for s in kernel.launch.stores if s.kind != "rows"]

            def values() -> int:
                return sum(math.prod(blocks.get(d, padded(sizes[d])) for d in dims) for dims in held)
            while values() > 4096 and max(blocks.values(), default=16) > 16:
                blocks[max(blocks, key=blocks.__getitem__)] //= 2
            return Tile(16, tuple(blocks.items()), min(16, 1 << max(values() // 512 - 1, 0).bit_length()), 1)
        return Config((("fwd", tile(self.kernel("fwd"))), ("bwd", tile(self.kernel("bwd")))), SEGMENT)

    def _held(self, kernel: Kernel) -> list[str]:
        """Do a head's matrices fit into the registers, beside the state?"""
        read = [d for d in self.p.params if len(d.dims) > 1 and safe(d.name) in kernel.loads]
        size = " + ".join(" * ".join("B" + n for n in d.dims) for d in read)
        return [f"HELD={size} <= 8192"] if read else []

    def _gradient_buffers(self, kernel: Kernel) -> list[str]:
        """Also where every program puts the states of a segment aside."""
        lines = super()._gradient_buffers(kernel)
        grid = self._grid(kernel, self._called("bwd"))
        for s in self.starts:
            size = " * ".join([grid, self._segment, *(f"B{d}" for d in self.p.decl(s).dims)])
            lines.append(f"{s}_aside = torch.empty({size}, dtype=torch.float32, device=device)")
        return lines
