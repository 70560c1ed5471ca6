"""Emitted kernels compile for GPUs that are not here. Triton must not interpret: a process of its own."""

import os
import subprocess
import sys

import pytest

PROGRAM = '''
import sys
import mixc
from mixc.codegen.module import Config, _Module
from mixc.codegen.offline import compile_kernel, load_text
from mixc.passes.chunk import chunk
from mixc.passes.classify import classify
from mixc.passes.differentiate import differentiate
name, *targets = sys.argv[1:]
forward = chunk(classify(mixc.load(name).declared))
made = _Module(forward, differentiate(forward), Config())
module = load_text(made.text())
for target in targets:
    for kernel in (made.fwd, made.bwd):
        sizes = {d: 64 for d in kernel.dims}
        report = compile_kernel(module, kernel, sizes, sizes, 32, 8, 1, target=target)
        print(report)
'''


def compiled(name, *targets):
    env = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONWARNINGS": "ignore"}
    run = subprocess.run([sys.executable, "-c", PROGRAM, name, *targets], capture_output=True, text=True, env=env)
    assert run.returncode == 0, run.stderr[-2000:]
    return run.stdout


def test_simple_gla_compiles_for_sm_90_without_spills():
    text = compiled("simple_gla", "sm_90")
    assert text.count("wgmma") == 2 and text.count("spill=0") == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["linear_attention", "linear_attention_normalised", "retnet", "lightning_attention2",
                                  "mamba2", "norm_attention", "mlstm", "simple_gla"])
def test_every_chunk_example_compiles_everywhere(name):
    compiled(name, "sm_80", "sm_90", "sm_100", "gfx942")
