"""What stands beside an emitted module: a script that checks it where mixc is not, and a README."""

from __future__ import annotations

import sys

import torch

from mixc.codegen.eager import loop_text
from mixc.codegen.names import named
from mixc.ir.program import Program
from mixc.runtime.draw import is_gate, limits

Tensor = torch.Tensor

_SCRIPT = '''"""Checks {module}.py against the step of its spec, run token by token in fp64: python {file}

Needs torch and triton only.  Without a GPU the kernels are interpreted: small, slow, and in fp32 only.
"""

import os
import sys
from math import inf, nan

import torch
import torch.nn.functional as F

ON_GPU = torch.cuda.is_available()
if not ON_GPU:
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before triton is imported

import {module} as emitted

DEVICE, REAL = "cuda" if ON_GPU else "cpu", torch.float64
SHAPE = dict(B=2, T={rows} if ON_GPU else 37, H=2)
SIZES = {sizes}
# name, role, dims, complex, low, high, (dims, bound) of norms, is it a gate
ARGUMENTS = {arguments}
OUTS = {outs}
STARTS = {starts}
{constants}

{loop}

def drawn(role, dims, is_complex, low, high, norms):
    lead = [SHAPE["B"], SHAPE["T"], SHAPE["H"]] if role == "in" else [SHAPE["H"]]
    size = [*lead, *(SIZES[d] for d in dims)]
    x = torch.randn(size, dtype=torch.complex64 if is_complex else torch.float32)
    if low > -inf and high < inf:
        x = low + (high - low) * (0.01 + 0.98 * torch.rand(size))
    elif low > -inf or high < inf:
        x = low + x.abs() if low > -inf else high - x.abs()
    elif not norms:
        for d in dims:
            x = x / SIZES[d] ** 0.5
    for over, bound in norms:  # over no dims: of every entry
        axes = [len(lead) + dims.index(d) for d in over]
        size = torch.linalg.vector_norm(x, dim=axes, keepdim=True) if over else x.abs()
        x = x / (size / (0.99 * bound)).clamp_min(1.0)
    return x


def ratio(got, want, floor=0.0):
    """RMS of the error over RMS of what is right."""
    want = want.detach()
    error, size = (float(x.abs().square().mean().sqrt()) for x in (got.detach().to(want) - want, want))
    return 0.0 if error == 0 else error / max(size, floor, 1e-300)


def compared(dtype):
    """Name, error, bound of every out and gradient."""
    torch.manual_seed(0)
    x, exact = [], []
    for _, role, *how, _ in ARGUMENTS:
        value = drawn(role, *how).to(DEVICE)
        value = value if value.is_complex() else value.to(dtype)
        x.append(value.requires_grad_())
        wide = value.detach().to(torch.complex128 if value.is_complex() else REAL)
        exact.append((wide if role == "in" else wide[None]).requires_grad_())
    o, _ = emitted.{function}(*x)
    outs = [o] if isinstance(o, torch.Tensor) else list(o)
    starts = [(torch.tensor(s), sizes) for s, sizes in STARTS.values()]
    states = [s.to(DEVICE, torch.complex128 if s.is_complex() else REAL).expand(SHAPE["B"], SHAPE["H"], *sizes)
              for s, sizes in starts]
    want = loop(*exact, *states)
    ends = [torch.randn_like(y) for y in outs]
    known = [i for i, y in enumerate(want) if y.requires_grad]  # an out that is a condition has no derivative
    if known:
        torch.autograd.backward([outs[i] for i in known], [ends[i] for i in known])
        torch.autograd.backward([want[i] for i in known], [ends[i].to(want[i]) for i in known])
    wide = dtype == torch.float32
    found = [(n, ratio(got, right), 1e-4 if wide else 0.005) for n, got, right in zip(OUTS, outs, want)]
    grads = [(a, t.grad, right.grad if a[1] == "in" else right.grad[0]) for a, t, right in zip(ARGUMENTS, x, exact)
             if t.grad is not None and right.grad is not None]
    floor = 1e-4 * max((float(right.abs().square().mean().sqrt()) for _, _, right in grads), default=0.0)
    return found + [("d" + a[0], ratio(got, right, floor), 1e-4 if wide else 0.02 if a[-1] else 0.008)
                    for a, got, right in grads]


def main():
    bad = 0
    for dtype in (torch.float32, torch.bfloat16) if ON_GPU else (torch.float32,):
        for name, error, bound in compared(dtype):
            bad += not error <= bound
            print(f"{{str(dtype)[6:]:9}} {{name:8}} relative error {{error:.1e}}, at most {{bound:.0e}}"
                  + ("" if error <= bound else "  TOO FAR"))
    print("{name}: " + ("agrees with its step" if not bad else "DISAGREES with its step"))
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
'''


