"""An autoregression as a spec: it finds the coefficients of a seasonal series, and goes on with it token by token.

    python examples/seasonal.py

The series is y[t] = 0.4 y[t-1] - 0.2 y[t-2] + 0.35 y[t-12] + 1 + noise.  `ar_net` says what happens to one token; `lag`
is a shifted read, so that a whole series is one batch, and forecasting is `step` with the state of the prefill.
"""

from __future__ import annotations

import torch

import mixc

TRUTH = {1: 0.4, 2: -0.2, 12: 0.35}
W = 12


def series(T: int, noise: float = 0.1) -> torch.Tensor:
    """[1, T, 1]: one sequence, one head."""
    y = [0.0] * W
    for e in (noise * torch.randn(T)).tolist():
        y.append(sum(c * y[-n] for n, c in TRUTH.items()) + 1 + e)
    return torch.tensor(y[W:]).reshape(1, T, 1)


def fit(y: torch.Tensor, steps: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Coefficients a [1, W] of the last W values and the constant b [1], by least squares on y[t + 1]."""
    ar = mixc.load("ar_net")
    a, b = torch.zeros(1, W, requires_grad=True), torch.zeros(1, requires_grad=True)
    optimiser = torch.optim.LBFGS([a, b], max_iter=40, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        error = ar(y[:, :-1], a, b)[0] - y[:, 1:]
        value = error[:, W:].square().mean()
        value.backward()
        return value
    for _ in range(steps):
        optimiser.step(loss)
    return a.detach(), b.detach()


def main() -> None:
    torch.manual_seed(0)
    y, ar = series(3000), mixc.load("ar_net")
    a, b = fit(y)
    for n in range(1, W + 1):
        print(f"y[t-{n}]".ljust(9), f"{a[0, n - 1]:+.3f}", f"  (true {TRUTH.get(n, 0.0):+.2f})")
    _, state = ar(y[:, :-1], a, b, output_final_state=True)
    x, ahead = y[:, -1], []
    for _ in range(24):
        x, state = ar.step(state, x, a, b)
        ahead.append(round(x.item(), 2))
    print("next 24:", *ahead)


if __name__ == "__main__":
    main()
