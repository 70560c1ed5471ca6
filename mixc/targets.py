"""Published limits of GPUs: what a kernel may use, and what the hardware gives at best.

Peaks are dense (no sparsity) in TFLOP/s, with fp32 accumulation; bandwidth in GB/s; memory in bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

KB, MB = 1024, 1024 * 1024


@dataclass(frozen=True)
class Target:
    """One GPU.

    Attributes:
        arch: the name that Triton compiles for.
        sms: multiprocessors (compute units) enabled.
        registers_thread, registers_sm: 32-bit registers at most a thread, and in an SM.
        shared_block, shared_sm: shared memory (LDS) at most a block, and in an SM.
        warps, warp: resident warps an SM, threads a warp.
        special: exp, log, sin, ... results a clock and an SM.
        clock: MHz, the boost clock that the peaks assume.
        sources: where the numbers were published.
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
    warp: int
    l2: int
    bandwidth: float
    peaks: MappingProxyType[str, float]
    special: int
    clock: int
    sources: tuple[str, ...]


def _peaks(**tflops: float) -> MappingProxyType[str, float]:
    return MappingProxyType(tflops)


_CUDA = "CUDA C++ Programming Guide, table of technical specifications per compute capability"

TARGETS: dict[str, Target] = {t.name: t for t in (
    Target("a100", "NVIDIA A100 SXM 80 GB", "sm_80", 108, 255, 65536, 163 * KB, 164 * KB, 64, 32, 40 * MB, 2039,
           _peaks(fp64=19.5, fp32=19.5, tf32=156, bf16=312, fp16=312, int8=624), 16, 1410,
           ("A100 Tensor Core GPU datasheet (2021): bandwidth, peaks",
            "A100 Tensor Core GPU Architecture whitepaper: SMs, L2, clock", _CUDA)),
    Target("h100", "NVIDIA H100 SXM", "sm_90", 132, 255, 65536, 227 * KB, 228 * KB, 64, 32, 50 * MB, 3350,
           _peaks(fp64=67, fp32=67, tf32=494.7, bf16=989.4, fp16=989.4, fp8=1978.9), 16, 1830,
           ("H100 Tensor Core GPU datasheet: bandwidth, peaks",
            "H100 Tensor Core GPU Architecture whitepaper: SMs, L2, clock", _CUDA)),
    Target("h200", "NVIDIA H200 SXM", "sm_90", 132, 255, 65536, 227 * KB, 228 * KB, 64, 32, 50 * MB, 4800,
           _peaks(fp64=67, fp32=67, tf32=494.7, bf16=989.4, fp16=989.4, fp8=1978.9), 16, 1830,
           ("H200 Tensor Core GPU datasheet: bandwidth, peaks", "the rest as H100", _CUDA)),
    Target("b200", "NVIDIA B200 (HGX)", "sm_100", 148, 255, 65536, 227 * KB, 228 * KB, 64, 32, 126 * MB, 8000,
           _peaks(fp64=37, fp32=75, tf32=1125, bf16=2250, fp16=2250, fp8=4500), 16, 1965,
           ("HGX B200 datasheet (per GPU, half of the sparse figures): peaks, bandwidth",
            "SMs, L2 and clock as the device reports them: no datasheet states them", _CUDA)),
    Target("rtx4090", "NVIDIA GeForce RTX 4090", "sm_89", 128, 255, 65536, 99 * KB, 100 * KB, 48, 32, 72 * MB, 1008,
           _peaks(fp64=1.29, fp32=82.6, tf32=82.6, bf16=165.2, fp16=165.2, fp8=330.3), 16, 2520,
           ("Ada GPU Architecture whitepaper, appendix A: SMs, L2, clock, bandwidth, peaks", _CUDA)),
    Target("mi300x", "AMD Instinct MI300X", "gfx942", 304, 512, 131072, 64 * KB, 64 * KB, 32, 64, 32 * MB, 5300,
           _peaks(fp64=163.4, fp32=163.4, tf32=653.7, bf16=1307.4, fp16=1307.4, fp8=2614.9), 16, 2100,
           ("Instinct MI300X data sheet: compute units, clock, bandwidth, peaks (matrix)",
            "CDNA 3 architecture whitepaper: registers, LDS, waves, 8 x 4 MB L2 (behind it 256 MB of Infinity Cache)",
            "CDNA 3 ISA guide: 512 registers a thread, transcendentals at a quarter rate")),
)}


def find(name: str) -> Target:
    """The target of a name ("h100") or of an architecture ("sm_90": the first that has it).

    Raises:
        KeyError: no such target; the message lists those there are."""
    key = name.lower().replace(" ", "").replace("-", "")
    if key in TARGETS:
        return TARGETS[key]
    for target in TARGETS.values():
        if target.arch == key:
            return target
    raise KeyError(f"no target `{name}`; there are {', '.join(TARGETS)}")
