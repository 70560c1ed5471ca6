"""Published limits of GPUs: what a kernel may use, and what the hardware gives at best.

Peaks are dense (no sparsity) in TFLOP/s, with fp32 accumulation; bandwidth in GB/s; memory in bytes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

KB, MB = 1024, 1024 * 1024


@dataclass(frozen=True)
class Target:
    """One GPU.

    Attributes:
        arch: the name that Triton compiles for.
        sms: multiprocessors (compute units) enabled.
        registers_thread, registers_sm: 32-bit registers at most a thread, and in an SM.
        shared_block, shared_sm: shared memory (LDS) at most a block, and in an SM.
        warps, blocks, warp: resident warps and blocks an SM, threads a warp.
        special: exp, log, sin, ... results a clock and an SM.
        clock: MHz, the boost clock that the peaks assume.
        tensor: shapes of the tensor-core (matrix) instructions, rows x columns x summed, by width of the operands.
        full_rows: the fewest rows of a product that reach the peak; with fewer other instructions are used.
        sources: where the numbers were published, and which.
    """

    name: str
    title: str
    arch: str
    sms: int
    registers_thread: int
    registers_sm: int
    shared_block: int
    shared_sm: int
    warps: int
    blocks: int
    warp: int
    l2: int
    bandwidth: float
    peaks: MappingProxyType[str, float]
    special: int
    clock: int
    tensor: str
    full_rows: int
    sources: tuple[str, ...]

    def __hash__(self) -> int:
        return hash((self.name, self.arch, self.sms, self.l2, self.bandwidth))


def _peaks(**tflops: float) -> MappingProxyType[str, float]:
    return MappingProxyType(tflops)


_CUDA = ("CUDA C++ Programming Guide, tables of technical specifications per compute capability (registers, shared "
         "memory, warps, blocks) and of arithmetic throughput (special functions)")
_PTX = "PTX ISA, matrix multiply-accumulate instructions: shapes"

_MMA = "mma 16x8x16 (16 bit), 16x8x8 (tf32)"
_WGMMA = "wgmma 64xNx16 (16 bit), 64xNx8 (tf32), N = 8 ... 256; mma below 64 rows"
_TCGEN05 = "tcgen05 64xNx16 or 128xNx16 (16 bit), K = 8 (tf32), N = 8 ... 256; mma below 64 rows"
_MFMA = "mfma 16x16x16 or 32x32x8 (16 bit), 16x16x8 (xf32)"

TARGETS: dict[str, Target] = {t.name: t for t in (
    Target("a100", "NVIDIA A100 SXM 80 GB", "sm_80", 108, 255, 65536, 163 * KB, 164 * KB, 64, 32, 32, 40 * MB, 2039,
           _peaks(fp64=19.5, fp32=19.5, tf32=156, bf16=312, fp16=312, int8=624), 16, 1410, _MMA, 16,
           ("A100 Tensor Core GPU datasheet (2021): bandwidth, peaks",
            "A100 Tensor Core GPU Architecture whitepaper: SMs, L2, clock", _CUDA, _PTX)),
    Target("h100", "NVIDIA H100 SXM", "sm_90", 132, 255, 65536, 227 * KB, 228 * KB, 64, 32, 32, 50 * MB, 3350,
           _peaks(fp64=67, fp32=67, tf32=494.7, bf16=989.4, fp16=989.4, fp8=1978.9), 16, 1830, _WGMMA, 64,
           ("H100 Tensor Core GPU datasheet: bandwidth, peaks",
            "H100 Tensor Core GPU Architecture whitepaper: SMs, L2, clock", _CUDA, _PTX)),
    Target("h200", "NVIDIA H200 SXM", "sm_90", 132, 255, 65536, 227 * KB, 228 * KB, 64, 32, 32, 50 * MB, 4800,
           _peaks(fp64=67, fp32=67, tf32=494.7, bf16=989.4, fp16=989.4, fp8=1978.9), 16, 1830, _WGMMA, 64,
           ("H200 Tensor Core GPU datasheet: bandwidth, peaks", "the rest as H100", _CUDA, _PTX)),
    Target("b200", "NVIDIA B200 (HGX)", "sm_100", 148, 255, 65536, 227 * KB, 228 * KB, 64, 32, 32, 126 * MB, 8000,
           _peaks(fp64=37, fp32=75, tf32=1125, bf16=2250, fp16=2250, fp8=4500), 16, 1965, _TCGEN05, 64,
           ("HGX B200 datasheet (per GPU, half of the sparse figures): peaks, bandwidth",
            "SMs, L2 and clock as the device reports them: no datasheet states them", _CUDA, _PTX)),
    Target("rtx4090", "NVIDIA GeForce RTX 4090", "sm_89", 128, 255, 65536, 99 * KB, 100 * KB, 48, 24, 32, 72 * MB, 1008,
           _peaks(fp64=1.29, fp32=82.6, tf32=82.6, bf16=165.2, fp16=165.2, fp8=330.3), 16, 2520, _MMA, 16,
           ("Ada GPU Architecture whitepaper, appendix A: SMs, L2, clock, bandwidth, peaks", _CUDA, _PTX)),
    Target("mi300x", "AMD Instinct MI300X", "gfx942", 304, 512, 131072, 64 * KB, 64 * KB, 32, 32, 64, 32 * MB, 5300,
           _peaks(fp64=163.4, fp32=163.4, tf32=653.7, bf16=1307.4, fp16=1307.4, fp8=2614.9), 16, 2100, _MFMA, 16,
           ("Instinct MI300X data sheet: compute units, clock, bandwidth, peaks (matrix)",
            "CDNA 3 architecture whitepaper: registers, LDS, waves, 8 x 4 MB L2 (behind it 256 MB of Infinity Cache)",
            "CDNA 3 ISA guide: 512 registers a thread, transcendentals at a quarter rate")),
)}


def find(name: str | Target) -> Target:
    """The target of a name ("h100"), of an architecture ("sm_90": the first that has it), of a form (a path that ends
    in .json, see `form`), or "auto": the GPU of this machine; of a target itself.

    Raises:
        KeyError: no such target, no GPU here, or a form that is not complete; the message says which."""
    if isinstance(name, Target):
        return name
    if name == "auto":
        return here()
    if name.endswith(".json"):
        return read(Path(name))
    key = name.lower().replace(" ", "").replace("-", "")
    if key in TARGETS:
        return TARGETS[key]
    for target in TARGETS.values():
        if target.arch == key:
            return target
    raise KeyError(f"no target `{name}`; there are {', '.join(TARGETS)}, auto, or a form of your own (a .json file)")


def form(target: Target) -> dict[str, Any]:
    """A target as a file holds it: change name, title and numbers, say where they are from, and use its path."""
    return {f.name: dict(target.peaks) if f.name == "peaks" else getattr(target, f.name) for f in fields(Target)}


def read(path: Path) -> Target:
    """The target of a form."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise KeyError(f"{path}: {error}") from None
    wanted = {f.name for f in fields(Target)}
    if not isinstance(found, dict) or set(found) != wanted:
        missing = wanted - set(found) if isinstance(found, dict) else wanted
        unknown = set(found) - wanted if isinstance(found, dict) else set()
        told = [f"{what} {', '.join(sorted(x))}" for what, x in (("missing", missing), ("unknown", unknown)) if x]
        raise KeyError(f"{path}: {', '.join(told)}; `mixc targets --form h100` prints a whole one")
    wrong = [f"`{what}`: expected {expected}, got {value!r:.40}" for what, value, expected in _wrong(found)]
    if wrong:
        raise KeyError(f"{path}: {'; '.join(wrong)}")
    return Target(**{**found, "peaks": MappingProxyType(found["peaks"]), "sources": tuple(found["sources"])})


