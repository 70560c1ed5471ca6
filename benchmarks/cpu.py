"""The torch backend on a CPU against the eager token loop, class by class.

    python benchmarks/cpu.py                    times and peak memory, fp32, two threads; about four minutes
    python benchmarks/cpu.py gla kda            these only
    python benchmarks/cpu.py min_gru --compiled also backend="torch.compile"; a minute more to compile
    python benchmarks/cpu.py --picture DIR      time and memory of simple_gla over T from 1k to 64k, as DIR/cpu.png

Each class has a process of its own in which all variants run interleaved.  A run that took more than three
times the fastest of its variant met a busy neighbour or an OpenMP stall and is left out.  Ratios are of
minima within one process.  Memory: the peak of one forward+backward in a fresh process, beyond what was there
before and beyond outputs and gradients.
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from hand import lstm_stacked, scalar_decay, vector_scan

import mixc
from mixc.codegen.eager import eager_loop
from mixc.runtime import memory
from mixc.runtime.draw import draw

Tensor = torch.Tensor
Inputs = dict[str, Tensor]
Variant = Callable[[Inputs], Tensor]


@dataclass(frozen=True)
class Case:
    """A mixer at a shape, what else it is held against, and what is hoped for.

    Attributes:
        others: further variants by name; "against" names the one that is the loop of `goals`.
        goals: times faster than the loop, forward and forward+backward (0: none).
        ours: at most these shares of another variant's time: (variant, forward, forward+backward).
        memory: at most so many MB, or (below 1) that share of the loop's.
        spec: a file of it; empty: the shipped one of that name.
    """

    name: str
    shape: dict[str, int]
    goals: tuple[float, float]
    memory: float
    others: dict[str, Variant] = field(default_factory=dict)
    against: str = "eager"
    ours: tuple[str, float, float] | None = None
    spec: str = ""


def _lstm_layers(x: Inputs) -> Tensor:
    """torch.nn.LSTM, one head after another, its input projection included: another parametrisation, for scale."""
    H, D = x["xi"].shape[2:]
    if "layers" not in _kept:
        _kept["layers"] = [torch.nn.LSTM(D, D, batch_first=True) for _ in range(H)]
    return torch.stack([layer(x["xi"][:, :, h])[0] for h, layer in enumerate(_kept["layers"])], 2)


_kept: dict[str, Any] = {}
_MATRIX = dict(B=2, T=2048, H=4, K=64, V=64)
_VECTOR = dict(B=4, T=2048, H=1, D=512)
CASES = {c.name: c for c in (
    Case("simple_gla", _MATRIX, (10, 20), 0.25,
         {"hand": lambda x: scalar_decay(x["q"], x["k"], x["v"], x["g"], x["q"].shape[-1] ** -0.5)},
         ours=("hand", 1.0, 0.75)),
    Case("gated_delta_rule", _MATRIX, (0, 11), 0.25),
    Case("gla", _MATRIX, (0, 7.5), 0.25),
    Case("kda", _MATRIX, (0, 8), 0.25),
    Case("mamba1", dict(B=2, T=2048, H=1, D=256, N=16), (0, 7.5), 40),
    Case("hgrn", _VECTOR, (0, 9), 5, {"hand": lambda x: vector_scan(x["g"], x["x"])}, ours=("hand", 0, 1.0)),
    Case("hgrn_of_gates", _VECTOR, (0, 9), 5, spec=str(Path(__file__).with_name("hgrn_of_gates.mix"))),
    Case("min_gru", _VECTOR, (0, 9), 5),
    Case("lstm", dict(B=4, T=512, H=4, D=64), (0, 2), 0,
         {"stacked loop": lambda x: lstm_stacked(**x), "nn.LSTM": _lstm_layers}, "stacked loop", ("nn.LSTM", 0, 1.7)),
)}


def inputs(case: Case, T: int | None = None) -> tuple[Any, Inputs]:
    s = case.shape | ({"T": T} if T else {})
    mixer = mixc.load(case.spec or case.name)
    dims = {n: size for n, size in s.items() if n not in ("B", "T", "H")}
    x = draw(mixer.declared, B=s["B"], T=s["T"], H=s["H"], sizes=dims, gates=0.1, ends=0.0)
    return mixer, {n: t.requires_grad_() for n, t in x.items()}


def variants(case: Case, mixer: Any) -> dict[str, Variant]:
    mixer.noted = True
    dims = {n: size for n, size in case.shape.items() if n not in ("B", "T", "H")}
    program, consts = mixer.specialise(dims, {})
    loop, _ = eager_loop(program, dims, consts, case.shape["H"])
    out = program.outs[0].name
    return {"mixc": lambda x: mixer(**x, backend="torch")[0], "eager": lambda x: loop(x)[out], **case.others}


def forward(run: Variant, x: Inputs, cotangent: Tensor) -> None:
    with torch.no_grad():
        run(x)


def both(run: Variant, x: Inputs, cotangent: Tensor) -> None:
    for t in x.values():
        t.grad = None
    run(x).backward(cotangent)


PASSES: dict[str, Callable[[Variant, Inputs, Tensor], None]] = {"forward": forward, "forward+backward": both}


def times(case: Case, seconds: float, compiled: bool) -> dict[str, dict[str, dict[str, float]]]:
    """Minimum and median of clean runs in ms, and their number, by pass and variant."""
    mixer, x = inputs(case)
    programs = variants(case, mixer)
    if compiled:
        programs["compiled"] = lambda x: mixer(**x, backend="torch.compile")[0]
        both(programs["compiled"], x, torch.ones_like(programs["compiled"](x)))
    with torch.no_grad():
        cotangent = torch.randn_like(programs["mixc"](x))
    found: dict[str, dict[str, dict[str, float]]] = {}
    for what, run in PASSES.items():
        every: dict[str, list[float]] = {v: [] for v in programs}
        end, rounds = time.perf_counter() + seconds / 2, 0
        while rounds < 4 or time.perf_counter() < end:
            rounds += 1
            for name, program in programs.items():
                for _ in range(1 if "eager" in name or "loop" in name else 3):
                    start = time.perf_counter()
                    run(program, x, cotangent)
                    every[name].append((time.perf_counter() - start) * 1e3)
        found[what] = {name: _summary(t[len(t) // rounds:]) for name, t in every.items()}
    return found


def _summary(times: list[float]) -> dict[str, float]:
    clean = [t for t in times if t <= 3 * min(times)]
    return {"min": min(clean), "median": statistics.median(clean), "runs": len(clean),
            "left_out": len(times) - len(clean)}


# ---------------------------------------------------------------- memory, and time over T
def peak(case: Case, variant: str, T: int | None = None) -> dict[str, float]:
    """MB at the peak beyond inputs, outputs and gradients, and the fastest of five times, by pass; in this process."""
    small = inputs(case, 128)
    program = variants(case, small[0])[variant]
    ends = torch.randn_like(program(small[1]))
    both(program, small[1], ends)
    x = inputs(case, T)[1]
    length = T or case.shape["T"]
    cotangent = torch.randn(ends.shape[0], length, *ends.shape[2:])
    found = {}
    for what, run in PASSES.items():
        for t in x.values():
            t.grad = None
        memory.forget()
        before, taken = _memory("VmRSS"), []
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        for i in range(1 if variant != "mixc" else 5):
            start = time.perf_counter()
            run(program, x, cotangent)
            taken.append((time.perf_counter() - start) * 1e3)
            if not i:
                handed = _mb(cotangent) + (sum(map(_mb, x.values())) if what != "forward" else 0.0)
                found[what + " MB"] = max(0.0, _memory("VmHWM") - before - handed)
        found[what] = min(taken)
    return found


def _mb(t: Tensor) -> float:
    return t.numel() * t.element_size() / 2**20


def _memory(field: str) -> float:
    line = next(s for s in Path("/proc/self/status").read_text().splitlines() if s.startswith(field))
    return int(line.split()[1]) / 1024


def apart(**job: Any) -> Any:
    """The result of a job in a fresh process."""
    done = subprocess.run([sys.executable, __file__, "--job", json.dumps(job | {"threads": torch.get_num_threads()})],
                          check=True, text=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout)


def do(job: dict[str, Any]) -> Any:
    torch.set_num_threads(job["threads"])
    case = CASES[job["name"]]
    if job["what"] == "times":
        return times(case, job["seconds"], job["compiled"])
    return peak(case, job["variant"], job.get("T"))


# ---------------------------------------------------------------- what people read
def report(case: Case, seconds: float, compiled: bool) -> dict[str, Any]:
    found = {"times": apart(what="times", name=case.name, seconds=seconds, compiled=compiled),
             "memory": {v: apart(what="peak", name=case.name, variant=v) for v in ("mixc", "eager")}}
    shape = " ".join(f"{n}={s}" for n, s in case.shape.items())
    print(f"\n{case.name}  {shape}")
    for i, (what, by) in enumerate(found["times"].items()):
        print(f"  {what:17}" + "   ".join(f"{v} {t['min']:.1f} ({t['median']:.1f}) ms" for v, t in by.items()))
        ours = by["mixc"]["min"]
        line = f"  {'':17}{by[case.against]['min'] / ours:.1f} times faster than the {case.against}"
        line += f" (goal {case.goals[i]})" if case.goals[i] else ""
        if case.ours:
            other, *shares = case.ours
            line += f"; {ours / by[other]['min']:.2f} of {other}" + (f" (goal {shares[i]})" if shares[i] else "")
        print(line + f"; {sum(int(t['left_out']) for t in by.values())} disturbed runs left out")
    mb, loop = (found["memory"][v]["forward+backward MB"] for v in ("mixc", "eager"))
    goal = f" (goal {case.memory})" if case.memory >= 1 else ""
    share = f" (goal {case.memory})" if 0 < case.memory < 1 else ""
    ratio = mb / max(loop, 1e-9)
    print(f"  {'peak memory':17}{mb:.0f} MB{goal}, the loop's {loop:.0f} MB: {ratio:.2f}{share}", flush=True)
    return found


def picture(folder: Path, name: str) -> None:
    """Time and memory over T on logarithmic axes, with a line for what is linear."""
    from matplotlib.figure import Figure

    lengths = [1024 << i for i in range(7)]
    rows = [apart(what="peak", name=name, variant="mixc", T=T) for T in lengths]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    times_, memory = figure.subplots(1, 2)
    for ax, suffix, label in ((times_, "", "ms"), (memory, " MB", "MB at the peak, beyond results")):
        for what in PASSES:
            ax.loglog(lengths, [r[what + suffix] for r in rows], "o-", base=2, label=what)
        top = rows[-1]["forward+backward" + suffix]
        ax.loglog(lengths, [top * T / lengths[-1] for T in lengths], "k:", base=2, label="linear in T")
        ax.set(xlabel="T", ylabel=label)
        ax.legend()
    shape = " ".join(f"{n}={s}" for n, s in CASES[name].shape.items() if n != "T")
    figure.suptitle(f"{name}, {shape}, fp32, {torch.get_num_threads()} threads", fontsize=10)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "cpu.png", dpi=120)
    (folder / "cpu_over_T.json").write_text(json.dumps(dict(zip(map(str, lengths), rows, strict=True)), indent=1))
    for T, r in zip(lengths, rows, strict=True):
        print(T, {k: round(v, 1) for k, v in r.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(CASES)}; all of them otherwise")
    parser.add_argument("--picture", type=Path, metavar="DIR")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where cpu.json goes")
    parser.add_argument("--seconds", type=float, default=16.0, help="of timing a class")
    parser.add_argument("--compiled", action="store_true", help='time backend="torch.compile" too')
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        print(json.dumps(do(args.job)))
        return
    if unknown := sorted(set(args.names) - set(CASES)):
        parser.error(f"no class {unknown[0]}; there are {', '.join(CASES)}")
    torch.set_num_threads(args.threads)
    if args.picture:
        picture(args.picture, (args.names or ["simple_gla"])[0])
        return
    policy = os.environ.get("OMP_WAIT_POLICY", "unset")
    print(f"torch {torch.__version__}, {args.threads} threads, OMP_WAIT_POLICY={policy}, "
          f"load {os.getloadavg()[0]:.1f}; minimum (median)")
    found = {name: report(CASES[name], args.seconds, args.compiled) for name in args.names or CASES}
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "cpu.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
