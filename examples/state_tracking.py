"""State tracking by reflections: parity, and products of permutations, at four times the length of training.

    python examples/state_tracking.py [--steps 350] [--picture state_tracking.png]

A delta rule's step is S <- (I - beta k k^T) S + beta k v.  With beta <= 1 its eigenvalues lie in [0, 1] and no state
can alternate for ever; with beta up to 2 it reflects (Grazzi et al. 2024, arXiv 2411.12537), and two reflections
a token rotate, which the word problem of S3 needs (Siems et al. 2025, arXiv 2502.10297).
"""

from __future__ import annotations

import argparse
import itertools
import time

import torch
from torch import Tensor, nn

import mixc

SPEC = """mixer tracker(K, V, N) {
    in    q[K]
    in    k[N, K] where norm[K](k) <= 1
    in    v[N, V]
    in    beta[N] where 0 <= beta <= 2
    param S0[K, V]
    state S[K, V] = S0

    for n in N {
        S = S + beta[n] * k[n] * (v[n] - k[n] @ S)
    }
    out o[V] = q @ S
}
"""
GROUP = list(itertools.permutations(range(3)))
TIMES = torch.tensor([[GROUP.index(tuple(b[i] for i in a)) for b in GROUP] for a in GROUP])  # a after b
LENGTH, FACTOR, H, K, V = 24, 4, 8, 4, 8


def parity(B: int, T: int) -> tuple[Tensor, Tensor]:
    x = torch.randint(2, (B, T))
    return x, x.cumsum(1) % 2


def word_problem(B: int, T: int) -> tuple[Tensor, Tensor]:
    """Elements of S3, and the product of all so far."""
    x, product, found = torch.randint(6, (B, T)), torch.zeros(B, dtype=torch.long), []
    for element in x.unbind(1):
        product = TIMES[element, product]
        found.append(product)
    return x, torch.stack(found, 1)


class Tracker(nn.Module):
    """One layer: what a token does to the state is looked up, what the state says is read by a small network."""

    def __init__(self, symbols: int, N: int, top: float):
        super().__init__()
        self.mixer, self.N, self.top = mixc.loads(SPEC), N, top
        self.of = nn.Embedding(symbols, H * (K + N * (K + V + 1)))
        self.S0 = nn.Parameter(torch.randn(H, K, V) / K ** 0.5)
        self.read = nn.Sequential(nn.Linear(H * V, 64), nn.GELU(), nn.Linear(64, symbols))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v, beta = self.of(x).unflatten(-1, (H, -1)).split([K, self.N * K, self.N * V, self.N], -1)
        k, v = (t.unflatten(-1, (self.N, -1)) for t in (k, v))
        k = nn.functional.normalize(k, dim=-1) * (1 - 1e-6)
        o, _ = self.mixer(q, k, 0.1 * v, self.top * nn.functional.hardsigmoid(3 * beta), self.S0)
        return self.read(o.flatten(-2))


def train(task, symbols: int, N: int, top: float, steps: int) -> Tensor:
    """The share of right answers at every place of a sequence FACTOR times as long as in training."""
    torch.manual_seed(0)
    model = Tracker(symbols, N, top)
    opt = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    plan = torch.optim.lr_scheduler.OneCycleLR(opt, 1e-2, steps)
    for i in range(steps):
        x, y = task(64, min(LENGTH, 2 + i * 5 * LENGTH // (4 * steps)))  # short ones first
        loss = nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten())
        opt.zero_grad()
        loss.backward()
        opt.step()
        plan.step()
    with torch.no_grad():
        x, y = task(256, FACTOR * LENGTH)
        return (model(x).argmax(-1) == y).double().mean(0)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--steps", type=int, default=350)
    options.add_argument("--picture", default="state_tracking.png")
    given = options.parse_args()
    start, curves, fine = time.perf_counter(), {}, True
    for name, task, symbols, N in (("parity", parity, 2, 1), ("S3, two reflections", word_problem, 6, 2)):
        for top in (1.0, 2.0):
            right = curves[name, top] = train(task, symbols, N, top, given.steps * N)
            seen, last = right[:LENGTH].mean(), right[-LENGTH:].mean()
            print(f"{name:20} beta in [0, {top:.0f}]: {seen:6.1%} right within length {LENGTH}, {last:6.1%} at the end "
                  f"of length {FACTOR * LENGTH} ({time.perf_counter() - start:.0f} s)", flush=True)
            fine &= bool(last > 0.95) == (top == 2.0)
    print("as the theory says: only reflections generalise" if fine else "NOT as the theory says")
    _draw(curves, given.picture)


def _draw(curves: dict[tuple[str, float], Tensor], file: str) -> None:
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        print("no picture: matplotlib is not installed")
        return
    figure, axes = plt.subplots(1, 2, figsize=(9, 3), sharey=True)
    for axis, name in zip(axes, dict.fromkeys(n for n, _ in curves), strict=True):
        for top in (1.0, 2.0):
            axis.plot(range(1, FACTOR * LENGTH + 1), curves[name, top], label=f"β in [0, {top:.0f}]")
        axis.axvline(LENGTH, color="grey", linestyle=":")
        axis.set(title=name, xlabel="tokens (dotted: length of training)", ylim=(0, 1.03))
    axes[0].set_ylabel("right answers")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    print(f"picture: {file}")


if __name__ == "__main__":
    main()