def _wrong(found: dict[str, Any]) -> Iterator[tuple[str, Any, str]]:
    """(field, what stands there, what was expected) of a form's entries that nothing could be planned with."""
    for f in fields(Target):
        value = found[f.name]
        if f.type == "int" and not (type(value) is int and value > 0):
            yield f.name, value, "a whole number from 1 on"
        elif f.type == "str" and not (isinstance(value, str) and value):
            yield f.name, value, "words"
    if not _positive(found["bandwidth"]):
        yield "bandwidth", found["bandwidth"], "GB/s, a number above 0"
    peaks = found["peaks"] if isinstance(found["peaks"], dict) else {}
    if not {"fp32", "tf32", "bf16", "fp16"} <= set(peaks) or not all(map(_positive, peaks.values())):
        yield "peaks", found["peaks"], "TFLOP/s above 0 of fp32, tf32, bf16 and fp16 at least"
    if not (isinstance(found["sources"], list) and all(isinstance(s, str) for s in found["sources"])):
        yield "sources", found["sources"], "a list of words"
    if isinstance(found["arch"], str) and not re.fullmatch(r"sm_[1-9]\d+|gfx[0-9a-f]+", found["arch"]):
        yield "arch", found["arch"], "sm_ or gfx and a number, as Triton compiles for"
    if found["warp"] not in (32, 64):
        yield "warp", found["warp"], "32 or 64"


def _positive(x: Any) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool) and 0 < x < math.inf


def here(device: Any = 0) -> Target:
    """A GPU of this machine: the row of its name or architecture, with what the device itself reports.

    Args:
        device: as torch names it.
    Raises:
        KeyError: there is none, or no row for it."""
    import torch

    if not torch.cuda.is_available():
        raise KeyError("`auto` reads the GPU of this machine, and there is none; name one: " + ", ".join(TARGETS))
    p: Any = torch.cuda.get_device_properties(device)
    return reported(p, arch_of(p))


def arch_of(p: Any) -> str:
    """sm_90 or gfx942, of a device's properties."""
    import torch

    return getattr(p, "gcnArchName", "").split(":")[0] if torch.version.hip else f"sm_{p.major}{p.minor}"


def reported(p: Any, arch: str) -> Target:
    """The row that fits a device's name (else its architecture), with the limits that the device reports."""
    same = [t for t in TARGETS.values() if t.arch == arch]
    if not same:
        raise KeyError(f"no table of limits for {p.name} ({arch}) yet: fill in a form (`mixc targets --form h100`)")
    words = p.name.lower().replace(" ", "").replace("-", "")
    row = next((t for t in same if t.name in words), same[0])
    own = {"sms": p.multi_processor_count, "l2": getattr(p, "L2_cache_size", 0),
           "shared_block": getattr(p, "shared_memory_per_block_optin", 0),
           "shared_sm": getattr(p, "shared_memory_per_multiprocessor", 0),
           "registers_sm": getattr(p, "regs_per_multiprocessor", 0)}
    changed = {k: v for k, v in own.items() if v and v != getattr(row, k)}
    if not changed:
        return row
    return replace(row, name=row.name if row.name in words else words, title=p.name, **changed,
                   sources=(*row.sources, f"reported by the device: {', '.join(changed)}"))
