"""Emitted kernels compile for GPUs that are not here. Triton must not interpret: a process of its own."""

import os
import subprocess
import sys

import pytest

PROGRAM = '''
import sys
import mixc
from mixc.codegen.offline import compile_job, job_of, load_text
from mixc.codegen.triton_program import default_config, kernels
name, size, *targets = sys.argv[1:]
step = mixc.load(name).declared
made = kernels(step)
for target in targets:
    shape = {d.name: d.size or int(size) for d in step.dims}
    config = default_config(step, target, shape, "bf16")
    module = load_text(made.text(config))
    for launch, tile in config.tiles:
        kernel = made.kernel_of(launch, tile, config.segment)
        sizes = {d: shape[d] for d in kernel.dims}
        blocks = {d: tile.block(d, n) for d, n in sizes.items()}
        print(compile_job(module, job_of("", kernel, sizes, blocks, tile.chunk, tile.warps, tile.stages,
                                         turns=tile.turns, target=target, segment=config.segment)))
'''


def compiled(name, *targets, size=64):
    env = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-c", PROGRAM, name, str(size), *targets]
    run = subprocess.run(command, capture_output=True, text=True, env=env)
    assert run.returncode == 0, run.stderr[-2000:]
    return run.stdout


@pytest.mark.parametrize("size", [64, 128])
def test_simple_gla_compiles_for_sm_90_without_spills(size):
    text = compiled("simple_gla", "sm_90", size=size)
    assert text.count("wgmma") == 2 and text.count("spill=0,") == 2, text


@pytest.mark.slow
@pytest.mark.parametrize("name", ["linear_attention", "linear_attention_normalised", "retnet", "lightning_attention2",
                                  "mamba2", "norm_attention", "mlstm", "simple_gla"])
def test_every_chunk_example_compiles_everywhere(name):
    compiled(name, "sm_80", "sm_90", "sm_100", "gfx942")


HALVES = r"""
import torch, triton
import triton.language as tl
from triton.compiler import ASTSource
from mixc.codegen.library import library
from mixc.codegen.offline import gpu, load_text

module = load_text("import triton\nimport triton.language as tl\n" + library("basics") + '''
@triton.jit
def product(a_ptr, b_ptr, out_ptr):
    i, j = tl.arange(0, 16), tl.arange(0, 64)
    a, b = tl.load(a_ptr + i[:, None] * 64 + j[None, :]), tl.load(b_ptr + j[:, None] * 64 + j[None, :])
    tl.store(out_ptr + i[:, None] * 64 + j[None, :], fine_dot(a, b, tl.float32, "tf32"))
''')
for a, b in (("bf16", "bf16"), ("bf16", "fp32"), ("fp32", "bf16"), ("fp32", "fp32"), ("fp16", "fp32")):
    types = {"a_ptr": "*" + a, "b_ptr": "*" + b, "out_ptr": "*fp32"}
    ptx = triton.compile(ASTSource(module.product, types, {}), target=gpu("sm_90"), options={"num_warps": 4}).asm["ptx"]
    print(a, b, ".f32.bf16.bf16.f32" in ptx, ".f32.tf32.tf32.f32" in ptx)
"""


def test_what_is_in_bf16_is_multiplied_so():
    """TF32 keeps 10 bits of a side: one that is in bf16 is exact, and the other has 16 bits in two steps."""
    env = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONWARNINGS": "ignore"}
    run = subprocess.run([sys.executable, "-c", HALVES], capture_output=True, text=True, env=env)
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.split("\n")[:-1] == ["bf16 bf16 True False", "bf16 fp32 True False", "fp32 bf16 False True",
                                          "fp32 fp32 False True", "fp16 fp32 False True"]


def test_halves_of_a_number_keep_16_bits():
    import torch

    from mixc.codegen.library import library
    from mixc.codegen.offline import load_text

    module = load_text("import triton\nimport triton.language as tl\n" + library("basics") + """
@triton.jit
def both(x_ptr, high_ptr, low_ptr):
    i = tl.arange(0, 128)
    high, low = halves(tl.load(x_ptr + i))
    tl.store(high_ptr + i, high)
    tl.store(low_ptr + i, low)
""")
    x = torch.randn(128) * torch.logspace(-20, 20, 128)
    high, low = (torch.empty(128, dtype=torch.bfloat16) for _ in range(2))
    module.both[(1,)](x, high, low)
    assert torch.equal(high, x.bfloat16())
    assert ((high.double() + low.double() - x.double()).abs() <= 2.0**-16 * x.double().abs()).all()
