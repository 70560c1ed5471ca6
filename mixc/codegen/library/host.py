"""What an emitted module needs on the host: sequences, strides, blocks."""

import os

import torch
import triton
import triton.language as tl


INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

if not INTERPRETED and "disable_licm" not in tl.range.__init__.__code__.co_varnames:  # triton 3.4 does not know it: ignored there
    def known_to_range(self, *bounds, disable_licm=False, init=tl.range.__init__, **options):
        init(self, *bounds, **options)
    tl.range.__init__ = known_to_range


class Sequences:
    """Where the N sequences of a call lie in its rows.

    Dense: row n of [B, T]. Ragged: B is 1 and sequence n has tokens starts[n] ... starts[n] + lengths[n] - 1.
    No value is read on the host: buffers are sized by the bound N + T // rows on the number of pieces."""

    def __init__(self, B, T, starts=None, lengths=None, reverse=False, want_final=True):
        self.ragged, self.T, self.sign = starts is not None, T, -1 if reverse else 1
        self.starts, self.lengths, self.want_final = starts, lengths, want_final
        self.count = B if starts is None else starts.shape[0]

    def pieces(self, rows):
        """An upper bound on the number of pieces of so many rows, and the number of each sequence's first."""
        if not self.ragged:
            return self.count * triton.cdiv(self.T, rows), None
        ends = torch.cumsum(torch.div(self.lengths + (rows - 1), rows, rounding_mode="floor"), 0)
        return self.count + self.T // rows, torch.nn.functional.pad(ends, (1, 0))[:-1]


def block(size, limit=1 << 30):
    """The block of a dim: a power of two, at least 16 as tensor cores want it."""
    return max(16, min(triton.next_power_of_2(size), limit))


def features_packed(x, lead):
    """x with contiguous features behind `lead` axes (any strides are taken before them)."""
    packed, step = True, 1
    for size, stride in zip(reversed(x.shape[lead:]), reversed(x.stride()[lead:])):
        packed, step = packed and (stride == step or size == 1), step * size
    return x if packed else x.contiguous()


def precision(dtype):
    """How products of fp32 operands are formed; half operands are exact anyway."""
    if INTERPRETED:
        return "interpret"
    if torch.version.hip:
        return "ieee"
    matmul = torch.backends.cuda.matmul  # a torch that has the first setting fails on the second where the first was set
    allowed = matmul.fp32_precision == "tf32" if hasattr(matmul, "fp32_precision") else matmul.allow_tf32
    return "tf32" if dtype != torch.float32 or allowed else "tf32x3"


def operand(dtype, *summed):
    """What products round their operands to: TF32 beside the inverse of sums over few entries, whose rounding would not
    average out."""
    if min(summed, default=NARROW) < NARROW:
        return tl.float32
    return {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}[dtype]


def handed_in(dtype, *summed):
    """What rows are handed on in: never in fp16, whose range they may leave, and whole where products take TF32."""
    return torch.float32 if dtype == torch.float16 or operand(dtype, *summed) == tl.float32 else dtype


def registers(warps):
    """All there are for a thread: a compiler that wants more programs at once than they leave room for spills."""
    return {} if torch.version.hip else {"maxnreg": min(255, 2048 // warps)}


def heads_of(x, H):
    """A param [G, ...] for all H heads."""
    return x if x.shape[0] == H else x.repeat_interleave(H // x.shape[0], 0)


@triton.jit(do_not_specialize=["parts", "N"])
def add_parts(parts_ptr, out_ptr, parts, N, BLOCK: tl.constexpr):
    """out [N]: the sum of parts [parts, N], formed in fp32."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for part in range(0, parts):
        total += tl.load(parts_ptr + tl.cast(part, tl.int64) * N + at, mask=at < N, other=0.0)
    tl.store(out_ptr + at, total, mask=at < N)


def merged(parts, dtype=torch.float32):
    """The sum of what the programs of one head found, each over its own block of a dim."""
    if parts.shape[0] == 1:
        return parts[0]
    out = torch.empty(parts.shape[1:], dtype=dtype, device=parts.device)
    if out.numel() > 0:
        add_parts[(triton.cdiv(out.numel(), 1024),)](parts, out, parts.shape[0], out.numel(), BLOCK=1024)
    return out


def over_group(grad, like, axis):
    """A gradient of H heads summed over the heads that share one of the G of `like`."""
    G = like.shape[axis]
    if grad.shape[axis] == G:
        return grad.to(like.dtype)
    shape = (*grad.shape[:axis], G, grad.shape[axis] // G, *grad.shape[axis + 1:])
    return grad.view(shape).sum(axis + 1).to(like.dtype)
