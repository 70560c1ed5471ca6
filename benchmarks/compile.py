"""How long the compiler takes.

    python benchmarks/compile.py                 text to Triton source of every example; what `import mixc` adds
    python benchmarks/compile.py --kernels       also Triton's own time for each kernel, for sm_90 (minutes)

Text to source: parse, check, derive, differentiate, cut, write; the fastest of some runs, in a process that
has imported everything.  The first one in a process is shown beside it.  Imports: medians of fresh processes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
GOAL_MS, GOAL_CHUNK_MS, GOAL_IMPORT, GOAL_KERNEL = 500, 300, 0.5, 10.0


def text_to_source(rounds: int = 3, names: Iterable[str] = ()) -> list[dict[str, Any]]:
    """Milliseconds by example (none named: all); what has no kernels yet is timed as far as it goes: to the chunk
    program's backward."""
    import mixc
    from mixc.errors import SpecError
    from mixc.runtime.load import shipped

    mixc.loads("mixer warm(K) {\n in q[K]\n state S[K]\n S = 0.5 * S + q\n out o[K] = S\n}").emit()
    found = []
    for name, path in shipped().items():
        if names and name not in names:
            continue
        text, taken, why = path.read_text(), [], ""
        for _ in range(rounds):
            start = time.perf_counter()
            mixer = mixc.loads(text, name if f"mixer {name}(" in text else None)
            try:
                lines = mixer.emit().count("\n")
            except SpecError as error:
                lines, why = 0, error.diagnostics[0].code
            taken.append((time.perf_counter() - start) * 1e3)
        found.append({"name": name, "first_ms": taken[0], "ms": min(taken), "lines": lines, "left_out": why})
    return found


def imports(rounds: int = 5) -> dict[str, float]:
    """Seconds of `import torch` and of `import torch, mixc` in fresh processes, interleaved."""
    found: dict[str, list[float]] = {"torch": [], "mixc": []}
    for i in range(rounds + 1):
        for what, taken in found.items():
            code = f"import time; t = time.perf_counter(); import torch, {what}; print(time.perf_counter() - t)"
            done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
            if i:  # the first round fills the disk's cache
                taken.append(float(done.stdout))
    return {what: statistics.median(taken) for what, taken in found.items()}


def kernels(target: str, names: list[str] | None) -> list[dict[str, Any]]:
    """Seconds in Triton for every kernel of every example at the shape it is made for, registers and stack."""
    from gpu_cases import emitted

    import mixc
    from mixc.runtime.load import shipped

    found = []
    with tempfile.TemporaryDirectory() as tmp:
        environment = os.environ | {"TRITON_CACHE_DIR": tmp, "TRITON_INTERPRET": "0", "PYTHONWARNINGS": "ignore"}
        for name in names or list(shipped()):
            files = emitted(mixc.load(name), Path(tmp) / name, [target])
            if files is None:
                continue
            done = subprocess.run([sys.executable, str(HERE / "offline.py"), *map(str, files)], check=True, text=True,
                                  stdout=subprocess.PIPE, env=environment)
            for k in map(json.loads, done.stdout.splitlines()):
                said = k.get("error") or f"{k['seconds']:6.1f} s {k['registers']:4} registers {k['stack']:5} B of stack"
                print(f"{name:28} {k['kernel']:36} {said}", flush=True)
                found.append({"name": name, **k})
    return found


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--kernels", action="store_true")
    options.add_argument("--only", metavar="NAME,…", help="with --kernels: these examples")
    options.add_argument("--target", default="sm_90", help="with --kernels")
    options.add_argument("--out", type=Path, metavar="DIR", help="where compile.json goes")
    given = options.parse_args()
    report: dict[str, Any] = {"imports_s": imports(), "source": text_to_source()}
    seconds = report["imports_s"]
    print(f"import torch {seconds['torch']:.2f} s; import mixc adds {seconds['mixc'] - seconds['torch']:.2f} s "
          f"(goal {GOAL_IMPORT})")
    print(f"{'text to Triton source, ms':28} {'best':>6} {'first':>6} {'lines':>6}")
    for r in report["source"]:
        lines = f"{r['lines']:6}" if r["lines"] else "no kernels yet"
        print(f"{r['name']:28} {r['ms']:6.0f} {r['first_ms']:6.0f} {lines}")
    slow = [r["name"] for r in report["source"] if r["ms"] > GOAL_CHUNK_MS]
    print(f"over {GOAL_CHUNK_MS} ms: {', '.join(slow) or 'none'} (goal: all within {GOAL_MS})")
    if given.kernels:
        report["kernels"] = kernels(given.target, given.only.split(",") if given.only else None)
        bad = [k["kernel"] for k in report["kernels"] if "error" in k]
        print(f"kernels that do not compile: {', '.join(bad) or 'none'}")
        slow = [k["kernel"] for k in report["kernels"] if k.get("seconds", 0.0) > GOAL_KERNEL]
        print(f"kernels that Triton takes more than {GOAL_KERNEL:.0f} s for: {', '.join(slow) or 'none'}")
    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / "compile.json").write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
