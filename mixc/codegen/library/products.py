"""Products of all tokens with params, around the kernels."""

import torch


def widened(x, H):
    """x as what is computed with: in fp32, of all heads or of one."""
    x = x.float()
    return x if x.shape[2] in (1, H) else x.repeat_interleave(H // x.shape[2], 2)


def fresh(*shape, dtype, seqs, device):
    """Room for rows that a product over all tokens reads: 0 where none is of a sequence."""
    return (torch.zeros if seqs.ragged else torch.empty)(shape, dtype=dtype, device=device)


def product(a, b, dtype, out=None):
    """a @ b of matrices, or of as many of them, accumulated in fp32 and left in dtype."""
    if a.dtype == dtype and (a.is_cuda or dtype == torch.float32):
        return torch.matmul(a, b, out=out)
    if a.is_cuda and not torch.version.hip and a.numel() > 0:
        form = torch.mm if a.ndim == 2 else torch.bmm
        return form(a, b, out_dtype=dtype) if out is None else form(a, b, out_dtype=dtype, out=out)
    found = (a.float() @ b.float()).to(dtype)
    return found if out is None else out.copy_(found)


def by_heads(x, H):
    """x [B, T, G, ..., D] as matrices, one a head."""
    return heads_of(x.movedim(2, 0).reshape(x.shape[2], -1, x.shape[-1]), H)


def for_all_heads(x, H, *counts):
    """x [B, T, G, ...] of a kernel whose tensors have these head counts: of H heads, if none of them has."""
    return x if H in counts else x.repeat_interleave(H // x.shape[2], 2)


class Projected(torch.autograd.Function):
    """y [B, T, H, ..., N]: rows x [B, T, G, ..., D] times a matrix w [F, N, D] of their head, the operands rounded to dtype,
    the result to kept; H is the larger of G and F, which it is a multiple of."""

    @staticmethod
    def forward(ctx, x, w, dtype, kept):
        ctx.save_for_backward(x, w)
        ctx.dtype = dtype
        (B, T, G, *rows, D), (F, N, _) = x.shape, w.shape
        with torch.autocast(x.device.type, enabled=False):
            x, w = x.to(dtype), w.to(dtype)
            if F == 1:
                return product(x.reshape(-1, D), w[0].mT, kept).view(B, T, G, *rows, N)
            if G == 1 and not rows:
                return product(x.reshape(-1, D), w.reshape(-1, D).mT, kept).view(B, T, F, N)
            H = max(G, F)
            y = product(by_heads(x, H), heads_of(w, H).mT, kept)
            return y.view(H, B, T, *rows, N).movedim(0, 2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        x, w = ctx.saved_tensors
        (B, T, G, *rows, D), (F, N, _), dtype = x.shape, w.shape, ctx.dtype
        with torch.autocast(x.device.type, enabled=False):
            dy, left, right = dy.to(dtype), x.to(dtype), w.to(dtype)
            if F == 1 or (G == 1 and not rows):
                dy, left, right = dy.reshape(-1, F * N), left.reshape(-1, D), right.reshape(-1, D)
                dx = product(dy, right, x.dtype).view(x.shape) if ctx.needs_input_grad[0] else None
                return dx, product(dy.mT, left, torch.float32).view(w.shape).to(w.dtype), None, None
            H = max(G, F)
            dy, left, right = by_heads(dy, H), by_heads(left, H), heads_of(right, H)
            dw = over_group(product(dy.mT, left, torch.float32), w, 0)
            if rows or G < H:
                dx = product(dy, right, torch.float32).view(H, B, T, *rows, D).movedim(0, 2)
                return over_group(dx, x, 2), dw, None, None
            dx = torch.empty(B * T, H, D, dtype=x.dtype, device=x.device)
            product(dy, right, x.dtype, out=dx.movedim(1, 0))
            return dx.view(x.shape), dw, None, None


def projected(x, w, dtype, kept=torch.float32):
    """`Projected`, where neither head count need be a multiple of the other."""
    G, F = x.shape[2], w.shape[0]
    if max(G, F) % min(G, F):
        x, w = x.repeat_interleave(F, 2), heads_of(w, G * F)
    return Projected.apply(x, w, dtype, kept)
