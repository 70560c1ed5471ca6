"""How the tokens of a call become segments: [M, C, ...] tensors of consecutive chunks, and back.

    sequences of 3, 1 and 2 chunks:   a0 c0 b0 | a1 c1 | a2        (chunk by chunk, longest sequence first)

Within a chunk's place the sequences stand by falling length, so that the loop over chunks works on a
contiguous slice of those that still run.  M counts (chunk, sequence, head) triples in this order.
A *band* is a group of sequences run from start to end, so that one chunk of all its sequences fits the cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch

from mixc.codegen.torch_prelude import once_made
from mixc.runtime.rows import Ranked, Rows, running_counts

Tensor = torch.Tensor


@dataclass
class Block:
    """One segment: chunks `first` .. `first + len(counts) - 1` of a band; `counts`: sequences in each."""

    H: int
    C: int
    first: int
    counts: list[int]
    after: int  # how many of the band's sequences go on behind the last chunk

    partial = False
    viewable = False  # do its rows lie in the call's tensors as they do in a segment?

    @cached_property
    def N(self) -> int:
        return sum(self.counts)

    @cached_property
    def M(self) -> int:
        return self.N * self.H

    @cached_property
    def steps(self) -> list[int]:
        return [n * self.H for n in self.counts]

    @cached_property
    def uniform(self) -> bool:
        """Has every chunk as many sequences, and do all of them or none go on?"""
        return len(set(self.counts)) == 1 and self.after in (0, self.counts[0])

    def joined(self, others: list[Block]) -> Block:
        """This block and those behind it as one."""
        raise NotImplementedError

    def source(self, x: Tensor) -> Tensor:
        """[B, T, G, ...] -> [n, b, G, C, ...], a view if the rows allow; n * b = N."""
        raise NotImplementedError

    def load(self, x: Tensor, out: Tensor, views: dict[Any, Tensor]) -> None:
        """out [M, C, ...] from x [B, T, G, ...], heads repeated.  `views`: what is kept of `out` for the next time."""
        y, G = self.source(x), x.shape[2]
        to = views.get(G)
        if to is None:
            n, b, _, *row = y.shape
            to = views[G] = out.view(n, b, *([G] if G == self.H else [G, self.H // G]), *row)
        to.copy_(y if G == self.H else y.unsqueeze(3))

    def view(self, x: Tensor) -> Tensor:
        """[M, C, ...] of x [B, T, 1, ...], where `viewable`."""
        raise NotImplementedError

    def store(self, y: Tensor, out: Tensor) -> None:
        """out [B, T, G, ...] from y [M, C, ...], heads of a group summed."""
        raise NotImplementedError

    def grouped(self, y: Tensor, lead: tuple[int, ...], G: int) -> Tensor:
        """[M, C, ...] -> [*lead, G, C, ...]"""
        if self.H == G:
            return y.view(*lead, G, *y.shape[1:])
        return y.view(*lead, G, self.H // G, *y.shape[1:]).sum(len(lead) + 1)


@dataclass
class DenseBlock(Block):
    """Whole chunks of sequences low .. high - 1 of a dense batch: nothing is gathered."""

    low: int = 0
    high: int = 0
    lone: bool = False  # is it one chunk, and the whole call?

    def joined(self, others: list[Block]) -> Block:
        counts = [n for b in (self, *others) for n in b.counts]
        return DenseBlock(self.H, self.C, self.first, counts, [self, *others][-1].after, self.low, self.high)

    @property
    def viewable(self) -> bool:  # type: ignore[override]
        return self.H == 1 and self.high == self.low + 1

    def view(self, x: Tensor) -> Tensor:
        return self.source(x)[:, 0, 0]

    def source(self, x: Tensor) -> Tensor:
        (_, _, G, *row), (sequence, token, head, *inner) = x.shape, x.stride()
        at = x.storage_offset() + self.low * sequence + self.first * self.C * token
        return x.as_strided((len(self.counts), self.high - self.low, G, self.C, *row),
                            (self.C * token, sequence, head, token, *inner), at)

    def load(self, x: Tensor, out: Tensor, views: dict[Any, Tensor]) -> None:
        if not self.lone:
            super().load(x, out, views)
            return
        G = x.shape[2]
        to = views.get(G)
        if to is None:
            to = out.view(-1, *([G] if G == self.H else [G, self.H // G]), *out.shape[1:])
            to = views[G] = to.movedim(-out.ndim + 1, 1)
        to.copy_(x if G == self.H else x.unsqueeze(3))

    def store(self, y: Tensor, out: Tensor) -> None:
        if self.lone:
            out.copy_(self._turned(y, out.shape[2]))
            return
        lead = (len(self.counts), self.high - self.low)
        self.source(out).copy_(self.grouped(y, lead, out.shape[2]))

    def _turned(self, y: Tensor, G: int) -> Tensor:
        """[B, C, G, ...] of [B * H, C, ...]: a view where nothing is summed."""
        def turned() -> Tensor:
            return self.grouped(y, (self.high,), G).transpose(1, 2)
        return once_made(y, ("turned", G), turned) if G == self.H else turned()


@dataclass
class GatheredBlock(Block):
    """Chunks of any rows. `index` int64 [N, C]: the flat row of each, the last token's behind the end."""

    index: Tensor = None  # type: ignore[assignment]
    rows_live: Tensor = None  # type: ignore[assignment]  # bool [N, C]

    def __post_init__(self) -> None:
        self.partial = not bool(self.rows_live.all())

    def joined(self, others: list[Block]) -> Block:
        every = [self, *others]
        return GatheredBlock(self.H, self.C, self.first, [n for b in every for n in b.counts], every[-1].after,
                             torch.cat([b.index for b in every]),  # type: ignore[attr-defined]
                             torch.cat([b.rows_live for b in every]))  # type: ignore[attr-defined]

    @cached_property
    def live(self) -> Tensor:
        """bool [M, C]"""
        return self.rows_live.repeat_interleave(self.H, 0)

    @cached_property
    def _places(self) -> tuple[Tensor, Tensor]:
        """The live rows of a segment, and where they go."""
        places = self.rows_live.reshape(-1).nonzero().squeeze(1)
        return places, self.index.reshape(-1).index_select(0, places)

    def source(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, *x.shape[2:]).index_select(0, self.index.reshape(-1))
        return rows.view(1, self.N, self.C, *x.shape[2:]).transpose(2, 3)

    def store(self, y: Tensor, out: Tensor) -> None:
        places, to = self._places
        rows = self.grouped(y, (self.N,), out.shape[2]).transpose(1, 2).flatten(0, 1)
        out.view(-1, *out.shape[2:]).index_copy_(0, to, rows.index_select(0, places).to(out.dtype))


