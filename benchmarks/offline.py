"""Compile what a call of an emitted module would launch, for GPUs that need not be here; torch and triton only.

    python benchmarks/offline.py MODULE.py JOB.json     one line of JSON a kernel and target

Launches are recorded instead of run, so any triton that can compile them will do: the version matrix runs
this under each.  JOB: {"name", "args": [{"name", "role", "dims", "kind"}], "states": {name: dims}, "shapes":
[{"B", "T", "H", dims...}], "dtype", "targets"}.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

_TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.float64: "fp64",
          torch.int64: "i64", torch.int32: "i32", torch.int8: "i8", torch.uint8: "u8", torch.bool: "i1"}
_OPTIONS = ("num_warps", "num_stages", "num_ctas", "maxnreg")


@dataclass(frozen=True)
class Launch:
    """A kernel with its arguments by name and its options."""

    fn: Any
    given: dict[str, Any]
    options: dict[str, int]

    def source(self) -> ASTSource:
        """As Triton itself would specialise it: on None, on 1, on what 16 divides."""
        types, constants, attrs = {}, {}, {}
        for i, p in enumerate(self.fn.params):
            x = self.given[p.name]
            if p.is_constexpr or x is None or (type(x) is int and x == 1 and not p.do_not_specialize):
                types[p.name], constants[(i,)] = "constexpr", x
                continue
            types[p.name] = _type(x)
            size = x.data_ptr() if isinstance(x, torch.Tensor) else x if type(x) is int else 1
            if size % 16 == 0 and not p.do_not_specialize:
                attrs[(i,)] = [["tt.divisibility", 16]]
        return ASTSource(self.fn, types, constants, attrs)

    def key(self) -> str:
        s = self.source()
        return repr((self.fn.__name__, s.signature, s.constants, s.attrs, self.options))


def _type(x: Any) -> str:
    if isinstance(x, torch.Tensor):
        return "*" + _TYPES[x.dtype]
    if isinstance(x, bool):
        return "i1"
    if isinstance(x, int):
        return "i32" if -2**31 <= x < 2**31 else "i64"
    return "fp32"


def recorded(call: Callable[[], Any]) -> list[Launch]:
    """The launches of `call`, none of which happens: what they would have written stays as it was."""
    found: list[Launch] = []

    def record(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        own = {n: options.pop(n) for n in _OPTIONS if n in options}
        bound = inspect.signature(self.fn).bind(*args, **options)
        bound.apply_defaults()
        found.append(Launch(self, dict(bound.arguments), own))

    original, JITFunction.run = JITFunction.run, record
    try:
        call()
    finally:
        JITFunction.run = original
    return found


def as_there(launch: Launch, target: str) -> Launch:
    """What a call on the target's own machine launches: a torch for AMD knows no TF32, and no limit on registers."""
    if target.startswith("sm_"):
        return launch
    options = {n: x for n, x in launch.options.items() if n != "maxnreg"}
    return Launch(launch.fn, launch.given | ({"PRECISION": "ieee"} if "PRECISION" in launch.given else {}), options)


def compiled(launch: Launch, target: str) -> dict[str, Any]:
    """Seconds in Triton, registers a thread, bytes of stack (what spilled), shared memory."""
    launch = as_there(launch, target)
    gpu = GPUTarget("cuda", int(target[3:]), 32) if target.startswith("sm_") else GPUTarget("hip", target, 64)
    start = time.perf_counter()
    done = triton.compile(launch.source(), target=gpu, options=launch.options)
    found = {"kernel": launch.fn.__name__, "target": target, "seconds": time.perf_counter() - start,
             "shared": done.metadata.shared, "registers": 0, "stack": 0}
    return found | (_usage(done.asm["cubin"]) if "cubin" in done.asm else {})


def _usage(cubin: bytes) -> dict[str, int]:
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([str(tools / "cuobjdump"), "-res-usage", file.name], capture_output=True, text=True,
                              check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    assert found, text
    return {"registers": int(found[1]), "stack": int(found[2])}


def load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def launches(module: Any, job: dict[str, Any]) -> Iterator[Launch]:
    """Forward and backward at every shape, dense and afresh, and ragged between states: each kernel once."""
    dtype = getattr(torch, {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}[job["dtype"]])
    seen = set()
    for shape in job["shapes"]:
        B, T, H = (shape[n] for n in "BTH")

        def call(ragged: bool) -> None:
            lead = {"in": [1, B * T, H] if ragged else [B, T, H], "param": [H]}  # noqa: B023
            x = [torch.zeros([*lead[a["role"]], *(shape[d] for d in a["dims"])],  # noqa: B023
                             dtype=torch.complex64 if a["kind"] == "complex" else dtype).requires_grad_()
                 for a in job["args"]]
            options: dict[str, Any] = {}
            if ragged:
                start = {n: torch.zeros(B, H, *(shape[d] for d in dims)).requires_grad_()  # noqa: B023
                         for n, dims in job["states"].items()}
                options = dict(cu_seqlens=torch.arange(B + 1) * T, initial_state=start, output_final_state=True)  # noqa: B023
            o, state = getattr(module, job["name"])(*x, **options)
            results = [*([o] if isinstance(o, torch.Tensor) else o), *(state or {}).values()]
            ends = [y for y in results if y.requires_grad]
            torch.autograd.backward(ends, list(map(torch.zeros_like, ends)))

        for ragged in (False, True):
            for launch in recorded(lambda: call(ragged)):  # noqa: B023
                if launch.key() not in seen:
                    seen.add(launch.key())
                    yield launch


def main() -> None:
    module, job = load(Path(sys.argv[1])), json.loads(Path(sys.argv[2]).read_text())
    for launch in launches(module, job):
        for target in job["targets"]:
            try:
                line = compiled(launch, target)
            except Exception as error:
                text = f"{type(error).__name__}: {str(error).strip()[-600:]}"
                line = {"kernel": launch.fn.__name__, "target": target, "error": text}
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
