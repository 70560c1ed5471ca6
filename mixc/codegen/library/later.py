"""Gradients of rows that later rows have read."""

import torch
import triton
import triton.language as tl


@triton.jit
def tokens_behind(left_ptr, row, rows, T, SIGN: tl.constexpr, RAGGED: tl.constexpr):
    """How many tokens of its sequence come behind each row (-1: it is of none)."""
    if RAGGED:
        return tl.load(left_ptr + row, mask=row < rows, other=-1)
    if SIGN > 0:
        return tl.where(row < rows, T - 1 - row % T, -1)
    return tl.where(row < rows, row % T, -1)


@triton.jit(do_not_specialize=["rows", "T", "a", "b", "c"])
def add_later(out_ptr, a_ptr, b_ptr, c_ptr, left_ptr, rows, T, a, b, c,
              F: tl.constexpr, SIGN: tl.constexpr, RAGGED: tl.constexpr, R: tl.constexpr, BF: tl.constexpr):
    """out [rows, F]: each row, and of the tensors a, b, c that of as many tokens later, where its sequence has one.
    left [rows]: how many tokens of its sequence come behind a row."""
    pid = tl.program_id(0)
    row = pid // tl.cdiv(F, BF) * R + tl.arange(0, R)
    in_F = pid % tl.cdiv(F, BF) * BF + tl.arange(0, BF)
    left = tokens_behind(left_ptr, row, rows, T, SIGN, RAGGED)
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


@triton.jit(do_not_specialize=["rows", "T", "a", "b", "c", "own", "one", "two", "three"])
def add_taps(out_ptr, own_ptr, later_ptr, w_ptr, left_ptr, rows, T, own, one, two, three, a, b, c, w_sh, w_sk, w_se, rep,
             H: tl.constexpr, K: tl.constexpr, SIGN: tl.constexpr, RAGGED: tl.constexpr, GIVEN: tl.constexpr, R: tl.constexpr,
             BK: tl.constexpr):
    """out [rows, H, K]: own, and of `later` the row itself, and those a, b and c tokens later, where the sequence has one,
    times entries of w [G, K] for each: `own` (-1: none), one, two, three."""
    pid = tl.program_id(0)
    head, pid = pid % H, pid // H
    in_K = pid % tl.cdiv(K, BK) * BK + tl.arange(0, BK)
    row = pid // tl.cdiv(K, BK) * R + tl.arange(0, R)
    left = tokens_behind(left_ptr, row, rows, T, SIGN, RAGGED)
    has_K = in_K < K
    here = (row < rows)[:, None] & has_K[None, :]
    at = (row.to(tl.int64)[:, None] * H + head) * K + in_K[None, :]
    w_ptr += head // rep * w_sh
    total = tl.zeros([R, BK], tl.float32)
    if GIVEN:
        total += tl.load(own_ptr + at, mask=here, other=0.0).to(tl.float32)
    has_own = has_K & (own + 0 * in_K >= 0)  # asked of every entry: the interpreter makes no mask of a number
    w = tl.load(w_ptr + in_K * w_sk + own * w_se, mask=has_own, other=0.0).to(tl.float32)
    total += tl.load(later_ptr + at, mask=here & has_own[None, :], other=0.0).to(tl.float32) * w[None, :]
    w = tl.load(w_ptr + in_K * w_sk + one * w_se, mask=has_K, other=0.0).to(tl.float32)
    total += tl.load(later_ptr + at + a * SIGN * H * K, mask=here & (left >= a)[:, None], other=0.0).to(tl.float32) * w[None, :]
    w = tl.load(w_ptr + in_K * w_sk + two * w_se, mask=has_K, other=0.0).to(tl.float32)
    total += tl.load(later_ptr + at + b * SIGN * H * K, mask=here & (left >= b)[:, None], other=0.0).to(tl.float32) * w[None, :]
    w = tl.load(w_ptr + in_K * w_sk + three * w_se, mask=has_K, other=0.0).to(tl.float32)
    total += tl.load(later_ptr + at + c * SIGN * H * K, mask=here & (left >= c)[:, None], other=0.0).to(tl.float32) * w[None, :]
    tl.store(out_ptr + at, total, mask=here)


def tap_of(w, axis, entry, H):
    """An entry of a param [G, ...] for each of H heads, in fp32."""
    return w.select(axis, entry).float().repeat_interleave(H // w.shape[0], 0)


def with_taps(own, seqs, later, w, axis, at_own, *taps):
    """The gradient of rows x [B, T, H, K] that are weighed with entries of a param w [G, K, ...], or along axis 1, at their
    token and `back` tokens later: own (None: 0), and the sum of rows `later` times these entries.

    at_own: the entry at the token itself (None: that is in own). taps: entries, and `back` (0: of another tensor)."""
    taps = [(entry, back) for entry, back in taps if back] or [(0, seqs.T)]
    (B, T, H, K), out = later.shape, torch.empty_like(later)
    rows, R, BK = B * T, 16, min(64, triton.next_power_of_2(K))
    left = tokens_left(seqs, rows, later.device)
    for i in range(0, len(taps) if later.numel() else 0, 3):
        none = (0, seqs.T)  # further back than there are tokens
        (one, a), (two, b), (three, c) = (taps[i:i + 3] + [none, none])[:3]
        add_taps[(triton.cdiv(rows, R) * triton.cdiv(K, BK) * H,)](
            out, own, later, w, left, rows, seqs.T, -1 if at_own is None or i else at_own, one, two, three, a, b, c,
            w.stride(0), w.stride(3 - axis), w.stride(axis), H // w.shape[0],
            H=H, K=K, SIGN=seqs.sign, RAGGED=seqs.ragged, GIVEN=own is not None, R=R, BK=BK)
        own = out
    return out