def module_name(mixer: str) -> str:
    """What the module is imported as: `queue_` for what would stand before a module that torch imports itself."""
    return mixer + "_" if mixer in sys.stdlib_module_names or mixer in ("torch", "triton", "numpy") else mixer


def check_script(step: Program, sizes: dict[str, int], consts: dict[str, float], file: str) -> str:
    """The text of the script, for these sizes of dims (small ones: the loop runs token by token)."""
    loop, constants, starts = loop_text(step, sizes, consts, torch.float64)
    arguments = []
    for d in (*step.ins, *step.params):
        lim = limits(d, sizes, consts)
        within = lim.low, lim.high, [(over, bound) for over, bound, _ in lim.norms]
        arguments.append((d.name, d.role, d.dims, d.kind == "complex", *within, is_gate(d)))
    begin = {n: (_entries(s), tuple(sizes[x] for x in step.decl(n).dims)) for n, s in starts.items()}
    return _SCRIPT.format(
        name=step.name, module=module_name(step.name), function=named(step).name, file=file,
        rows=300, sizes=sizes, outs=[d.name for d in step.outs], starts=begin, loop=loop,
        arguments="[\n" + "".join(f"    {a!r},\n" for a in arguments) + "]",
        constants="".join(f"{n} = {_literal(x)}\n" for n, x in constants.items()))


def _entries(x: Tensor) -> object:
    """As lists; one number where all are the same."""
    first = x.flatten()[0]
    return first.item() if bool((x == first).all()) else x.tolist()


def _literal(x: Tensor) -> str:
    kind = "bool" if x.dtype == torch.bool else "complex128" if x.is_complex() else "float64"
    return f"torch.tensor({x.tolist()!r}, dtype=torch.{kind}, device=DEVICE)"


def readme(step: Program, documentation: str, forms: dict[str, tuple[str, str]], facts: dict[str, str]) -> str:
    """What the folder holds and how it is used.  forms: by state its form and why; facts: target, shape, dtype."""
    arguments = ", ".join(d.name for d in (*step.ins, *step.params))
    tokens = ", ".join(f"{d.name}_t" if d.role == "in" else d.name for d in (*step.ins, *step.params))
    first = documentation.splitlines()[0] if documentation else ""
    documentation = documentation.rpartition("\n\nOptions:")[0]  # the module has fewer
    called, module = named(step).name, module_name(step.name)
    lines = [f"# {step.name}", "", first, "",
             f"`{module}.py` was emitted by mixc. It needs torch and triton only:", "",
             "```python", f"from {module} import {called}, {called}_step", "",
             f"o, state = {called}({arguments}, output_final_state=True)",
             f"o_t, state = {called}_step(state, {tokens})", "```", "",
             f"`python check_{step.name}.py` compares it, forward and backward, with the step run token by token.", "",
             "| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in facts.items()),
             *(f"| state `{s}` | {form}: {why} |" for s, (form, why) in forms.items()), "",
             "```", documentation, "```", ""]
    return "\n".join(lines)
