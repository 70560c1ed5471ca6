"""Matrices of a head that a kernel holds for all tokens, or asks for at every token."""

import math

import torch
import triton
import triton.language as tl


@triton.jit
def weights(at, offsets, mask, row_at, LOAD: tl.constexpr):
    """The matrix at an address; without LOAD what was given: the address, or the matrix already. (Where
    registers are short, row_at: no token is before the first, which the compiler does not know, and so it keeps no
    address of every entry from token to token.)"""
    if LOAD:
        found = tl.load(at + tl.minimum(row_at, 0) + offsets, mask=mask, other=0.0)
    else:
        found = at
    return found


@triton.jit
def through(x, at, in_y, has_y, Y_STEP: tl.constexpr, Z_STEP: tl.constexpr, row_at, Z: tl.constexpr, BZ: tl.constexpr,
            FLIPPED: tl.constexpr, HELD: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr, total=None):
    """x [C, Z] @ weights [Z, Y] (+ total): a tile that is held (FLIPPED: [Y, Z]), or an address behind which (z, y) is at
    z * Z_STEP + y * Y_STEP: then 16 KB of them at a time, which come from the L2 at every token."""
    BY: tl.constexpr = in_y.shape[0]
    PART: tl.constexpr = min(BZ, 16384 // (BY * (at.dtype.element_ty.primitive_bitwidth // 8 if not HELD else 1)))
    if HELD:
        if FLIPPED:
            total = dot(x, tl.trans(at), OPERAND, PRECISION, total)
        else:
            total = dot(x, at, OPERAND, PRECISION, total)
    elif PART == BZ:
        z = tl.arange(0, BZ)
        rows = tl.load(at + tl.minimum(row_at, 0) + z[:, None] * Z_STEP + in_y[None, :] * Y_STEP,
                       mask=(z < Z)[:, None] & has_y[None, :], other=0.0)
        total = dot(x, rows, OPERAND, PRECISION, total)
    else:
        if total is None:
            total = tl.zeros([x.shape[0], BY], tl.float32)
        parts = tl.reshape(x, [x.shape[0], BZ // PART, PART])
        which = tl.arange(0, BZ // PART)[None, :, None]
        for part in range(BZ // PART):
            z = part * PART + tl.arange(0, PART)
            rows = tl.load(at + tl.minimum(row_at, 0) + z[:, None] * Z_STEP + in_y[None, :] * Y_STEP,
                           mask=(z < Z)[:, None] & has_y[None, :], other=0.0)
            total = dot(tl.sum(tl.where(which == part, parts, 0.0), 1), rows, OPERAND, PRECISION, total)
    return total


def on_chip(x, *blocks):
    """Bytes that a matrix takes in a program; three-pass TF32 has two parts of each value."""
    return math.prod(blocks) * x.element_size() * (2 if x.dtype == torch.float32 else 1)


def room(device):
    """Bytes of weights that a program may hold; larger ones are read at every token, from the L2."""
    whole = 232448
    if device.type == "cuda":
        whole = getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", whole)
    return whole * 2 // 3
