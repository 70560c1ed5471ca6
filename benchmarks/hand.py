"""Programs written by hand with care: what the derived ones are held against.

Scalar decay in chunks and an LSTM with one product a token, both left to autograd; a vector scan with its backward."""

from __future__ import annotations

from typing import Any

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


class _Scan(torch.autograd.Function):
    """h = f * h + x over [B, T, D] in T / C chunks: first what each leaves, then what each receives, then its rows."""

    @staticmethod
    def forward(ctx: Any, f: Tensor, x: Tensor, C: int) -> Tensor:
        h = torch.empty_like(x)
        F, X, H = (t.unflatten(1, (-1, C)).unbind(2) for t in (f, x, h))
        end, decay = X[0].clone(), F[0].clone()
        for fc, xc in zip(F[1:], X[1:], strict=True):
            torch.addcmul(xc, fc, end, out=end)
            decay.mul_(fc)
        now = starts = _received(end, decay, range(end.shape[1]))
        for fc, xc, out in zip(F, X, H, strict=True):
            now = torch.addcmul(xc, fc, now, out=out)
        ctx.save_for_backward(f, h, starts)
        return h

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        f, h, starts = ctx.saved_tensors
        df, dx, C = torch.empty_like(f), torch.empty_like(f), f.shape[1] // starts.shape[1]
        F, G, DF, DX = (t.unflatten(1, (-1, C)).unbind(2) for t in (f, g, df, dx))
        before = (starts, *h.unflatten(1, (-1, C)).unbind(2)[:-1])
        end, decay = G[-1] * F[-1], F[-1].clone()
        for fc, gc in zip(F[-2::-1], G[-2::-1], strict=True):
            torch.mul(end.add_(gc), fc, out=end)
            decay.mul_(fc)
        carried = _received(end, decay, range(end.shape[1] - 1, -1, -1))
        for fc, gc, dfc, dxc, hc in zip(*(t[::-1] for t in (F, G, DF, DX, before)), strict=True):
            torch.add(gc, carried, out=dxc)
            torch.mul(dxc, hc, out=dfc)
            torch.mul(dxc, fc, out=carried)
        return df, dx, None


def _received(end: Tensor, decay: Tensor, order: range) -> Tensor:
    """[B, chunks, D]: what the chunks receive, going through them in this order."""
    starts, now = torch.empty_like(end), torch.zeros_like(end[:, 0])
    for i in order:
        starts[:, i] = now
        now = torch.addcmul(end[:, i], decay[:, i], now)
    return starts


def vector_scan(g: Tensor, x: Tensor, C: int = 16) -> Tensor:
    """h of h = exp(g) * h + x.  g, x [B, T, 1, D]; T % C == 0."""
    return _Scan.apply(torch.exp(g[:, :, 0]), x[:, :, 0], C)[:, :, None]
