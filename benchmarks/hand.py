"""Scalar decay in chunks, written by hand with care and left to autograd: what the derived program is held against."""

from __future__ import annotations

import torch

Tensor = torch.Tensor


def scalar_decay(q: Tensor, k: Tensor, v: Tensor, g: Tensor, scale: float, C: int = 64) -> Tensor:
    """o [B, T, H, V] of S = exp(g) * S + k * v, o = scale * (q @ S).  q, k [B, T, H, K]; g [B, T, H]; T % C == 0."""
    B, T, H, K = q.shape
    n = T // C

    def heads_first(x: Tensor) -> Tensor:  # [n * B * H, C, D], chunk by chunk: a step of the loop is one slice
        return x.unflatten(1, (n, C)).permute(1, 0, 3, 2, *range(4, x.ndim + 1)).reshape(n * B * H, C, *x.shape[3:])

    q, k, v, g = map(heads_first, (q, k, v, g))
    G = g.cumsum(1)
    mask = torch.ones(C, C, dtype=torch.bool, device=q.device).tril()
    L = torch.exp((G[:, :, None] - G[:, None, :]).masked_fill(~mask, float("-inf")))
    U = torch.bmm((k * torch.exp(G[:, -1:] - G)[:, :, None]).mT, v)
    d = torch.exp(G[:, -1])[:, None, None]
    S = [U.new_zeros(B * H, K, v.shape[-1])]
    for Uj, dj in zip(U.split(B * H), d.split(B * H), strict=True):
        S.append(torch.addcmul(Uj, dj, S[-1]))
    q = q * scale
    o = torch.baddbmm(torch.bmm(q * torch.exp(G)[:, :, None], torch.cat(S[:-1])), torch.bmm(q, k.mT) * L, v)
    return o.view(n, B, H, C, -1).permute(1, 0, 3, 2, 4).reshape(B, T, H, -1)


def lstm_stacked(xi: Tensor, xf: Tensor, xz: Tensor, xo: Tensor, Ri: Tensor, Rf: Tensor, Rz: Tensor, Ro: Tensor
                 ) -> Tensor:
    """An eager LSTM written with care: one product a token for all gates.  x [B, T, H, D]; R [H, D, E] -> x's shape."""
    B, T, H, D = xi.shape
    z = torch.stack((xi, xf, xo, xz), 3).permute(1, 2, 0, 3, 4).reshape(T, H, B, 4 * D)
    R = torch.stack((Ri, Rf, Ro, Rz), 1).reshape(H, 4 * D, D).mT.contiguous()
    h = c = xi.new_zeros(H, B, D)
    outs = []
    for row in z.unbind(0):
        gates = torch.baddbmm(row, h, R)
        i, f, o = torch.sigmoid(gates[..., :3 * D]).chunk(3, -1)
        c = f * c + i * torch.tanh(gates[..., 3 * D:])
        h = o * torch.tanh(c)
        outs.append(h)
    return torch.stack(outs, 2).permute(1, 2, 0, 3)
