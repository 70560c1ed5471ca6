"""Functional hashing over the example set: collisions, splits and times.

    python benchmarks/hashing.py --count 1000          random rewritings, and as many disturbed specs
    python benchmarks/hashing.py --times               the hash of every example, and of wide specs
    python benchmarks/hashing.py --merges              what merging saves in the chunk programs of every example

A split: a rewritten spec whose hash is another one.  A collision: a disturbed spec (an out or a state changed by one
part in a million, a gradient cut, a default or a range changed) or another example with the same hash.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections import Counter
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import mixc
from mixc.ir.node import postorder
from mixc.ir.program import Program
from mixc.runtime.load import shipped
from tests.hashing.rewrite import disturbed, read, rewritten, text

WIDE = {
    "8 inputs, all exchangeable": "mixer w(D) {\n in " + ", ".join(f"x{i}[D]" for i in range(8))
    + "\n out o[D] = " + " * ".join(f"x{i}" for i in range(8)) + "\n}\n",
    "12 inputs, all exchangeable": "mixer w(D) {\n in " + ", ".join(f"x{i}[D]" for i in range(12))
    + "\n out o[D] = " + " + ".join(f"x{i}" for i in range(12)) + "\n}\n",
    "12 inputs, six exchangeable pairs": "mixer w(D) {\n in " + ", ".join(f"x{i}[D]" for i in range(12))
    + "\n out o[D] = " + " + ".join(f"x{i} * x{i + 1}" for i in range(0, 12, 2)) + "\n}\n",
    "12 inputs in a ring": "mixer w(D) {\n in " + ", ".join(f"x{i}[D]" for i in range(12))
    + "\n out o[D] = " + " + ".join(f"x{i} * x{(i + 1) % 12}" for i in range(12)) + "\n}\n",
    "12 inputs, three matrix states": "mixer w(K, V) {\n in " + ", ".join(f"q{i}[K], k{i}[K], v{i}[V]" for i in "abc")
    + "\n in ga where ga <= 0\n in gb where gb <= 0\n in gc where gc <= 0\n state Sa[K, V], Sb[K, V], Sc[K, V]\n"
    + "".join(f" S{i} = exp(g{i}) * S{i} + k{i} * v{i}\n" for i in "abc")
    + " out o[V] = qa @ Sa + sigmoid(qb @ Sb) * (qc @ Sc)\n}\n",
}


def hashes() -> dict[str, str]:
    return {name: mixc.load(name).hash for name in shipped()}


def rewritings(count: int, seed: int) -> None:
    base, names = hashes(), sorted(shipped())
    trees = {name: read(path.read_text()) for name, path in shipped().items()}
    splits, collisions, owner = Counter[str](), Counter[str](), {h: name for name, h in base.items()}
    start, rng = time.perf_counter(), Random(seed)
    for i in range(count):
        name = rng.choice(names)
        own = Random(f"{seed}/{i}")
        if mixc.loads(text(rewritten(trees[name], own))).hash != base[name]:
            splits[name] += 1
            print(f"split: {name}, seed {seed}/{i}", flush=True)
        other, how = disturbed(trees[name], own)
        got = mixc.loads(text(rewritten(other, own))).hash
        if got in owner:
            collisions[name] += 1
            print(f"collision: {name} with {owner[got]}, {how}, seed {seed}/{i}", flush=True)
        if (i + 1) % 100 == 0 or i + 1 == count:
            print(f"{i + 1} rewritten: {splits.total()} splits; {i + 1} disturbed: {collisions.total()} collisions; "
                  f"{(time.perf_counter() - start) / (2 * i + 2) * 1e3:.0f} ms a spec, parsing included", flush=True)
    same = len(base) - len(set(base.values()))
    print(f"collisions among the {len(names)} examples themselves: {same}")


def times() -> None:
    specs = {name: mixc.load(name) for name in shipped()} | {name: mixc.loads(t) for name, t in WIDE.items()}
    mixc.loads(next(iter(WIDE.values()))).hash  # tables of constants are made once  # noqa: B018
    for name, m in specs.items():
        start, cpu = time.perf_counter(), time.process_time()
        h = m.hash
        cpu, start = time.process_time() - cpu, time.perf_counter() - start
        print(f"{h}  {len(m.declared.ins) + len(m.declared.params):3d} inputs  {cpu * 1e3:6.0f} ms of CPU, "
              f"{start * 1e3:6.0f} ms  {name}")


def merged() -> None:
    """Values that rules do not find equal and probes do; per token of a chunk of 64 rows, every free dim being 64."""
    from mixc.passes.chunk import chunk
    from mixc.passes.classify import classify
    from mixc.passes.differentiate import differentiate
    from mixc.passes.merge import merge, merges
    from mixc.passes.simplify import simplify

    print(f"{'':30s}{'':10s} merges  values          bytes formed (fp32)   operations       CPU time")
    for name in shipped():
        m = mixc.load(name)
        if not m.form or set(m.form.values()) - {"chunk", "scan"}:
            continue
        forward = chunk(classify(m.declared))
        for what, p in (("forward", forward), ("backward", differentiate(forward))):
            p, start = simplify(p), time.process_time()
            found = merges(p)
            spent = time.process_time() - start
            if found:
                (a, b), (c, d) = _work(p), _work(merge(p))
                print(f"{name:30s}{what:10s} {len(found):3d}  {len(list(postorder(p.values()))):6d} values  "
                      f"{4 * a:9.0f} -> {4 * c:9.0f} {b:8.0f} -> {d:8.0f} {spent * 1e3:6.0f} ms")


def _work(p: Program) -> tuple[float, float]:
    """Entries formed, and additions, multiplications and functions, per token."""
    sizes = {d.name: d.size or 64 for d in p.dims}
    entries = operations = 0.0
    for n in postorder(p.values()):
        if n.args and n.op not in ("rename", "expand", "live", "pick"):
            own = math.prod(sizes.get(d, 64) for d in n.dims) / 64
            summed = {d for a in n.args for d in a.dims} - set(n.dims)
            entries += own
            operations += own * math.prod(sizes.get(d, 64) for d in summed) * (2 if n.op == "contract" else 1)
    return entries, operations


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--times", action="store_true")
    parser.add_argument("--merges", action="store_true")
    args = parser.parse_args()
    merged() if args.merges else times() if args.times else rewritings(args.count, args.seed)
