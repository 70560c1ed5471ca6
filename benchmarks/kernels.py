"""Emitted kernels under the meter: bytes over the compulsory ones, spills, modelled time, each against fla's.

    python benchmarks/kernels.py                          simple GLA, GLA, delta rules, RWKV-6: those there are, D=64
    python benchmarks/kernels.py --size 128
    python benchmarks/kernels.py simple_gla --shape B=1,T=16384,H=4
    python benchmarks/kernels.py mamba1 lstm --out out    others by name; OUT/kernels_64.json

The meter (a tool of ours: it counts in the interpreter and compiles for sm_90; no GPU) is looked for in
`../shared/tools/meter`; without it this says so and stops.  "bytes" count torch operations between kernels too.
Times are those of its model with latency, for an H100; the numbers of others are what it gave for theirs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_cases import target_shape

import mixc
from mixc.errors import SpecError

METER = Path(__file__).resolve().parents[2] / "shared" / "tools" / "meter"
PASSES = {"fwd": "forward", "fwdbwd": "forward+backward"}


@dataclass(frozen=True)
class Case:
    """Inputs as in the meter's case for the peer.

    Attributes:
        inputs: how arguments are drawn that are not normal in bf16 (see TEMPLATE).
        small: the shape that is counted in the interpreter, where B=1 T=256 H=2 will not do.
        peer: by size: bytes over compulsory, µs, for forward and forward+backward.
        goal: by size: the same ratios as wished for, and the µs over the peer's.
    """

    inputs: dict[str, str]
    peer: dict[int, tuple[float, float, float, float]]
    goal: dict[int, tuple[float, float, float]]
    small: dict[str, int] | None = None


_RULE = {"q": "l2norm", "k": "l2norm", "beta": "uniform"}
CASES = {
    "simple_gla": Case({"g": "decay 0.2"}, {64: (2.02, 2.93, 90.7, 353), 128: (2.51, 4.01, 211, 927)},
                       {64: (1.1, 1.3, 0.6), 128: (1.1, 1.5, 0.6)}),
    "gla": Case({"g": "decay 0.1"}, {64: (4.46, 5.12, 332, 1033), 128: (4.52, 5.57, 664, 2201)},
                {64: (1.1, 1.4, 0.4), 128: (1.2, 1.8, 0.6)}),
    "gated_delta_rule": Case({**_RULE, "g": "decay 0.2"}, {64: (4.41, 5.42, 242, 698), 128: (4.58, 5.76, 442, 1399)},
                             {64: (1.1, 1.5, 0.7), 128: (1.2, 1.8, 0.6)}),
    "delta_rule": Case(_RULE, {64: (5.21, 5.70, 281, 723), 128: (4.98, 5.89, 472, 1410)}, {64: (1.1, 1.5, 0.7)}),
    "kda": Case({**_RULE, "g": "decay 0.1"}, {64: (5.94, 6.61, 592, 1680), 128: (5.87, 6.54, 1072, 3212)},
                {64: (1.2, 1.6, 0.5), 128: (1.2, 1.8, 0.6)}),
    "rwkv6": Case({"w": "decay 0.1"}, {64: (5.63, 6.13, 372, 1175)}, {64: (1.2, 1.5, 0.4)}),
}
MORE = {
    "linear_attention": Case({}, {64: (2.00, 2.91, 86.1, 339)}, {}),
    "retnet": Case({"g": "decay 0.1"}, {64: (2.00, 2.91, 104, 357)}, {}),
    "hgrn": Case({"g": "half decay 1"}, {64: (4.00, 4.25, 129, 362)}, {64: (1.05, 1.5, 1.0)}),
    "mlstm_stabilised": Case({"i": "fp32", "f": "fp32 above 3"},
                             {64: (2.18, 6.46, 103, 825), 128: (2.78, 7.21, 244, 1708)}, {64: (1.3, 1.7, 1.0)}),
    "mamba1": Case({"dt": "step", "A": "fp32 minus"}, {}, {64: (1.1, 1.6, 1.0)}, dict(B=1, T=128, H=1)),
    "lstm": Case({}, {64: (3.72, 3.13, 714, 2500)}, {64: (1.2, 1.6, 1.0)}, dict(B=16, T=128, H=2)),
}

TEMPLATE = '''
import sys
sys.path[:0] = PATHS
import math
import torch
import torch.nn.functional as F
import emitted
import mixc
from meter import MODE, nbytes, rand, relerr

VARIANTS = ["fwd", "fwdbwd"]
emitted.INTERPRETED = False  # the meter's own interpreter multiplies bf16 as a GPU does
mixer = mixc.load(NAME)
DRAW = {
    "normal": lambda s, n, a: rand(*s),
    "l2norm": lambda s, n, a: rand(*s, kind="l2norm"),
    "uniform": lambda s, n, a: rand(*s, kind="uniform"),
    "decay": lambda s, n, a: rand(*s, dtype=torch.float32, kind="logsigmoid", scale=a),
    "half decay": lambda s, n, a: rand(*s, kind="logsigmoid", scale=a),
    "fp32": lambda s, n, a: rand(*s, dtype=torch.float32),
    "fp32 above": lambda s, n, a: rand(*s, dtype=torch.float32) + a,
    "fp32 minus": lambda s, n, a: -rand(*s, dtype=torch.float32).abs(),
    "step": lambda s, n, a: rand(*s, scale=0.1).abs(),
    "weights": lambda s, n, a: rand(*s, scale=s[-1] ** -0.5),
}


def drawn(d, s):
    how, _, number = INPUTS.get(d.name, "normal" if len(d.dims) < 2 else "weights").rpartition(" ")
    try:
        amount = float(number)
    except ValueError:
        how, amount = f"{how} {number}".strip(), 0.0
    lead = [s["B"], s["T"], s["H"]] if d.role == "in" else [s["H"]]
    return DRAW[how]([*lead, *(s[n] for n in d.dims)], d.name, amount)


def make(s):
    s = {**DIMS, **{k: v for k, v in s.items() if k != "D" or "D" not in DIMS}}
    both = s["variant"] == "fwdbwd"
    declared = [*mixer.declared.ins, *mixer.declared.params]
    ts = {d.name: drawn(d, s).requires_grad_(both) for d in declared}
    found = {}

    def run():
        o = getattr(emitted, NAME)(*ts.values())[0]
        return [o] if torch.is_tensor(o) else list(o)

    outs = [torch.Size([s["B"], s["T"], s["H"], *(s[n] for n in o.dims)]) for o in mixer.declared.outs]
    ends = [rand(*shape) for shape in outs]

    def fn():
        if both:
            o = run()
            torch.autograd.backward(o, ends)
            found["d"] = {n: t.grad for n, t in ts.items()}
        else:
            with torch.no_grad():
                o = run()
        found["o"] = [x.detach() for x in o]

    def check():
        f = {n: t.detach().float().requires_grad_(both) for n, t in ts.items()}
        o = mixer(**f, backend="reference")[0]
        o = [o] if torch.is_tensor(o) else list(o)
        errors = {f"o{i}": relerr(a, b) for i, (a, b) in enumerate(zip(found["o"], o, strict=True))}
        if both:
            torch.autograd.backward(o, [e.to(x) for e, x in zip(ends, o, strict=True)])
            errors |= {"d" + n: relerr(found["d"][n], t.grad) for n, t in f.items() if t.grad is not None}
        return {n: float(f"{x:.3g}") for n, x in errors.items()}

    ins = list(ts.values())
    compulsory = nbytes(ins, ends) + (nbytes(ins, ends, ins) if both else 0)
    return dict(name="mixc." + NAME, fn=fn, inputs=ins, compulsory=compulsory, check=check if MODE == "count" else None)
'''


def measure(name: str, case: Case, size: int, meter: Path, other: dict[str, int]) -> dict[str, Any]:
    """The meter's totals by pass, or why there are none. `other`: B, T, H in place of the usual ones."""
    mixer, start = mixc.load(name), time.monotonic()
    shape = target_shape(mixer, size) | other
    dims = {n: s for n, s in shape.items() if n not in ("B", "T", "H")}
    found: dict[str, Any] = {"name": name, "size": size, "shape": shape}
    try:
        text = mixer.emit(target="h100", shape=shape, dtype="bf16")
    except SpecError as error:
        return found | {"left_out": error.diagnostics[0].message}
    with tempfile.TemporaryDirectory() as tmp:
        folder, out = Path(tmp), Path(tmp) / "out.json"
        (folder / "emitted.py").write_text(text)
        head = f"PATHS = {[str(folder), str(meter / 'cases')]!r}\n"
        head += f"NAME, INPUTS, DIMS = {name!r}, {case.inputs!r}, {dims!r}\n"
        (folder / "case.py").write_text(head + TEMPLATE)
        small = case.small or dict(B=1, T=256, H=2)
        done = subprocess.run([sys.executable, str(meter / "meter.py"), "run", str(folder / "case.py"), "--small",
                               _text(small), "--target", _text({n: shape[n] for n in "BTH"}), "--out", str(out)],
                              check=False, cwd=folder, capture_output=True, text=True, env=_environment())
        if not out.exists():
            return found | {"failed": done.stderr.strip().splitlines()[-1:]}
        variants = json.loads(out.read_text())["variants"]
    for variant, title in PASSES.items():
        v = variants.get(variant, {})
        wrong = [e.strip().splitlines()[-1] for e in v.get("errors", ())]
        found[title] = {"failed": wrong or v} if wrong or not v.get("total") else v["total"]
    return found | {"seconds": round(time.monotonic() - start, 1)}


