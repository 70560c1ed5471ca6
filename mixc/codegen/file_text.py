"""The whole of an emitted file: what its kernels share, their sizes, they, autograd functions, and what is called."""

from __future__ import annotations

from typing import Any

from mixc.codegen.calls import tables
from mixc.codegen.host_values import past_text
from mixc.codegen.library import library
from mixc.codegen.lines import indent, names_read, needed
from mixc.codegen.triton_scan import scan_prelude
from mixc.codegen.value_names import legend
from mixc.codegen.written import Kernel
from mixc.ir.program import Program

LICENSE = "SPDX-License-Identifier: Apache-2.0"


def called_by(kernels: str, modules: list[Any]) -> list[str]:
    """What kernels may call."""
    return [library("basics"), scan_prelude(kernels), *map(library, ("spans", "rows", "solves", "cells")),
            *dict.fromkeys(m.prelude() for m in modules)]


def with_called(kernel: Kernel, module: Any) -> str:
    """The text of a kernel of a module behind what it may call: all that a count of its work reads."""
    return "\n".join([*called_by(kernel.text, [module]), "", kernel.text])


def file_text(name: str, said: str, modules: list[Any], step: Program, calls: str) -> str:
    """The file: what its kernels share, their sizes, they, autograd functions, and what is called.

    Args:
        said: the spec. modules: `sized` ones. step: what the tables of tensors are of, and what looks back at earlier
            tokens."""
    kernels = [text for m in modules for text in m.kernel_texts()]
    written = "\n\n".join(kernels)
    said = said.strip().replace("\\", r"\\").replace('"""', r'\"\"\"')  # nothing of it is an escape, or ends the docstring
    doc = [*(line.rstrip() for line in indent(said.splitlines())), "", *legend(written)] if said else legend(written)
    sizes = "\n".join([*(line for m in modules for line in m.size_lines()), *tables(step)])
    own = "".join([written.rstrip(), "\n\n\n", *(x for m in modules for x in (m.function(), "\n\n\n")), calls])
    shared = [*map(library, ("host", "calls")), *called_by(written, modules), *map(library, ("pieces", "products", "later")), past_text()]
    brought = needed(shared, f"{sizes}\n{own}")
    read = names_read("\n".join([sizes, brought, own]))
    head = [f'"""{name}: kernels emitted by mixc from a one-token step.', "", *doc, LICENSE, '"""',
            *(f"import {x}" for x in ("collections", "math", "os") if x in read), "", "import torch", "import triton",
            "import triton.language as tl", "", sizes]
    return "\n".join([*head, brought, "", own.rstrip("\n")]) + "\n"
