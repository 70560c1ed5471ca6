"""Which program runs a call.

A backend is a function `run(mixer, call) -> (outs, states)`: outs [B, T, H, dims...] by name in the
caller's order of rows, states [N, H, dims...] by name, histories [N, n, H, dims...] and `pos` int64 [N],
in any dtype at least as wide as promised.  It handles `call.rows` itself.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from mixc.errors import Diagnostic, InputError, SpecError
from mixc.passes.planes import is_complex
from mixc.runtime import cells, chunked, context, one_token, parts, planes, sequential, shared, token_loop
from mixc.runtime.call import Call
from mixc.runtime.once import differentiable_once

if TYPE_CHECKING:
    from mixc.runtime.mixer import Mixer

Tensor = torch.Tensor
Results = tuple[dict[str, Tensor], dict[str, Tensor]]
Backend = Callable[["Mixer", Call], Results]


def reference(mixer: Mixer, call: Call) -> Results:
    """The step token by token in fp64: the meaning of the language."""
    return sequential.run(call, torch.float64, careful=True)


def torch_backend(mixer: Mixer, call: Call, fused: bool = False) -> Results:
    """The chunk program where the form has one (but see `token_loop`), else the step token by token, with a note said
    once; of one token its step."""
    all_parallel = has_torch_program(mixer)
    if not all_parallel and not mixer.noted:
        mixer.noted = True
        for note in mixer.notes:
            warnings.warn(str(note), stacklevel=5)
    found = one_token.run(call)
    if found is not None:
        return found
    call = call if all_parallel else differentiable_once(call)
    if is_complex(call.program) and planes.real_program(call.program) is None:
        return sequential.run(call)
    def of_reals(part: Call) -> Results:
        return cells.run(part) if not fused and token_loop.faster(part) else chunked.run(part, fused=fused)

    def parallel(part: Call) -> Results:
        return _of_planes(part, of_reals)
    return context.run(call, lambda c: parts.run(c, parallel, lambda part: _of_planes(part, cells.run)))


def compiled_backend(mixer: Mixer, call: Call) -> Results:
    """The torch backend, what scans as bodies that `torch.compile` made: compiled once a mixer, whatever the lengths.

    Raises:
        SpecError: MX313, no C++ compiler.
    """
    if not {"chunk", "scan"} & set(mixer.form.values()):
        return torch_backend(mixer, call)
    if call.device.type == "cpu" and not _cpp_compiler():
        raise SpecError(Diagnostic("MX313", 'backend="torch.compile" needs a C++ compiler, and finds none',
                                   help='install g++ or clang++, or name one in CXX; backend="torch" needs none'))
    return torch_backend(mixer, call, fused=True)


def _cpp_compiler() -> bool:
    names = (os.environ["CXX"],) if os.environ.get("CXX") else ("g++", "clang++")
    return any(map(shutil.which, names))


def _of_planes(call: Call, run: Callable[[Call], Results]) -> Results:
    return planes.run(call, run) if is_complex(call.program) else run(call)


def triton_backend(mixer: Mixer, call: Call) -> Results:
    """The kernels; only where the spec has some.

    Raises:
        SpecError: MX310, no kernels for this form; MX311, no GPU or no triton here.
    """
    from mixc.codegen.triton_program import parts_of_call, read_alone, refused, run

    if not has_chunk_program(mixer):
        raise no_kernels(mixer, refused(mixer._staged))
    if importlib.util.find_spec("triton") is None:
        raise SpecError(Diagnostic("MX311", "triton is not installed", help='backend="torch" needs none'))
    if call.device.type == "cpu" and not _interpreted():
        raise SpecError(Diagnostic("MX311", "kernels run on a GPU, and the tensors are on cpu",
                                   help='backend="torch" needs none; TRITON_INTERPRET=1, set before triton is '
                                        "imported, interprets them"))
    call, same = differentiable_once(call), shared.twin(mixer)

    def kernels(owner: Mixer, call: Call) -> Results:
        def of_part(part: Call) -> Results:
            mine = owner if part is call else parts.mixer_of(part.program)
            return _of_planes(part, lambda real: run(mine, real))
        return parts.run(call, of_part, of_part, parts_of_call(call))
    if same is not None:
        return same.run(kernels, call)
    return context.run(call, lambda c: kernels(mixer, c), lambda c: read_alone(mixer, c))


def _interpreted() -> bool:
    import triton

    return bool(triton.knobs.runtime.interpret)


def no_kernels(mixer: Mixer, error: SpecError | None) -> SpecError:
    """MX310: what has no kernels, and why (`refused`)."""
    why = [d.message.removeprefix("no kernel: ") for d in (error.diagnostics if error else ())]
    return SpecError(Diagnostic("MX310", f"{mixer.__name__} has no Triton kernels: {'; '.join(why)}",
                                help='backend="torch" runs it on any device'))


def has_chunk_program(mixer: Mixer) -> bool:
    """Every state has kernels.  Without any state the sequential program has no loop, and is the chunk."""
    from mixc.codegen.triton_program import has_kernels

    return has_kernels(mixer._staged)


def has_torch_program(mixer: Mixer) -> bool:
    """Every state in chunk or scan form."""
    return bool(mixer.form) and all(form in ("chunk", "scan") for form in mixer.form.values())


BACKENDS: dict[str, Backend] = {"reference": reference, "torch": torch_backend, "torch.compile": compiled_backend,
                                "triton": triton_backend}


def choose(mixer: Mixer, name: Any, device: torch.device) -> str:
    """The backend of a call: auto is triton on a GPU for what has kernels, else torch.

    Raises:
        InputError: no such backend.
    """
    if not isinstance(name, str) or name not in ("auto", *BACKENDS):
        raise InputError(f"`backend`: expected one of auto, {', '.join(BACKENDS)}, got {name!r:.60}")
    if name == "auto":
        kernels = device.type == "cuda" and has_chunk_program(mixer)
        return "triton" if kernels and importlib.util.find_spec("triton") else "torch"
    return name
