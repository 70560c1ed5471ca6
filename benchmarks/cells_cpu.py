"""Cells on a CPU against the loop that a person would write and against torch.nn: forward and backward, fp32.

    python benchmarks/cells_cpu.py            B=4 H=4 D=64 T=512, pre-activations given

All sides run interleaved in one process; the figures are the minimum and the median of the runs.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

import mixc

B, H, D, T, RUNS = 4, 4, 64, 512, 9


def eager_lstm(x: list[torch.Tensor], R: list[torch.Tensor]) -> torch.Tensor:
    """The step verbatim, the four gates in one product."""
    z = torch.cat(x, -1).permute(1, 2, 0, 3).unbind(0)  # T of [H, B, 4 D]
    W = torch.cat(R, 1).transpose(1, 2)
    h = c = x[0].new_zeros(H, B, D)
    found = []
    for zt in z:
        i, f, g, o = torch.baddbmm(zt, h, W).split(D, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        found.append(h)
    return torch.stack(found).permute(2, 0, 1, 3)


def main() -> None:
    torch.manual_seed(0)
    x = [torch.randn(B, T, H, D).requires_grad_() for _ in range(4)]
    R = [(torch.randn(H, D, D) / 8).requires_grad_() for _ in range(4)]
    cot, lstm = torch.randn(B, T, H, D), mixc.load("lstm")
    nets = [torch.nn.LSTM(D, D, batch_first=True) for _ in range(H)]
    y = torch.randn(H, B, T, D).requires_grad_()
    sides: dict[str, Callable[[], torch.Tensor]] = {
        "eager loop": lambda: eager_lstm(x, R),
        "mixc": lambda: lstm(*x, *R)[0],
        "torch.nn.LSTM, one a head": lambda: torch.stack([n(y[i])[0] for i, n in enumerate(nets)], 2),
    }
    assert torch.allclose(sides["eager loop"](), sides["mixc"](), atol=1e-5)
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(RUNS):
        for name, side in sides.items():
            start = time.perf_counter()
            (side() * cot).sum().backward()
            found[name].append(1e3 * (time.perf_counter() - start))
    base = min(found["eager loop"])
    print(f"{torch.__version__}, {torch.get_num_threads()} threads")
    for name, ms in found.items():
        print(f"{name:28} min {min(ms):7.1f}  median {statistics.median(ms):7.1f} ms  {base / min(ms):5.2f} x eager")


if __name__ == "__main__":
    main()
