"""Which tokens a call has: dense batches, ragged ones, masked and reversed ones, under one view.

A tensor [B, T, ...] is read as B * T flat rows.  After `gather`, sequence n occupies the rows
starts[n] .. starts[n] + lens[n] - 1 in the order in which its tokens run, whatever the mask, the
direction or the lengths; `scatter` brings results back.  Shapes never depend on values and nothing
here waits for the device, `sequences` excepted.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

Tensor = torch.Tensor


@dataclass(frozen=True)
class Rows:
    """The sequences of a call.

    Attributes:
        B, T: the axes of the call's tensors (B is 1 for a ragged call).
        N: how many sequences there are (B, or len(cu_seqlens) - 1).
        starts: int64 [N], the first flat row of each sequence; None: n * T.
        lens: int64 [N], tokens of each sequence; None: T each.
        order: int64 [B * T], the flat row that `gather` puts at each place; None: as given, or reversed.
        live: bool [B * T], the places that hold a token after `gather`; None: all.
        reverse: a dense call that runs from the last token to the first.
    """

    B: int
    T: int
    N: int
    starts: Tensor | None = None
    lens: Tensor | None = None
    order: Tensor | None = None
    live: Tensor | None = None
    reverse: bool = False

    @property
    def dense(self) -> bool:
        """Every sequence has T tokens, at n * T (after `gather`): kernels need no index work."""
        return self.starts is None and self.lens is None

    @property
    def plain(self) -> bool:
        """`gather` and `scatter` do nothing."""
        return self.order is None and not self.reverse

    def gather(self, x: Tensor) -> Tensor:
        """[B, T, ...] with the tokens of each sequence in the order they run; 0 where none is."""
        if self.order is None:
            return x.flip(1) if self.reverse else x
        return self._alive(x.reshape(self.B * self.T, *x.shape[2:]).index_select(0, self.order)).reshape(x.shape)

    def scatter(self, y: Tensor) -> Tensor:
        """[B, T, ...] in the order of the call; 0 at masked tokens, whatever was written there."""
        if self.order is None:
            return y.flip(1) if self.reverse else y
        x = self._alive(y.reshape(self.B * self.T, *y.shape[2:]))
        back = torch.empty_like(self.order)
        back[self.order] = torch.arange(len(self.order), device=self.order.device)
        return x.index_select(0, back).reshape(y.shape)

    def _alive(self, x: Tensor) -> Tensor:
        """[B * T, ...] with 0 where no token is."""
        if self.live is None:
            return x
        return torch.where(self.live.reshape(-1, *[1] * (x.ndim - 1)), x, x.new_zeros(()))

    def sequences(self) -> list[tuple[int, int]]:
        """(first flat row, tokens) of every sequence, after `gather`.  Waits for the device."""
        starts = [n * self.T for n in range(self.N)] if self.starts is None else self.starts.tolist()
        lens = [self.T] * self.N if self.lens is None else self.lens.tolist()
        return list(zip(starts, lens, strict=True))


def rows(B: int, T: int, *, cu_seqlens: Tensor | None = None, mask: Tensor | None = None,
         reverse: bool = False) -> Rows:
    """The rows of a call (arguments as in the contract, already validated)."""
    if cu_seqlens is None and mask is None:
        return Rows(B, T, B, reverse=reverse)
    device = mask.device if mask is not None else cu_seqlens.device  # type: ignore[union-attr]
    flat = torch.arange(B * T, device=device)
    if cu_seqlens is None:
        N, starts, lens = B, None, None
        sequence = flat // max(T, 1)
        order = sequence * (2 * T) + (T - 1) - flat if reverse else None
    else:
        cu = cu_seqlens.to(torch.int64)
        N, starts, lens = len(cu) - 1, cu[:-1], cu[1:] - cu[:-1]
        sequence = torch.searchsorted(cu[1:].contiguous(), flat, right=True)
        order = (cu[:-1] + cu[1:])[sequence] - 1 - flat if reverse else None
    if mask is None:
        return Rows(B, T, N, starts, lens, order)
    return _masked(Rows(B, T, N, starts, lens, order), mask.reshape(-1), sequence)


def _masked(all_rows: Rows, mask: Tensor, sequence: Tensor) -> Rows:
    """Within each sequence the tokens that count move to its front, in order (a stable sort)."""
    order = all_rows.order
    kept = mask if order is None else mask[order]
    dead_last = torch.argsort(2 * sequence + (~kept).to(torch.int64), stable=True)
    lens = torch.zeros(all_rows.N, dtype=torch.int64, device=mask.device)
    if len(mask):  # every row lies in a sequence, unless there is none
        lens = lens.index_add(0, sequence, kept.to(torch.int64))
    return Rows(all_rows.B, all_rows.T, all_rows.N, all_rows.starts, lens,
                dead_last if order is None else order[dead_last], kept[dead_last])


class Ranked:
    """Sequences by falling length. `ranked`: int64 [N], their places in the call; None: as they are."""

    ranked: Tensor | None = None

    def by_rank(self, x: Tensor) -> Tensor:
        """[N, ...] in the order of the call -> by falling length."""
        return x if self.ranked is None else x.index_select(0, self.ranked)

    def by_call(self, x: Tensor) -> Tensor:
        """[N, ...] by falling length -> in the order of the call."""
        return x if self.ranked is None else torch.empty_like(x).index_copy(0, self.ranked, x)


def running_counts(lens: list[int]) -> list[int]:
    """How many of the lengths (falling) exceed t, for t = 0, 1, ... while any does."""
    counts, n = [], len(lens)
    for t in range(lens[0] if lens else 0):
        while lens[n - 1] <= t:
            n -= 1
        counts.append(n)
    return counts