@dataclass
class Group:
    """Segments behind each other, all with or all without dead rows, and `whole`, all of them as one."""

    whole: Block
    blocks: list[Block]


def groups(blocks: list[Block], most: int = 16) -> list[Group]:
    found: list[list[Block]] = []
    for b in blocks:
        if found and found[-1][0].partial == b.partial and type(found[-1][0]) is type(b) and len(found[-1]) < most:
            found[-1].append(b)
        else:
            found.append([b])
    return [Group(bs[0].joined(bs[1:]) if len(bs) > 1 else bs[0], bs) for bs in found]


@dataclass
class Band:
    """Sequences run together, by falling length. `ranks`: their places among all sequences so sorted."""

    low: int
    high: int
    blocks: list[Block]

    @cached_property
    def groups(self) -> list[Group]:
        return groups(self.blocks)

    @cached_property
    def even(self) -> bool:
        """Has every chunk all of its sequences?"""
        return all(b.uniform and b.counts[0] == self.high - self.low for b in self.blocks) and bool(self.blocks)

    @cached_property
    def rows(self) -> tuple[int, int]:
        """Of states: one for every triple, and of the largest block."""
        return sum(b.M for b in self.blocks), max((b.M for b in self.blocks), default=0)

    @cached_property
    def running(self) -> int:
        """How many of them have a token."""
        return self.blocks[0].counts[0] if self.blocks else 0


