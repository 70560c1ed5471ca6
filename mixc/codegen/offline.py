"""Compile a kernel for a GPU that is not there, and read what ptxas says of it."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from mixc.codegen.kernel import Kernel, safe
from mixc.codegen.library import NARROW


@dataclass(frozen=True)
class Report:
    """Registers a thread, bytes of spill (stores and loads), bytes of shared memory a block."""

    kernel: str
    target: str
    registers: int
    spill: int
    shared: int
    dots: str = ""


def load_text(text: str, name: str = "emitted") -> ModuleType:
    """Import a module from its text: Triton reads a kernel's source from its file."""
    return load_path(write_text(text, name))


def write_text(text: str, name: str = "emitted") -> Path:
    path = Path(tempfile.mkdtemp(prefix="mixc-")) / f"{name}.py"
    path.write_text(text)
    return path


def load_path(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{path.stem}_{path.parent.name[5:]}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def gpu(target: str) -> Any:
    """sm_90 or gfx942 as Triton's target."""
    from triton.backends.compiler import GPUTarget

    return GPUTarget("cuda", int(target[3:]), 32) if target.startswith("sm_") else GPUTarget("hip", target, 64)


def signature(kernel: Kernel, dtype: str) -> dict[str, str]:
    """The type of every runtime argument: tensors of the spec in `dtype`, states in fp32."""
    fine = kernel.launch.in_fp32

    def kind(a: str) -> str:
        if a in ("starts", "lengths", "segment_at", "piece_of"):
            return "constexpr"
        if a.endswith("_starts") and a.removesuffix("_starts") in kernel.launch.exact:
            return "*fp32"
        if a.removesuffix("_ptr") in fine:
            return "*fp32"
        if a.endswith(("_ptr", "_starts", "_ends", "_kept")):
            return f"*{dtype}"
        if a.endswith(("_initial", "_final", "_first", "_aside")):
            return "*fp32"
        if a in {safe(c.name) for c in kernel.launch.program.consts}:
            return "fp32"
        return "i32"
    return {a: kind(a) for a in kernel.arguments}


@dataclass(frozen=True)
class Job:
    """A kernel to compile, in plain values: a module's path, the kernel, the types of its arguments, constants by
    name, the names of arguments that are multiples of 16, warps, the architecture. `label` is for people."""

    path: str
    kernel: str
    types: dict[str, str]
    constants: dict[str, Any]
    aligned: list[str]
    warps: int
    arch: str
    label: str = ""


def job_of(path: str, kernel: Kernel, sizes: dict[str, int], blocks: dict[str, int], C: int, warps: int, stages: int, *,
           target: str = "sm_90", dtype: str = "bf16", keep: bool = True, held: bool = True, segment: int = 64, turns: int = 1, label: str = "",
           over: Iterable[str] | None = None) -> Job:
    """One kernel of an emitted module for `target`.

    Args:
        sizes: of every dim the kernel names; blocks: their blocks. dtype: of the tensors.
        over: dims that `operand` is told of (None: those of the kernel's own inverses)."""
    summed = kernel.launch.inverse_over() if over is None else over
    narrow = min((sizes[d] for d in summed if d in sizes), default=NARROW) < NARROW  # as `operand` says
    given: dict[str, Any] = {**sizes, "C": C, **{f"B{d}": blocks[d] for d in sizes}, "TURNS": turns, "SIGN": 1, "RAGGED": False,
                             "KEEP": keep, "HELD": held, "STARTED": False, "SEGMENT": segment, "HAS_INITIAL": False, "STORE_FINAL": False,
                             "OPERAND": "fp32" if narrow else dtype,
                             "PRECISION": "ieee" if not target.startswith("sm_") else "tf32" if dtype != "fp32" else "tf32x3",
                             "STAGES": stages}
    types = signature(kernel, dtype)
    aligned = [a for a, t in types.items() if t.startswith("*")]
    aligned += [a for a in types if a.endswith(("_sb", "_st", "_sh")) and a[:-3] in _wide(kernel)]
    constants: dict[str, Any] = {a: None for a, t in types.items() if t == "constexpr"}
    constants |= {a: given[a] for a in kernel.constexprs}
    types |= dict.fromkeys(kernel.constexprs, "constexpr")
    return Job(path, kernel.launch.name, types, constants, aligned, warps, target, label)


def compile_job(module: ModuleType, job: Job) -> Report:
    """Compile it, and read registers and stack off the result."""
    import triton
    import triton.language as tl
    from triton.compiler import ASTSource

    fn = getattr(module, job.kernel)
    at = {name: (i,) for i, name in enumerate(fn.arg_names)}
    constants = {at[a]: v for a, v in job.constants.items()}
    if "OPERAND" in job.constants:
        constants[at["OPERAND"]] = {"bf16": tl.bfloat16, "fp16": tl.float16, "fp32": tl.float32}[job.constants["OPERAND"]]
    source = ASTSource(fn, {a: job.types[a] for a in fn.arg_names}, constants,
                       {at[a]: [["tt.divisibility", 16]] for a in job.aligned})
    options = {"num_warps": job.warps} | ({"maxnreg": min(255, 2048 // job.warps)} if job.arch.startswith("sm_") else {})
    done = triton.compile(source, target=gpu(job.arch), options=options)
    registers, spill = _resources(done, int(job.arch[3:])) if job.arch.startswith("sm_") else (0, 0)
    dots = "wgmma" if "wgmma" in done.asm.get("ptx", "") else "mma" if "mma.sync" in done.asm.get("ptx", "") else ""
    return Report(job.kernel, job.arch, registers, spill, done.metadata.shared, dots)


def _wide(kernel: Kernel) -> set[str]:
    return {safe(d.name) for d in kernel.launch.program.ins if d.dims}


def _resources(done: Any, sm: int) -> tuple[int, int]:
    """Registers and spilled bytes: off the binary, and from another run of the assembler only where a stack says that
    something was spilled."""
    from triton import knobs

    with tempfile.TemporaryDirectory() as tmp:
        cubin = Path(tmp) / "kernel.cubin"
        cubin.write_bytes(done.asm["cubin"])
        run = subprocess.run([knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(cubin)], capture_output=True,
                             text=True, check=False)
    found = re.search(r"REG:(\d+) STACK:(\d+)", run.stdout)
    return (int(found[1]), 0) if found and found[2] == "0" else _ptxas(done, sm)


def _ptxas(done: Any, sm: int) -> tuple[int, int]:
    """Registers and spilled bytes, from the assembler that Triton itself uses for this target."""
    from triton.backends.nvidia.compiler import get_ptxas

    arch = re.search(r"\.target (sm_\w+)", done.asm["ptx"])
    with tempfile.TemporaryDirectory() as tmp:
        ptx = Path(tmp) / "kernel.ptx"
        ptx.write_text(done.asm["ptx"])
        run = subprocess.run([get_ptxas(sm).path, "-v", "--regAllocOptLevel=2", f"--gpu-name={arch[1] if arch else f'sm_{sm}'}",
                              str(ptx), "-o", str(Path(tmp) / "kernel.cubin")], capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError(f"ptxas: {run.stderr.strip()}")
    registers = re.search(r"Used (\d+) registers", run.stderr)
    spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", run.stderr)
    return int(registers[1]) if registers else 0, sum(map(int, spills))