def _environment() -> dict[str, str]:
    """Ours: the meter says itself when to interpret."""
    here = str(Path(mixc.__file__).parents[1])
    paths = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
    return {n: x for n, x in os.environ.items() if n != "TRITON_INTERPRET"} | {"PYTHONPATH": paths}


def _text(sizes: dict[str, int]) -> str:
    return ",".join(f"{n}={s}" for n, s in sizes.items())


def rows(found: dict[str, Any], case: Case) -> list[str]:
    """A line a pass: ours, the peer's, the goal."""
    name, size = found["name"], found["size"]
    if "left_out" in found:
        return [f"{name:18} {size:4} no kernels yet: {found['left_out']}"]
    lines = []
    for i, title in enumerate(PASSES.values()):
        t = found.get(title, found)
        if "failed" in t:
            lines.append(f"{name:18} {size:4} {title:17} FAILED: {t['failed']}")
            continue
        peer, goal = case.peer.get(size), case.goal.get(size)
        us = t["model_lat_us"]
        line = f"{name:18} {size:4} {title:17} {t['io_ratio_with_torch']:7.2f}"
        line += f" {goal[i]:5.2f}" if goal else "     -"
        line += f" {peer[i]:6.2f}" if peer else "      -"
        line += f" {us:8.1f}"
        line += f" {us / peer[2 + i]:7.2f} {goal[2] if goal else '-':>5}" if peer else "       -     -"
        line += f" {t['launches_triton']:3}+{t['launches_torch']:<3} {t['max_regs']:4} {t['spill']:6} {t['max_smem']:7}"
        check = t.get("check") or {}
        worst = max(check.values()) if check and "error" not in check else None
        lines.append(f"{line} {worst:8.1e}" if worst is not None else f"{line} {check.get('error', '-')}")
    return lines


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("names", nargs="*", help=f"of {', '.join([*CASES, *MORE])}, or any shipped spec")
    options.add_argument("--size", type=int, default=64, help="of every dim that the shape leaves open")
    options.add_argument("--shape", default="", metavar="B=…,T=…,H=…", help="other than the usual: for few sequences "
                         "and heads the kernels are split; peers and goals are for the usual one")
    options.add_argument("--meter", type=Path, default=METER)
    options.add_argument("--jobs", type=int, default=2, help="cases at a time")
    options.add_argument("--out", type=Path, metavar="DIR", help="where kernels_SIZE.json goes")
    given = options.parse_args()
    if not (given.meter / "meter.py").exists():
        print(f"no meter at {given.meter}: nothing was measured")
        return
    known = CASES | MORE
    cases = {n: known.get(n, Case({}, {}, {})) for n in given.names or CASES}
    print(f"{'':18} {'D':>4} {'':17} {'bytes x':>7} {'goal':>5} {'peer x':>6} {'model us':>8} "
          f"{'/ peer':>7} {'goal':>5} {'launch':>7} {'regs':>4} {'spill':>6} {'shared':>7} {'error':>8}", flush=True)
    results = []
    other = {n: int(s) for n, _, s in (pair.partition("=") for pair in given.shape.split(",") if pair)}
    with ThreadPoolExecutor(given.jobs) as pool:
        for found in pool.map(lambda item: measure(*item, given.size, given.meter, other), cases.items()):
            results.append(found)
            print("\n".join(rows(found, cases[found["name"]])), flush=True)
    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / f"kernels_{given.size}.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
