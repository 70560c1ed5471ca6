"""A launch of which every segment is a program's own, as the source of a Triton kernel.

It begins with what another launch carried to the segment. Where a segment is one chunk nothing is carried on.
"""

from __future__ import annotations

from mixc.codegen.kernel import KernelWriter, safe
from mixc.codegen.lines import indent
from mixc.ir.launch import Carry, Launch, Store
from mixc.ir.node import Node
from mixc.ir.program import Program


class SegmentWriter(KernelWriter):
    """As `KernelWriter`, for launches that are `alone`."""

    def __init__(self, launch: Launch, turned: str = "", forward: Program | None = None):
        super().__init__(launch, turned, forward)
        self.whole, self.ends = "piece", ()
        self.entering = {c.leaf: c for c in launch.carries if launch.loop == "chunk"}
        self.carry_of = {c.leaf: c for c in launch.carries if launch.loop != "chunk"}

    @property
    def _by_segment(self) -> bool:
        return True

    def _leaf(self, node: Node) -> str:
        if node not in self.entering:
            return super()._leaf(node)
        name = safe(self.entering[node].name)
        self.body.append(f"{name} = {self._entered(self.entering[node])}")
        self.tiles.raw.add(node)
        return name

    def _entered(self, c: Carry) -> str:
        """What was carried to this segment."""
        return self._for_one(self._kept(self.launch.kept(c.name), c.dims), c)

    @property
    def _kept_at(self) -> list[str]:
        return []  # a program has one segment: `_sequence` says which

    # ------------------------------------------------------------ arguments
    def _kept_arguments(self) -> list[str]:
        return [*super()._kept_arguments(), *(self.launch.kept(c.name) for c in self.launch.carries)]

    def _sequence_arguments(self) -> list[str]:
        return ["segment_at", "piece_of"]

    # ------------------------------------------------------------ the whole
    def _sequence(self) -> list[str]:
        return ["piece, head = (pid // H).to(tl.int64), pid % H  # a segment, counted over all sequences",
                "seq = tl.load(piece_of + piece).to(tl.int64) if RAGGED else piece // tl.cdiv(T, SEGMENT)",
                self._place_of, self._first_segment, "kept_at = piece * H + head",
                "entered = (piece - first_segment).to(tl.int32) * SEGMENT  # rows before this segment"]

    def _initial(self, sums: list[Store]) -> list[str]:
        return [*(f"{safe(c.name)} = {self._entered(c)}.to(tl.float32)" for c in self.carry_of.values()), *self._sums(sums)]

    def _loop(self) -> list[str]:
        if self.launch.loop == "chunk":
            return ["if entered < length:  # there is such a segment",
                    *indent(["chunk = entered // C", *self._in_chunk()])]
        at = "chunks - 1 - i" if self.launch.reverse else "i"
        return ["chunks = tl.cdiv(tl.maximum(tl.minimum(length - entered, SEGMENT), 0), C)",
                "for i in tl.range(0, chunks, num_stages=STAGES, disable_licm=True):",
                *indent([f"chunk = entered // C + {at}", *self._in_chunk()])]
