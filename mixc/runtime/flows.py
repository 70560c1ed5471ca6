"""States through the segments of a band: where every chunk finds what it receives and leaves what the next one does.

`Even`: every chunk has all sequences of the band, so that places follow each other. `Flow` and `BackFlow`: sequences
end at chunks of their own, and each end is copied when its chunk is done.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from mixc.runtime.segments import Band, Block

Tensor = torch.Tensor
Given = dict[str, Any]  # arguments of a segment's function
Make = Callable[[int], Tensor]  # rows -> a tensor [rows, dims...] of a state


class Even:
    """One state, or (`reverse`) its cotangent from the band's end on."""

    def __init__(self, make: Make, H: int, band: Band, reverse: bool, keep: bool, edge: Tensor | None,
                 received: Tensor | None = None):
        """edge: what goes in, [n, H, dims...]; None: 0.  keep: the places stay (`buffer`).  received: by a reverse one,
        what the forward kept."""
        every, most = band.rows
        self.m, self.keep, self.reverse, self.edge, self.received = band.running * H, keep, reverse, edge, received
        self.buffer, self.at, self.behind = make((every if keep else most) + self.m), 0, every
        self.linked = False

    def places(self, given: Given, name: str, block: Block, whole: bool) -> None:
        """`whole`: as one tensor."""
        M, m, start = block.M, self.m, self.at
        before, behind = self.buffer[start:start + M], self.buffer[start + m:start + m + M]
        lone = m == M
        first, last = (before, behind) if lone else (before[:m], behind[M - m:])
        if self.reverse:
            first, last = (behind, before) if lone else (behind[M - m:], before[:m])
        if not self.linked:
            _enter(first, self.edge)
        self.edge, self.linked = last, self.keep
        self.at += M if self.keep else 0
        both: list[Any] = [before, behind][::-1 if self.reverse else 1]
        if not whole:
            both = [[x] if lone else x.split(m)[::-1 if self.reverse else 1] for x in both]
        if not self.reverse:
            given[name] = before
        else:
            self.behind -= M
            received: Tensor = self.received  # type: ignore[assignment]
            given[name] = received[self.behind:self.behind + M]
            name = "d" + name
            given[name] = behind
        given[name + "_at"], given[name + "_to"] = both

    def advance(self, block: Block) -> None:
        pass

    def end(self, final: Tensor | None) -> None:
        """What the last chunk left goes to [n, H, dims...]."""
        if final is not None:
            _enter(final, self.edge)


def _enter(to: Tensor, edge: Tensor | None) -> None:
    if edge is None:
        to.zero_()
    elif edge.shape == to.shape:
        to.copy_(edge)
    elif edge.ndim > to.ndim:
        to.view(edge.shape).copy_(edge)
    else:
        to.copy_(edge.view(to.shape))


class Flow:
    """One state: `final` [n * H, ...] holds what each sequence begins with, and in the end what it ends with."""

    def __init__(self, make: Make, H: int, band: Band, keep: bool, final: Tensor):
        self.H, self.keep, self.final = H, keep, final
        sizes = [b.M for b in band.blocks]
        most = [max(b.steps) for b in band.blocks]  # what a chunk leaves is as long as what it received
        rows = sum(sizes) + max(most, default=0) if keep else max(map(int.__add__, sizes, most), default=0)
        self.buffer, self.base = make(rows), 0
        first = band.running * H
        self.buffer[:first] = final[:first]

    def places(self, given: Given, name: str, block: Block, whole: bool) -> None:
        done = given[f"{name}_done"] = _done(given, block, whole)
        at, to, offset = [], [], self.base
        counts = [*block.counts[1:], block.after]
        for j, (m, after) in enumerate(zip(block.steps, counts, strict=True)):
            at.append(self.buffer[offset:offset + m])
            to.append(self.buffer[offset + m:offset + 2 * m])
            offset += m
            if after * self.H < m:
                done[j] = _then(done[j], self.final[after * self.H:m], to[j][after * self.H:])
        given |= {f"{name}_at": at, f"{name}_to": to, name: self.buffer[self.base:offset]}

    def advance(self, block: Block) -> None:
        if self.keep:
            self.base += block.M
        elif block.after:
            n = block.after * self.H
            self.buffer[:n] = self.buffer[block.M:block.M + n].clone()

    def end(self, final: Tensor | None) -> None:
        pass


def _done(given: Given, block: Block, whole: bool) -> list[Any]:
    """What is called behind each chunk: by the function's own loop, or by what makes the updates of this state."""
    return [None] * len(block.counts) if whole else given["finish"]  # type: ignore[no-any-return]


def _then(before: Callable[[], None] | None, to: Tensor, value: Tensor) -> Callable[[], None]:
    def finish() -> None:
        if before is not None:
            before()
        to.copy_(value)
    return finish


class BackFlow:
    """The cotangent of one state through a band, from its end; `final` [n * H, ...] holds that of the final
    states, and in the end that of the initial ones.  received: what the forward kept."""

    def __init__(self, make: Make, H: int, band: Band, final: Tensor, received: Tensor):
        self.H, self.final, self.received, self.base = H, final, received, sum(b.M for b in band.blocks)
        self.first = band.running * H
        # what goes to the block before, and what each chunk receives
        self.carry, self.buffer = make(self.first), make(max((b.M for b in band.blocks), default=0))

    def places(self, given: Given, name: str, block: Block, whole: bool) -> None:
        given[f"d{name}_done"] = _done(given, block, whole)
        self.base -= block.M
        given[name], given[f"d{name}"] = self.received[self.base:self.base + block.M], self.buffer[:block.M]
        after, sizes, slots = block.after * self.H, block.steps[::-1], self.buffer[:block.M].split(block.steps)[::-1]
        if slots:
            slots[0][:after] = self.carry[:after]
        for slot, m in zip(slots, sizes, strict=True):
            if after < m:  # sequences that end here
                slot[after:] = self.final[after:m]
                after = m
        to = [x if n == m else x[:m] for x, n, m in zip(slots[1:], sizes[1:], sizes, strict=False)]
        to += [self.carry[:m] for m in sizes[-1:]]
        given |= {f"d{name}_at": slots, f"d{name}_to": to}

    def advance(self, block: Block) -> None:
        pass

    def end(self, final: Tensor | None) -> None:
        self.final[:self.first] = self.carry
