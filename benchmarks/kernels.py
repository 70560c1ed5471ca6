"""Emitted kernels under the meter: bytes over the compulsory ones, modelled time against fla's, registers, spills.

    python benchmarks/kernels.py [--size 64] [--meter DIR]

The meter (a tool of ours that counts in the interpreter and compiles for sm_90; no GPU) is looked for in
`../shared/tools/meter`; without it this says so and stops.  "incl. torch" counts torch operations too.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import mixc

# spec -> fla's case, whose inputs, dtypes and compulsory bytes are taken over
CASES = {"simple_gla": "fla_simple_gla"}

CASE = '''
VARIANTS = ['fwd', 'fwdbwd']
import torch
from _fla import make_case, recur, qkv
from meter import rand
import emitted
emitted.INTERPRETED = False  # the meter's own interpreter multiplies bf16 correctly

def make(s):
    t = dict(**qkv(s), g=rand(s['B'], s['T'], s['H'], dtype=torch.float32, kind='logsigmoid', scale=0.2))
    return make_case('mixc.{name}', s, lambda q, k, v, g: emitted.{name}(q, k, v, g)[0], t, recur)
'''


def run(name: str, size: int, meter: Path) -> list[dict[str, object]]:
    """The meter's rows for one emitted module."""
    with tempfile.TemporaryDirectory() as tmp:
        folder = Path(tmp)
        (folder / "emitted.py").write_text(mixc.load(name).emit(shape=dict(K=size, V=size)))
        paths = f"import sys\nsys.path[:0] = [{str(folder)!r}, {str(meter / 'cases')!r}]\n"
        (folder / "case.py").write_text(paths + CASE.format(name=name))
        out = folder / "out.json"
        subprocess.run([sys.executable, str(meter / "meter.py"), "run", str(folder / "case.py"), "--small", f"D={size}",
                        "--out", str(out)], check=True, cwd=folder)
        found = json.loads(out.read_text())
    return found if isinstance(found, list) else found.get("results", [found])


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    options.add_argument("--size", type=int, default=64, help="K and V")
    options.add_argument("--meter", type=Path, default=Path(__file__).parents[2] / "shared" / "tools" / "meter")
    given = options.parse_args()
    if not (given.meter / "meter.py").exists():
        print(f"no meter at {given.meter}: nothing was measured")
        return
    for name in CASES:
        run(name, given.size, given.meter)


if __name__ == "__main__":
    main()