class Layout(Ranked):
    """The bands of a call.

    Attributes:
        ranked: int64 [N], sequences by falling length; None: as they are.
        rows: how the call's tensors are to be gathered first (dense calls run backwards).
    """

    def __init__(self, rows: Rows, H: int, C: int, triple: int, device: torch.device, segment: int, band: int):
        """triple: bytes of one [C, ...] tensor of the largest kind; segment, band: bytes a segment or one
        chunk of a band may have of it."""
        self.rows, self.H, self.C, self.device = rows, H, C, device
        self.chunks = max(1, segment // triple)  # triples in a segment
        self.width = max(1, band // (triple * H))  # sequences in a band
        self.bands = (_dense(rows.B, rows.T, H, C, self.width, self.chunks, device) if rows.dense else self._ragged())

    # ------------------------------------------------------------ ragged
    def _ragged(self) -> list[Band]:
        spans = self.rows.sequences()
        ranked = sorted(range(len(spans)), key=lambda n: -spans[n][1])
        self.ranked = torch.tensor(ranked, dtype=torch.int64, device=self.device)
        bands = []
        for low in range(0, len(ranked), self.width):
            high = min(low + self.width, len(ranked))
            mine = [spans[n] for n in ranked[low:high]]
            bands.append(Band(low, high, self._blocks(mine)))
        return bands

    def _blocks(self, spans: list[tuple[int, int]]) -> list[Block]:
        C, H = self.C, self.H
        counts = running_counts([-(-length // C) for _, length in spans])
        blocks: list[Block] = []
        first = 0
        while first < len(counts):
            stop, triples = first, 0
            while stop < len(counts) and (stop == first or triples + counts[stop] * H <= self.chunks):
                triples += counts[stop] * H
                stop += 1
            after = counts[stop] if stop < len(counts) else 0
            blocks.append(GatheredBlock(H, C, first, counts[first:stop], after,
                                        *self._index(spans, counts[first:stop], first)))
            first = stop
        return blocks

    def _index(self, spans: list[tuple[int, int]], counts: list[int], first: int) -> tuple[Tensor, Tensor]:
        pairs = torch.tensor([(spans[i][0], spans[i][1], (first + j) * self.C)
                              for j, n in enumerate(counts) for i in range(n)], dtype=torch.int64, device=self.device)
        start, length, at = pairs.unbind(1)
        row = at.unsqueeze(1) + torch.arange(self.C, device=self.device)
        live = row < length.unsqueeze(1)
        index = start.unsqueeze(1) + torch.minimum(row, length.unsqueeze(1) - 1)
        return (index if self.rows.order is None else self.rows.order[index]), live

    # ------------------------------------------------------------ tensors of a call
    def gather(self, x: Tensor) -> Tensor:
        """The tensor that blocks load from."""
        return self.rows.gather(x) if self.rows.dense else x

    def scatter(self, x: Tensor) -> Tensor:
        """What blocks stored, in the order of the call."""
        return self.rows.scatter(x) if self.rows.dense else x


# ---------------------------------------------------------------- dense
@lru_cache(16)
def _dense(B: int, T: int, H: int, C: int, width: int, chunks: int, device: torch.device) -> list[Band]:
    """The bands of a dense call: a short one would spend more on them than on its program."""
    whole, tail = divmod(T, C)
    bands = []
    for low in range(0, B, width):
        high = min(low + width, B)
        n, blocks = high - low, list[Block]()
        per = max(1, chunks // (n * H))
        for first in range(0, whole, per):
            count = min(per, whole - first)
            last = first + count == whole and not tail
            blocks.append(DenseBlock(H, C, first, [n] * count, 0 if last else n, low, high, lone=T == C and n == B))
        if tail:
            with torch.inference_mode(False):  # they are kept, for calls in any mode
                blocks.append(_tail(T, H, C, low, high, whole, tail, device))
        bands.append(Band(low, high, blocks))
    return bands


def _tail(T: int, H: int, C: int, low: int, high: int, chunk: int, tail: int, device: torch.device) -> Block:
    place = torch.arange(C, device=device)
    row = chunk * C + place.clamp(max=tail - 1)
    index = torch.arange(low, high, device=device).unsqueeze(1) * T + row
    live = (place < tail).expand(high - low, -1)
    return GatheredBlock(H, C, chunk, [high - low], 0, index, live)
