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
