"""Products of all tokens with matrices of params, as text in the emitted modules of specs that have some."""

PRODUCTS = '''

def widened(x, H):
    """x as what is computed with: in fp32, of all heads or of one."""
    x = x.float()
    return x if x.shape[2] in (1, H) else x.repeat_interleave(H // x.shape[2], 2)


def fresh(*shape, dtype, seqs, device):
    """Room for rows that a product over all tokens reads: 0 where none is of a sequence."""
    return (torch.zeros if seqs.ragged else torch.empty)(shape, dtype=dtype, device=device)


def in_fp32(a, b):
    """a @ b of matrices, or of as many of them, accumulated and kept in fp32."""
    if a.dtype == torch.float32 or not a.is_cuda or torch.version.hip:
        return a.float() @ b.float()
    return (torch.mm if a.ndim == 2 else torch.bmm)(a, b, out_dtype=torch.float32)


def by_heads(x, H):
    """x [B, T, G, ..., D] as matrices, one a head."""
    return heads_of(x.movedim(2, 0).reshape(x.shape[2], -1, x.shape[-1]), H)


def for_all_heads(x, H, *counts):
    """x [B, T, G, ...] of a kernel whose tensors have these head counts: of H heads, if none of them has."""
    return x if H in counts else x.repeat_interleave(H // x.shape[2], 2)


class Projected(torch.autograd.Function):
    """y [B, T, H, ..., N] in fp32: rows x [B, T, G, ..., D] times a matrix w [F, N, D] of their head, the operands rounded
    to dtype; H is the larger of G and F, which it is a multiple of."""

    @staticmethod
    def forward(ctx, x, w, dtype):
        ctx.save_for_backward(x, w)
        ctx.dtype = dtype
        (B, T, G, *rows, D), (F, N, _) = x.shape, w.shape
        with torch.autocast(x.device.type, enabled=False):
            x, w = x.to(dtype), w.to(dtype)
            if F == 1:
                return in_fp32(x.reshape(-1, D), w[0].mT).view(B, T, G, *rows, N)
            if G == 1 and not rows:
                return in_fp32(x.reshape(-1, D), w.reshape(-1, D).mT).view(B, T, F, N)
            H = max(G, F)
            return in_fp32(by_heads(x, H), heads_of(w, H).mT).view(H, B, T, *rows, N).movedim(0, 2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        x, w = ctx.saved_tensors
        (*lead, D), (F, N, _), dtype = x.shape, w.shape, ctx.dtype
        with torch.autocast(x.device.type, enabled=False):
            dy, rows, matrix = dy.to(dtype), x.to(dtype), w.to(dtype)
            if F == 1 or (lead[2] == 1 and len(lead) == 3):
                dy, rows, matrix = dy.reshape(-1, F * N), rows.reshape(-1, D), matrix.reshape(-1, D)
                dx, dw = (in_fp32(dy, matrix) if ctx.needs_input_grad[0] else None), in_fp32(dy.mT, rows)
                return None if dx is None else dx.view(x.shape).to(x.dtype), dw.view(w.shape).to(w.dtype), None
            H = max(lead[2], F)
            dy, rows, matrix = by_heads(dy, H), by_heads(rows, H), heads_of(matrix, H)
            dx = in_fp32(dy, matrix).view(H, *lead[:2], *lead[3:], D).movedim(0, 2)
            return over_group(dx, x, 2), over_group(in_fp32(dy.mT, rows), w, 0), None


def projected(x, w, dtype):
    """`Projected`, where neither head count need be a multiple of the other."""
    G, F = x.shape[2], w.shape[0]
    if max(G, F) % min(G, F):
        x, w = x.repeat_interleave(F, 2), heads_of(w, G * F)
    return Projected.apply(x, w, dtype)
'''
