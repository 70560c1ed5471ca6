"""Gradients of rows that later rows have read."""

import torch
import triton
import triton.language as tl


@triton.jit(do_not_specialize=["rows", "T", "a", "b", "c"])
def add_later(out_ptr, a_ptr, b_ptr, c_ptr, left_ptr, rows, T, a, b, c,
              F: tl.constexpr, SIGN: tl.constexpr, RAGGED: tl.constexpr, R: tl.constexpr, BF: tl.constexpr):
    """out [rows, F]: each row, and of the tensors a, b, c that of as many tokens later, where its sequence has one.
    left [rows]: how many tokens of its sequence come behind a row."""
    pid = tl.program_id(0)
    row = pid // tl.cdiv(F, BF) * R + tl.arange(0, R)
    in_F = pid % tl.cdiv(F, BF) * BF + tl.arange(0, BF)
    if RAGGED:
        left = tl.load(left_ptr + row, mask=row < rows, other=-1)
    elif SIGN > 0:
        left = tl.where(row < rows, T - 1 - row % T, -1)
    else:
        left = tl.where(row < rows, row % T, -1)
    here = (row < rows)[:, None] & (in_F < F)[None, :]
    at = row.to(tl.int64)[:, None] * F + in_F[None, :]
    total = tl.load(out_ptr + at, mask=here, other=0.0).to(tl.float32)
    total += tl.load(a_ptr + at + a * SIGN * F, mask=here & (left >= a)[:, None], other=0.0).to(tl.float32)
    total += tl.load(b_ptr + at + b * SIGN * F, mask=here & (left >= b)[:, None], other=0.0).to(tl.float32)
    total += tl.load(c_ptr + at + c * SIGN * F, mask=here & (left >= c)[:, None], other=0.0).to(tl.float32)
    tl.store(out_ptr + at, total, mask=here)


def tokens_left(seqs, rows, device):
    """How many tokens of its sequence come behind each row (-1: it is of none); None: dense."""
    if not seqs.ragged:
        return None
    row = torch.arange(rows, device=device)
    sequence = torch.searchsorted(seqs.starts.contiguous(), row, right=True).sub_(1).clamp_(min=0)
    at, length = row - seqs.starts[sequence], seqs.lengths[sequence]
    behind = length - 1 - at if seqs.sign > 0 else at
    return torch.where((at >= 0) & (at < length), behind, -1).to(torch.int32)


def with_later(grad, seqs, *later):
    """The gradient of rows x [B, T, ...] that have been read at their token, and `back` tokens later: `later` are the
    gradients of these reads, with `back` (0: of another tensor)."""
    later = [(d, back) for d, back in later if back]
    rows, F = grad.shape[0] * grad.shape[1], grad[0, 0].numel() if grad.numel() else 0
    left = tokens_left(seqs, rows, grad.device) if later else None
    for i in range(0, len(later) if F else 0, 3):
        none = (grad, seqs.T)  # further back than there are tokens
        (a, one), (b, two), (c, three) = (later[i:i + 3] + [none, none])[:3]
        R, BF = 16, min(128, triton.next_power_of_2(F))
        add_later[(triton.cdiv(rows, R) * triton.cdiv(F, BF),)](
            grad, a, b, c, left, rows, seqs.T, one, two, three,
            F=F, SIGN=seqs.sign, RAGGED=seqs.ragged, R=R, BF=BF)
    return grad
