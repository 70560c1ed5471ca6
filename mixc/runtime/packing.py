"""Sequences of any lengths as one list of tokens, all first tokens first, then all second ones, ...

    sequences of 3, 1 and 2 tokens:   a0 c0 b0 | a1 c1 | a2        (longest sequence first)

Step t of a token loop then reads one contiguous slice, and the sequences that are still running are
the first ones of the batch.  A dense batch is the same with all slices equally long.
"""

from __future__ import annotations

import torch

from mixc.runtime.rows import Ranked, Rows, running_counts

Tensor = torch.Tensor


class Packing(Ranked):
    """The tokens of a call in running order.

    Attributes:
        counts: sequences that run at step t, not increasing; no step without one.
        ranked: int64 [N], the sequences by falling length; None: as they are.
        time, rank: int64 [R], for every token its step, and its sequence's place among `ranked`.
        lens: int64 [N], lengths in ranked order.
    """

    def __init__(self, rows: Rows, device: torch.device):
        self.rows, self.N = rows, rows.N
        self.uniform = rows.dense
        spans = rows.sequences()
        ranked = sorted(range(rows.N), key=lambda n: -spans[n][1])
        lens = [spans[n][1] for n in ranked]
        self.counts = running_counts(lens)
        def long(values: list[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.int64, device=device)

        counts = long(self.counts)
        self.R = sum(self.counts)
        self.lens = long(lens)
        self.time = torch.repeat_interleave(torch.arange(len(self.counts), device=device), counts)
        self.offset = torch.cumsum(counts, 0) - counts
        self.rank = torch.arange(self.R, device=device) - self.offset[self.time]
        self.ranked = None if self.uniform else long(ranked)
        self.source: Tensor | None = None
        if not self.uniform:
            starts = long([spans[n][0] for n in ranked])
            self.source = starts[self.rank] + self.time
            if rows.order is not None:
                self.source = rows.order[self.source]

    def pack(self, x: Tensor) -> Tensor:
        """[B, T, ...] -> [R, ...]."""
        if self.source is not None:
            return x.reshape(-1, *x.shape[2:]).index_select(0, self.source)
        return self.rows.gather(x).transpose(0, 1).reshape(self.R, *x.shape[2:])

    def unpack(self, x: Tensor) -> Tensor:
        """[R, ...] -> [B, T, ...]; 0 at what is no token."""
        B, T = self.rows.B, self.rows.T
        if self.source is not None:
            return x.new_zeros(B * T, *x.shape[1:]).index_copy(0, self.source, x).reshape(B, T, *x.shape[1:])
        return self.rows.scatter(x.reshape(T, B, *x.shape[1:]).transpose(0, 1))

    def shifted(self, n: int, depth: int) -> Tensor:
        """[R]: where the value of n tokens ago stands in cat(tokens [R], history [N * depth])."""
        before = self.time - n
        behind = self.R + self.rank * depth + depth + before
        return torch.where(before >= 0, self.offset[before.clamp(min=0)] + self.rank, behind)

    def last(self, depth: int) -> Tensor:
        """[N, depth]: where the last values of every sequence stand there, oldest first."""
        rank = torch.arange(self.N, device=self.lens.device).unsqueeze(1)
        at = self.lens.unsqueeze(1) - depth + torch.arange(depth, device=self.lens.device)
        if not self.counts:
            return self.R + rank * depth + depth + at
        return torch.where(at >= 0, self.offset[at.clamp(min=0)] + rank, self.R + rank * depth + depth + at)
