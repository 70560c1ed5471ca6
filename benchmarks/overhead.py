"""What a call costs beside its program, on a CPU, at tiny shapes: CPU time of this thread, variants interleaved.

    python benchmarks/overhead.py

`call`: what a call does before and behind its backend, which is replaced by one product of all inputs, here and in what
it is compared with.  `backend`: what the torch backend does around the functions of its chunk program: it finds the
places of chunks, loads rows and carries states.  `step`: one decode step of the gated delta rule, beside the step that
a person would write in torch.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable

import torch

import mixc
from mixc.runtime import backends
from mixc.runtime.call import Call
from mixc.runtime.compiled import compiled

Run = Callable[[], object]


def interleaved(runs: dict[str, Run], number: int, rounds: int = 25) -> dict[str, float]:
    """Best microseconds of each, in turns."""
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.thread_time()
            for _ in range(number):
                run()
            best[name] = min(best[name], (time.thread_time() - start) / number * 1e6)
    return best


def call(grad: bool) -> dict[str, float]:
    m = mixc.load("simple_gla")
    q, k, v = (torch.randn(1, 2, 1, 16).requires_grad_(grad) for _ in "qkv")
    g = (-torch.rand(1, 2, 1)).requires_grad_(grad)
    results = {"S": torch.zeros(1, 1, 16, 16)}

    def program(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        return q * k * v * g[..., None]

    def stub(mixer: mixc.Mixer, call: Call) -> backends.Results:
        return {"o": program(**call.ins)}, results

    def pulled(o: torch.Tensor) -> None:
        if grad:
            o.backward(q)
            q.grad = k.grad = v.grad = g.grad = None
    real, backends.BACKENDS["torch"] = backends.BACKENDS["torch"], stub
    try:
        return interleaved({"program": lambda: pulled(program(q, k, v, g)), "call": lambda: pulled(m(q, k, v, g)[0])},
                           100)
    finally:
        backends.BACKENDS["torch"] = real


def backend(grad: bool) -> tuple[float, float]:
    """Microseconds of a whole call, and of these outside of the functions of its program."""
    m, calls, spent = mixc.load("simple_gla"), list[Call](), [0.0]
    q, k, v = (torch.randn(1, 2, 1, 16).requires_grad_(grad) for _ in "qkv")
    g = (-torch.rand(1, 2, 1)).requires_grad_(grad)
    real = backends.BACKENDS["torch"]

    def run() -> None:
        o, _ = m(q, k, v, g)
        if grad:
            o.sum().backward()

    def spied(mixer: mixc.Mixer, call: Call) -> backends.Results:
        calls.append(call)
        return real(mixer, call)

    def timed(f: Callable[..., object]) -> Callable[..., object]:
        def inside(*args: object, **given: object) -> object:
            start = time.thread_time()
            found = f(*args, **given)
            spent[0] += time.thread_time() - start
            return found
        return inside
    backends.BACKENDS["torch"] = spied
    run()
    backends.BACKENDS["torch"] = real
    for segment in compiled(calls[0].program)._segments.values():
        for name in ("run", "before", "after", "per_head"):
            setattr(segment, name, timed(getattr(segment, name)))
    best = (float("inf"), float("inf"))
    for _ in range(25):
        start, spent[0] = time.thread_time(), 0.0
        for _ in range(50):
            run()
        whole = time.thread_time() - start
        best = min(best, (whole / 50 * 1e6, (whole - spent[0]) / 50 * 1e6))
    return best


def step(grad: bool) -> dict[str, float]:
    m, B, H, D = mixc.load("gated_delta_rule"), 1, 4, 64
    q, k, v = (torch.randn(B, H, D).requires_grad_(grad) for _ in "qkv")
    g, beta = (-torch.rand(B, H)).requires_grad_(grad), torch.rand(B, H).requires_grad_(grad)
    S = torch.randn(B, H, D, D).requires_grad_(grad)

    def by_hand() -> tuple[torch.Tensor, torch.Tensor]:
        s = g.exp()[..., None, None] * S
        s = s + (beta[..., None] * k)[..., None] * (v - (k[..., None, :] @ s)[..., 0, :])[..., None, :]
        return D ** -0.5 * (q[..., None, :] @ s)[..., 0, :], s

    def compiled() -> tuple[torch.Tensor, torch.Tensor]:
        o, s = m.step({"S": S}, q=q, k=k, v=v, g=g, beta=beta)
        return o, s["S"]
    torch.testing.assert_close(compiled()[0], by_hand()[0])

    def pulled(run: Callable[[], tuple[torch.Tensor, torch.Tensor]]) -> None:
        o, s = run()
        if grad:
            torch.autograd.backward([o, s], [q.detach(), S.detach()])
            for x in (q, k, v, g, beta, S):
                x.grad = None
    with torch.inference_mode(not grad):
        return interleaved({"by hand": lambda: pulled(by_hand), "step": lambda: pulled(compiled)}, 50)


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for grad, goal in ((False, 30), (True, 60)):
        t = call(grad)
        print(f"call, {'with' if grad else 'without'} gradients: {t['call'] - t['program']:.0f} us (goal {goal})")
    for grad in (False, True):
        whole, around = backend(grad)
        how = "with" if grad else "without"
        print(f"backend, {how} gradients: {around:.0f} us around the program, {whole:.0f} in all")
    for grad, bound in ((False, 1.6), (True, 2.0)):
        t = step(grad)
        how = "with gradients" if grad else "inference mode"
        print(f"step, {how}: {t['step']:.0f} us, by hand {t['by hand']:.0f} us, "
              f"{t['step'] / t['by hand']:.2f}x (goal {bound}x)")


if __name__ == "__main__":
    main()
