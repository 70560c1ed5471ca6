"""What a call reads of earlier tokens and of positions: in the runtime, and as text in the modules of specs that do."""

from __future__ import annotations

import torch

# mypy: disable-error-code="no-untyped-def"


class Guarded(torch.autograd.Function):
    """f of every entry, with a gradient of 0 wherever the cotangent is exactly 0, the derivative finite or not."""

    @staticmethod
    def forward(ctx, f, *xs):
        ctx.f = f
        ctx.save_for_backward(*xs)
        return f(*xs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, cot):
        xs = ctx.saved_tensors
        with torch.enable_grad():
            wide = [x.detach().expand(cot.shape).requires_grad_(x.dtype != torch.bool) for x in xs]
            smooth = [x for x in wide if x.requires_grad]
            y = ctx.f(*wide)
            none = [None] * len(smooth)  # no gradient goes through
            found = iter(torch.autograd.grad(y, smooth, cot, allow_unused=True) if y.requires_grad else none)
        def kept(x, g):
            return None if g is None else torch.where(cot == 0, 0.0, g).sum_to_size(x.shape)
        return None, *(kept(xs[i], next(found)) if x.requires_grad else None for i, x in enumerate(wide))


class Past:
    """What came before the tokens of a call: earlier values, by name, and how many tokens.

    Values are [B, T, G, ...].  Dense: row n of them is sequence n.  Else they are B * T flat rows, and sequence n has rows
    starts[n] ... starts[n] + lengths[n] - 1.  reverse: the last row of a sequence is its first token.
    initial: by name the last values before the call [N, depth, H, ...], oldest first, and `pos` [N]; others are 0.
    """

    def __init__(self, B, T, H, starts, lengths, reverse, initial, dtype, device):
        self.B, self.T, self.H, self.reverse = B, T, H, reverse
        self.initial, self.dtype, self.device = initial, dtype, device
        self.dense, self.values, self.joined = starts is None and lengths is None, {}, {}
        N = B if starts is None else starts.shape[0]
        self.lengths = torch.full((N,), T, device=device) if lengths is None else lengths.to(torch.int64)
        self.starts = torch.arange(N, device=device) * T if starts is None else starts
        if not self.dense:
            self.row = torch.arange(B * T, device=device)
            self.sequence = torch.searchsorted(self.starts.contiguous(), self.row, right=True) - 1
            at, length = self.row - self.starts[self.sequence], self.lengths[self.sequence]
            self.time = length - 1 - at if reverse else at
            self.live = (at >= 0) & (at < length)

    def position(self):
        """How many tokens of its sequence came before each: fp64 [B or 1, T, 1]."""
        before = self.initial.get("pos")
        if self.dense:
            time = torch.arange(self.T, device=self.device)
            time = (time.flip(0) if self.reverse else time).unsqueeze(0)
            time = time if before is None else time + before.unsqueeze(1)
        else:
            time = (self.time if before is None else self.time + before[self.sequence]).view(self.B, self.T)
        return time.to(torch.float64).unsqueeze(2)

    def rounded(self, x):
        return x.to(torch.promote_types(self.dtype, torch.complex64) if x.is_complex() else self.dtype)

    def wide(self, x):
        """x as what is computed with: in the dtype of states, of all heads or of one."""
        x = self.rounded(x)
        return x if x.shape[2] in (1, self.H) else x.repeat_interleave(self.H // x.shape[2], 2)

    def deaf(self, x):
        """x, its gradient 0 wherever it is infinite."""
        return torch.where(x.isinf(), x.detach(), x) if x.requires_grad else x

    def full(self, x):
        return x.expand(self.B, self.T, *x.shape[2:])

    def follow(self, name, x, depth):
        """From here on x is known by its name, with `depth` values before the first token of each sequence."""
        x, old = self.full(x), self.initial.get(name)
        if old is not None:
            x = x.repeat_interleave(self.H // x.shape[2], 2)
            x = x.to(torch.promote_types(x.dtype, old.dtype))
        self.values[name] = x, old, depth

    def before(self, name):
        """The values before the first token of each sequence [N, depth, ...], oldest first."""
        x, old, depth = self.values[name]
        return x.new_zeros(len(self.starts), depth, *x.shape[2:]) if old is None else old.to(x.dtype)

    def whole(self, name):
        """What is known by a name, and what came before: in the order of rows, or behind the flat rows."""
        if name not in self.joined:
            x, old = self.values[name][0], self.before(name)
            if self.dense:
                self.joined[name] = torch.cat([x, old.flip(1)] if self.reverse else [old, x], 1)
            else:
                flat = x.flatten(0, 1)
                flat = torch.where(self.live.view(-1, *[1] * (flat.ndim - 1)), flat, 0.0)
                self.joined[name] = torch.cat([flat, old.flatten(0, 1)])
        return self.joined[name]

    def ago(self, name, n):
        """The value of n tokens ago: a view, or gathered by sequences; where no token is, a row of nobody else."""
        whole, depth = self.whole(name), self.values[name][-1]
        if self.dense:
            first = n if self.reverse else depth - n
            return whole[:, first:first + self.T]
        behind = len(self.row) + (self.sequence + 1) * depth + self.time - n
        index = torch.where(self.time >= n, self.row + n if self.reverse else self.row - n, behind)
        index = torch.where(self.live, index, self.row)
        return whole.index_select(0, index).unflatten(0, (self.B, self.T))

    def window(self, name, size):
        return torch.stack([self.ago(name, n) for n in range(size)], 3)

    def kept(self):
        """By name the last values [N, depth, H, ...], oldest first, as `initial`."""
        found = {}
        for name, (x, _, depth) in self.values.items():
            if self.dense and self.reverse:
                last = torch.cat([x[:, :depth], self.before(name).flip(1)], 1)[:, :depth].flip(1)
            elif self.dense:
                some = min(self.T, depth)
                last = torch.cat([self.before(name), x[:, self.T - some:]], 1)[:, some:]
            else:
                whole = self.whole(name)
                first = self.lengths - depth
                at = first.unsqueeze(1) + torch.arange(depth, device=self.device)
                row = self.starts.unsqueeze(1) + (self.lengths.unsqueeze(1) - 1 - at if self.reverse else at)
                behind = len(self.row) + torch.arange(1, len(first) + 1, device=self.device).unsqueeze(1) * depth + at
                last = whole.index_select(0, torch.where(at >= 0, row, behind).flatten()).unflatten(0, (len(first), depth))
            if depth:
                found[name] = self.rounded(last).repeat_interleave(self.H // last.shape[2], 2)
        return found

    def counted(self):
        """int64 [N]: tokens up to the end of the call."""
        return self.lengths + self.initial.get("pos", 0)
