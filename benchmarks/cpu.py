"""The torch backend on a CPU against the eager token loop and a hand-written chunk program.

    python benchmarks/cpu.py                  times, B=2 T=2048 H=4 K=V=64 fp32, two threads
    python benchmarks/cpu.py --picture DIR    time and memory over T from 1k to 64k, as DIR/cpu.png

All variants run interleaved in one process; a round in which one took more than three times its fastest
run met a busy neighbour or an OpenMP stall and is left out.  Ratios are of times within this run only.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from hand import scalar_decay

import mixc
from mixc.codegen.eager import eager_loop

Tensor = torch.Tensor
EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "simple_gla.mix"
SCALE = 0.125


def inputs(B: int, T: int, H: int, D: int) -> dict[str, Tensor]:
    torch.manual_seed(0)
    x = dict(q=torch.randn(B, T, H, D), k=torch.randn(B, T, H, D) / D**0.5, v=torch.randn(B, T, H, D),
             g=-torch.rand(B, T, H) * 0.1)
    return {name: t.requires_grad_() for name, t in x.items()}


def variants(x: dict[str, Tensor], eager: bool) -> dict[str, Callable[[], Tensor]]:
    mixer = mixc.load(str(EXAMPLE))
    H, D = x["q"].shape[2:]
    found: dict[str, Callable[[], Tensor]] = {
        "mixc": lambda: mixer(**x, scale=SCALE, backend="torch")[0],
        "hand": lambda: scalar_decay(x["q"], x["k"], x["v"], x["g"], SCALE),
    }
    if eager:
        loop, _ = eager_loop(mixer.declared, dict(K=D, V=D), {"scale": SCALE}, H)
        found["eager"] = lambda: loop(x)["o"]
    return found


def forward(fn: Callable[[], Tensor], x: dict[str, Tensor], cotangent: Tensor) -> None:
    with torch.no_grad():
        fn()


def both(fn: Callable[[], Tensor], x: dict[str, Tensor], cotangent: Tensor) -> None:
    for t in x.values():
        t.grad = None
    fn().backward(cotangent)


def measure(B: int, T: int, H: int, D: int, rounds: int, eager: bool = True) -> dict[str, dict[str, list[float]]]:
    """Milliseconds of every clean round, by pass and variant."""
    x = inputs(B, T, H, D)
    cotangent = torch.randn(B, T, H, D)
    programs = variants(x, eager)
    times: dict[str, dict[str, list[float]]] = {}
    for name, run in (("forward", forward), ("forward+backward", both)):
        times[name] = {v: [] for v in programs}
        for i in range(rounds):
            for v, fn in programs.items():
                if v == "eager" and i % 5:
                    continue
                start = time.perf_counter()
                run(fn, x, cotangent)
                times[name][v].append((time.perf_counter() - start) * 1e3)
        times[name] = {v: _clean(ts[1:]) for v, ts in times[name].items()}
    return times


def _clean(times: list[float]) -> list[float]:
    return [t for t in times if t <= 3 * min(times)]


def report(times: dict[str, dict[str, list[float]]]) -> None:
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, "
          f"OMP_WAIT_POLICY={os.environ.get('OMP_WAIT_POLICY', 'unset')}, load {os.getloadavg()[0]:.1f}")
    for name, by in times.items():
        print(f"{name}:  " + "   ".join(f"{v} min {min(ts):.1f} median {statistics.median(ts):.1f} ms ({len(ts)} runs)"
                                        for v, ts in by.items()))
        for other in ("eager", "hand"):
            if other in by:
                a, b = by["mixc"], by[other]
                print(f"    {other} / mixc: {min(b) / min(a):.2f} by minima, "
                      f"{statistics.median(b) / statistics.median(a):.2f} by medians")


# ---------------------------------------------------------------- over T
def one_length(T: int) -> dict[str, float]:
    """In a fresh process: fastest times, and how much the peak of memory grew beyond the inputs (MB)."""
    x, cotangent = inputs(1, T, 4, 64), torch.randn(1, T, 4, 64)
    fn = variants(x, eager=False)["mixc"]
    small = inputs(1, 256, 4, 64)
    both(variants(small, eager=False)["mixc"], small, cotangent[:, :256])
    found = {}
    for name, run in (("forward", forward), ("both", both)):
        base = _memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        ts = []
        for _ in range(5):
            start = time.perf_counter()
            run(fn, x, cotangent)
            ts.append((time.perf_counter() - start) * 1e3)
        found |= {name: min(ts), name + " MB": _memory("VmHWM") - base}
    return found


def _memory(field: str) -> float:
    line = next(s for s in Path("/proc/self/status").read_text().splitlines() if s.startswith(field))
    return int(line.split()[1]) / 1024


def picture(folder: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    lengths = [1024 << i for i in range(7)]
    rows = [json.loads(subprocess.run([sys.executable, __file__, "--length", str(T)], check=True, text=True,
                                      capture_output=True).stdout) for T in lengths]
    _, axes = plt.subplots(1, 2, figsize=(9, 3.6))
    for ax, suffix, label in ((axes[0], "", "ms"), (axes[1], " MB", "MB beyond the inputs, peak")):
        for name in ("forward", "both"):
            ax.loglog(lengths, [r[name + suffix] for r in rows], "o-", base=2,
                      label={"both": "forward + backward"}.get(name, name))
        top = rows[-1]["both" + suffix]
        ax.loglog(lengths, [top * T / lengths[-1] for T in lengths], "k:", base=2, label="linear in T")
        ax.set_xlabel("T"), ax.set_ylabel(label), ax.legend()
    axes[0].set_title("simple_gla, B=1 H=4 K=V=64 fp32, two threads", fontsize=9)
    plt.tight_layout()
    folder.mkdir(parents=True, exist_ok=True)
    plt.savefig(folder / "cpu.png", dpi=120)
    (folder / "cpu.json").write_text(json.dumps(dict(zip(map(str, lengths), rows, strict=True)), indent=1))
    for T, r in zip(lengths, rows, strict=True):
        print(T, {k: round(v, 1) for k, v in r.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picture", type=Path, metavar="DIR")
    parser.add_argument("--length", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.length:
        print(json.dumps(one_length(args.length)))
    elif args.picture:
        picture(args.picture)
    else:
        report(measure(2, 2048, 4, 64, args.rounds))


if __name__ == "__main__":
    main()
