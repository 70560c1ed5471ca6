"""The whole of an emitted file: what its kernels share, their sizes, they, autograd functions, and what is called."""

from __future__ import annotations

from typing import Any

from mixc.codegen import triton_crossing, triton_rows, triton_span
from mixc.codegen.calls import HOST as CALLS
from mixc.codegen.calls import tables
from mixc.codegen.host import HOST, PIECES
from mixc.codegen.host_values import past_text
from mixc.codegen.needed import names_read, needed
from mixc.codegen.prelude import ATAN2, PRELUDE
from mixc.codegen.products import PRODUCTS
from mixc.codegen.triton_scan import scan_prelude
from mixc.codegen.written import Kernel
from mixc.ir.program import Program

LICENSE = "SPDX-License-Identifier: Apache-2.0"


def called_by(kernels: str, modules: list[Any]) -> list[str]:
    """What kernels may call."""
    return [PRELUDE, ATAN2, scan_prelude(kernels), triton_span.PRELUDE, triton_crossing.PRELUDE, triton_rows.PRELUDE,
            *dict.fromkeys(m.prelude() for m in modules)]


def with_called(kernel: Kernel, module: Any) -> str:
    """The text of a kernel of a module behind what it may call: all that a count of its work reads."""
    return "\n".join([*called_by(kernel.text, [module]), "", kernel.text])


def file_text(name: str, doc: str, modules: list[Any], step: Program, calls: str) -> str:
    """The file: what its kernels share, their sizes, they, autograd functions, and what is called.

    Args:
        modules: `sized` ones. step: what the tables of tensors are of, and what looks back at earlier tokens."""
    kernels = [text for m in modules for text in m.kernel_texts()]
    written, doc = "\n\n".join(kernels), doc.strip()
    sizes = "\n".join([*(line for m in modules for line in m.size_lines()), *tables(step)])
    own = "".join([written, "\n\n\n", *(x for m in modules for x in (m.function(), "\n\n")), calls])
    shared = needed("".join([HOST, CALLS, *called_by(written, modules), PIECES, PRODUCTS, past_text()]), f"{sizes}\n{own}")
    read = names_read("\n".join([sizes, shared, own]))
    head = [f'"""{name}: kernels emitted by mixc from a one-token step.', "", *([*doc.splitlines(), ""] if doc else []), LICENSE, '"""',
            *(f"import {x}" for x in ("collections", "math", "os") if x in read), "", "import torch", "import triton",
            "import triton.language as tl", "", sizes]
    return "\n".join([*head, shared, "", own.rstrip("\n")]) + "\n"
