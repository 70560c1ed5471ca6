"""A token loop as one Triton kernel: a program has one sequence of a head, and all of the state or a block of it.

The backward goes over segments of tokens from the last: in a first loop it forms the states of a segment again and puts
them aside in memory of its own, in a second it reads them from the end.
"""

from __future__ import annotations

from mixc.codegen.again import CALL
from mixc.codegen.kernel import KernelWriter, safe
from mixc.codegen.lines import indent, plus
from mixc.ir.launch import Launch
from mixc.ir.node import Node
from mixc.ir.program import Program


class TokenWriter(KernelWriter):
    """As `KernelWriter`: what differs is that there are no rows, and where the backward finds the states."""

    def __init__(self, launch: Launch, forward: Program | None = None):
        super().__init__(launch, forward=forward)
        self.tiles.rows = False

    def _load_param(self, node: Node) -> str:
        return self._weights(node, "0")

    # ------------------------------------------------------------ the states of a segment
    def _segment(self) -> str:
        return "segment" if self.launch.reverse else "row_at // SEGMENT"

    def _begins(self) -> str:
        return "row_at % SEGMENT == 0"

    def _aside(self, state: str, at: str) -> str:
        """Addresses where this program's block of a state is put aside, `at` tokens behind the segment's begin."""
        dims = self.tile(self.program.decl(state).dims)
        steps = [" * ".join(self.tiles.block(e) for e in dims[i + 1:]) for i in range(len(dims))]
        inner = [self._axis(dims, d, f"tl.arange(0, {self.tiles.block(d)})") + (f" * {step}" if step else "")
                 for d, step in zip(dims, steps, strict=True)]
        size = " * ".join(self.tiles.block(d) for d in dims) or "1"
        return f"{state}_aside + (tl.program_id(0).to(tl.int64) * SEGMENT + {at}) * ({size}){plus(' + '.join(inner))}"

    def _load_start(self, node: Node) -> str:
        names = {s: safe(s) for s in self.launch.starts}
        self._replay(names, "tl.cast(begin + past, tl.int64) * SIGN", "token")
        for s, name in names.items():
            self.body.append(f"{name} = tl.load({self._aside(s, '(row_at - begin)')})")
            self.tiles.names[self.program.decl(s).leaf()] = name
        return names[node.attr("name")]

    # ------------------------------------------------------------ the whole
    def _kept_arguments(self) -> list[str]:
        aside = [f"{s}_aside" for s in self.launch.starts] if self.launch.reverse else []
        return [*super()._kept_arguments(), *aside]

    def _keeping(self) -> list[str]:
        return [*super()._keeping(), *(["HELD"] if self.weights else [])]

    def _loop(self) -> list[str]:
        row = "row = tl.cast(row_at, tl.int64) * SIGN"
        if not (self.launch.starts or self.launch.keeps):
            at = ["row_at = length - 1 - i"] if self.launch.reverse else ["row_at = i"]
            return ["for i in tl.range(0, length, num_stages=STAGES):", *indent([*at, row, *self.body])]
        if not self.launch.reverse:
            return [self._first_segment, "for row_at in tl.range(0, length, num_stages=STAGES):",
                    *indent([row, *self.body])]
        aside = [f"tl.store({self._aside(s, 'past')}, {safe(s)})" for s in self.launch.starts]
        kept = [f"{safe(s)} = {self._kept(f'{s}_starts', self.program.decl(s).dims)}" for s in self.launch.starts]
        back = ["row_at = begin + some - 1 - i", row, *self.body]
        inner = ["segment = tl.cdiv(length, SEGMENT) - 1 - late", "begin = segment * SEGMENT",
                 "some = tl.minimum(SEGMENT, length - begin)", *self._kept_at, *kept,
                 "for past in tl.range(0, some, num_stages=1):  # the states of the segment again", *indent([*aside, CALL]),
                 "tl.debug_barrier()  # all that was put aside is there",
                 "for i in tl.range(0, some, num_stages=1):", *indent(back),
                 "tl.debug_barrier()"]
        return [self._first_segment, "for late in tl.range(0, tl.cdiv(length, SEGMENT), num_stages=1):",
                *indent(inner)]
