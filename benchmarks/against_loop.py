"""Specs' torch programs on a CPU against the eager token loop, worst first: what is slower than a loop is a finding.

    python benchmarks/against_loop.py                             every shipped spec; about ten minutes
    python benchmarks/against_loop.py my.mix other.mix            these
    python benchmarks/against_loop.py gla --sizes K=256,V=256     shipped ones by name, at a size
    python benchmarks/against_loop.py gla --T 1 --T 16 --T 100    at several lengths
    python benchmarks/against_loop.py gla --step                  decode: one token at a time

One thread, and `time.thread_time` of it: neighbours that are busy disturb little.  Both sides in turn in one process,
the minimum of several.  Memory: the peak of one forward+backward in a fork, beyond what was there before and beyond
results.  Dims are K = V = D = 64, N = 16, others 8, where the spec says nothing.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import mixc
from mixc.codegen.eager import eager_loop
from mixc.runtime import memory
from mixc.runtime.draw import dim_sizes, draw

Tensor = torch.Tensor
Run = Callable[[dict[str, Tensor]], list[Tensor]]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}


def both_sides(m: Any, sizes: dict[str, int], H: int, backend: str) -> dict[str, Run]:
    program, consts = m.specialise(sizes, {})
    loop, _ = eager_loop(program, sizes, consts, H)

    def ours(x: dict[str, Tensor]) -> list[Tensor]:
        o, _ = m(**x, backend=backend)
        return [o] if isinstance(o, Tensor) else list(o)
    return {"mixc": ours, "loop": lambda x: list(loop(x).values())}


def passes(run: Run, x: dict[str, Tensor], cotangents: list[Tensor]) -> dict[str, Callable[[], None]]:
    def forward() -> None:
        with torch.no_grad():
            run(x)

    def both() -> None:
        y = {n: t.detach().requires_grad_() for n, t in x.items()}
        pairs = [(o, c) for o, c in zip(run(y), cotangents, strict=True) if o.requires_grad]
        if pairs:
            torch.autograd.backward([o for o, _ in pairs], [c.to(o.dtype) for o, c in pairs])
    return {"fwd": forward, "both": both}


def fastest(jobs: dict[str, Callable[[], None]], seconds: float) -> dict[str, float]:
    """Milliseconds of each, in turn; each at least twice behind one that warms up, and for so long in all."""
    best, spent, rounds = dict.fromkeys(jobs, 1e9), dict.fromkeys(jobs, 0.0), 0
    for job in jobs.values():
        job()
    while rounds < 2 or any(t < seconds for t in spent.values()):
        rounds += 1
        for name, job in jobs.items():
            if rounds > 2 and spent[name] >= seconds:
                continue
            start = time.thread_time()
            job()
            taken = time.thread_time() - start
            best[name], spent[name] = min(best[name], taken * 1e3), spent[name] + taken
    return best


def peak(job: Callable[[], None]) -> float:
    """MB that a fork of this process needs at its peak beyond what is there."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        memory.forget()
        ctypes.CDLL(None).malloc_trim(0)
        before = _memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        job()
        os.write(write, f"{_memory('VmHWM') - before}".encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    with os.fdopen(read) as f:
        return float(f.read() or "nan")


def _memory(field: str) -> float:
    line = next(s for s in Path("/proc/self/status").read_text().splitlines() if s.startswith(field))
    return int(line.split()[1]) / 1024


def sizes_of(m: Any, given: dict[str, int]) -> dict[str, int]:
    usual = {d.name: 64 if d.name in "KVDE" else 16 if d.name == "N" else 8 for d in m.declared.dims}
    return dim_sizes(m.declared, usual | given)


def measure(m: Any, args: argparse.Namespace, T: int) -> dict[str, Any]:
    sizes = sizes_of(m, args.sizes)
    x = draw(m.declared, B=args.B, T=T, H=args.H, sizes=sizes, gates=0.1, ends=0.0, dtype=DTYPES[args.dtype])
    sides = both_sides(m, sizes, args.H, args.backend)
    with torch.no_grad():
        cotangents = [torch.randn(o.shape) for o in sides["mixc"](x)]
    jobs = {side: passes(run, x, cotangents) for side, run in sides.items()}
    row: dict[str, Any] = {"name": m.__name__, "T": T, "form": _form(m)}
    for what in jobs["mixc"]:
        best = fastest({side: job[what] for side, job in jobs.items()}, args.seconds)
        row |= {f"{side} {what}": t for side, t in best.items()} | {what: best["loop"] / best["mixc"]}
    if args.memory:
        row |= {f"{side} MB": peak(job["both"]) for side, job in jobs.items()}
    return row


def measure_step(m: Any, args: argparse.Namespace, count: int = 64) -> dict[str, Any]:
    """Decode: `step` token by token, against one turn of the loop's body."""
    sizes = sizes_of(m, args.sizes)
    x = draw(m.declared, B=args.B, T=count, H=args.H, sizes=sizes, gates=0.1, ends=0.0, dtype=DTYPES[args.dtype])
    ins = {d.name for d in m.declared.ins}
    tokens = [{n: t[:, i] if n in ins else t for n, t in x.items()} for i in range(count)]

    def stepped() -> None:
        state = None
        with torch.no_grad():
            for token in tokens:
                _, state = m.step(state, **token)
    loop = passes(both_sides(m, sizes, args.H, args.backend)["loop"], x, [])["fwd"]
    best = fastest({"mixc": stepped, "loop": loop}, args.seconds)
    row = {"name": m.__name__, "T": count, "form": _form(m), "fwd": best["loop"] / best["mixc"]}
    return row | {f"{side} fwd": t for side, t in best.items()}


def _form(m: Any) -> str:
    return "/".join(sorted(set(m.form.values())))


def line(row: dict[str, Any]) -> str:
    if "error" in row:
        return f"{row['name']:26} {row['error']}"
    text = f"{row['name']:26} T={row['T']:<5}{row['form']:17}"
    for what in ("fwd", "both"):
        if what in row:
            text += f" {what} x{row[what]:6.2f} ({row[f'mixc {what}']:8.2f} of {row[f'loop {what}']:8.1f} ms)"
    return text + (f"  {row['mixc MB']:5.0f} of {row['loop MB']:5.0f} MB" if "mixc MB" in row else "")


def _sizes(text: str) -> dict[str, int]:
    return {n: int(size) for n, size in (pair.split("=") for pair in text.split(","))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("specs", nargs="*", help="files, or names of shipped specs; all of these otherwise")
    parser.add_argument("--sizes", type=_sizes, default={})
    parser.add_argument("--T", type=int, action="append")
    parser.add_argument("--B", type=int, default=2)
    parser.add_argument("--H", type=int, default=4)
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--seconds", type=float, default=0.15, help="of timing each side at least")
    parser.add_argument("--backend", default="torch")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--step", action="store_true")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where JSON goes")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    here = Path(__file__).resolve().parents[1] / "examples"
    rows = []
    for spec in args.specs or sorted(map(str, here.glob("*.mix"))):
        for T in args.T or [512]:
            try:
                m = mixc.load(spec)
                rows.append(measure_step(m, args) if args.step else measure(m, args, T))
            except Exception as e:  # the others are still of interest
                rows.append({"name": Path(spec).stem, "error": f"{type(e).__name__}: {e}"[:200]})
            print(line(rows[-1]), flush=True)
            gc.collect()
    good = sorted((r for r in rows if "fwd" in r), key=lambda r: min(r["fwd"], r.get("both", r["fwd"])))
    print("\nworst first")
    for row in [*(r for r in rows if "error" in r), *good]:
        print(line(row))
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
