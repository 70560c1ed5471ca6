"""A bidirectional Mamba for forecasting series: two calls of one mixer, the second one in reverse.

    python examples/bidirectional.py

Every series is a token sequence of patches; a forward and a reversed scan read it, and the last hidden values give the
next patch.  What is learned is compared with repeating the last season.
"""

from __future__ import annotations

import torch
from torch import nn

import mixc

PATCH, PATCHES, D, N = 8, 24, 32, 8


class Both(nn.Module):
    """[B, T, D] -> [B, T, D]: a selective scan forwards plus one backwards, with weights of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.mamba = mixc.load("mamba1")
        self.into = nn.ModuleList(nn.Linear(D, 2 * D + 2 * N) for _ in range(2))
        self.A = nn.ParameterList(-torch.arange(1.0, N + 1).repeat(1, D, 1) for _ in range(2))
        self.skip = nn.ParameterList(torch.ones(1, D) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = torch.zeros_like(x)
        for reverse, into, A, skip in zip((False, True), self.into, self.A, self.skip, strict=True):
            u, dt, B, C = into(x).unsqueeze(2).split([D, D, N, N], -1)
            dt = nn.functional.softplus(dt - 2)
            found = found + self.mamba(u, dt, B=B, C=C, A=A.clamp(max=0), skip=skip, reverse=reverse)[0].squeeze(2)
        return found


class Forecaster(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.norm = nn.Linear(PATCH, D), Both(), nn.LayerNorm(D)
        self.head = nn.Linear(2 * D, PATCH)

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        """[B, PATCHES * PATCH] -> the next PATCH values."""
        x = self.embed(y.unflatten(1, (PATCHES, PATCH)))
        x = self.norm(x + self.mix(x))
        return self.head(torch.cat([x[:, 0], x[:, -1]], -1))


def batch(B: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two seasons, whose speeds and phases differ from series to series, and noise."""
    t, speed, phase = torch.arange((PATCHES + 1) * PATCH), 0.15 + 0.3 * torch.rand(2, B, 1), 6.3 * torch.rand(2, B, 1)
    y = torch.sin(speed[0] * t + phase[0]) + 0.5 * torch.sin(speed[1] * t + phase[1]) + 0.05 * torch.randn(B, len(t))
    return y[:, :-PATCH], y[:, -PATCH:]


def main(steps: int = 200) -> float:
    """Trains, and gives the error over that of repeating the last patch."""
    torch.manual_seed(0)
    net = Forecaster()
    optimiser = torch.optim.Adam(net.parameters(), 3e-3)
    for i in range(steps):
        y, want = batch(64)
        loss = (net(y) - want).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if i % 50 == 0:
            print(f"step {i:4}  loss {loss.item():.3f}")
    y, want = batch(256)
    with torch.no_grad():
        ratio = ((net(y) - want).square().mean() / (y[:, -PATCH:] - want).square().mean()).item()
    print(f"error over that of repeating the last patch: {ratio:.3f}")
    return ratio


if __name__ == "__main__":
    main()
