"""Whether a vector with corrections runs faster token by token than in chunks, on a CPU.

A chunk's triangular system costs what its pairs of rows cost, for every head of every sequence; a token loop costs its
calls of torch, which are the same for one head as for many, as long as a token's values are few.  Both are estimated
from their programs, of both directions: what runs must not depend on whether a gradient follows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from mixc.codegen.torch_stages import ALIAS, small, stages
from mixc.ir.blocks import PART
from mixc.ir.node import COL, ROW, Node, postorder
from mixc.ir.program import Program, once_a_program
from mixc.passes.block import MOST
from mixc.passes.cell import HEADS, SEQUENCES
from mixc.runtime import cell_programs
from mixc.runtime.call import Call
from mixc.runtime.compiled import Compiled, compiled
from mixc.runtime.shapes import shapes

# Microseconds on one core: a call of torch in a token loop, with its share of what stands around the loop, and in a
# program of chunks; for a thousand values a pass over them in cache (what a token loop forms is read again later, from
# memory), and a function of them; a million operations of products.
CALL, CHUNK_CALL, PASS, FROM_MEMORY, FUNCTION, PRODUCTS = 4.0, 5.0, 0.25, 2.4, 1.5, 20.0
_FUNCTIONS = frozenset(("exp", "log", "log1p", "expm1", "tanh", "sigmoid", "logsigmoid", "softplus", "silu", "gelu",
                        "sin", "cos", "logaddexp", "softmax", "where"))


def faster(call: Call) -> bool:
    """Is the token loop to run?  Only where its states, which it keeps for every token, are no larger than what every
    token is given or leaves."""
    if call.device.type != "cpu" or not call.rows.dense or not call.rows.T or not call.rows.B:
        return False
    program = call.program
    rows = [math.prod(call.sizes[n] for n in d.dims) for d in (*program.ins, *program.outs)]
    if any(math.prod(call.sizes[n] for n in d.dims) > max(rows) for d in program.states) or not _has_systems(program):
        return False
    key = (call.rows.B, call.rows.T, call.H, call.dtype, *call.sizes.items())
    known = _known(program)
    if key not in known:
        known[key] = 1.2 * _of_tokens(call) < _of_chunks(call, compiled(program))
    return known[key]


@once_a_program
def _known(program: Program) -> dict[tuple[object, ...], bool]:
    return {}


@once_a_program
def _has_systems(program: Program) -> bool:
    return bool(compiled(program).systems)


# ---------------------------------------------------------------- estimates, in microseconds
def _of_tokens(call: Call) -> float:
    code = cell_programs.compiled(call.program, True)
    every = frozenset(d.name for d in (*call.program.ins, *call.program.params))
    sizes = {**call.sizes, ROW: 1, HEADS: call.H, SEQUENCES: call.rows.B}
    found = 0.0
    for half in (code.forward(True), code.backward(every)):
        lines = half.loop.text.split("strict=True):\n")[-1].count("\n")
        found += lines * CALL + FROM_MEMORY * sum(_work(n, sizes) for n in _formed(half.program))
    return found * call.rows.T


def _of_chunks(call: Call, code: Compiled) -> float:
    shape = shapes(code, call, None, True, True, False)
    chunks, sizes = -(-call.rows.T // shape.C), {**shape.sizes, PART: MOST}
    blocks = sum(len(g.blocks) for band in shape.layout.bands for g in band.groups)
    found = 0.0
    for reverse in (False, True):
        program = code.prepared(False, True, reverse)
        made, s = _formed(program), stages(program, single=code.single)
        found += sum(_work(n, sizes) for n in made) * chunks * call.rows.B * call.H
        found += (len(made) - len(s.loop)) * CHUNK_CALL * blocks + len(s.loop) * CHUNK_CALL * chunks
    return found


def _formed(program: Program) -> list[Node]:
    made = (n for n in postorder(program.values()) if n.args and n.op not in ALIAS)
    return [n for n in made if not small(n) and n.attr("dim") != PART]


def _work(n: Node, sizes: Mapping[str, int]) -> float:
    """Of one chunk of a head, or of one token of all heads."""
    def values(dims: Iterable[str]) -> float:
        return math.prod(sizes[d] for d in dims) / 1e3
    own, given = values(n.dims), sum(values(a.dims) for a in n.args)
    if n.op in ("contract", "span_product", "span_gradient"):
        operations = 2 * values({*n.args[0].dims, *n.args[1].dims, *n.dims}) / 1e3 * PRODUCTS
        passes = 1 if n.op == "contract" else 4 * _levels(sizes)  # the decays are taken into operands at every level
        return operations + passes * (own + given) * PASS
    if n.op in ("unit_inverse", "solve", "span_solve"):
        return sizes[ROW] * values({*n.args[0].dims, *n.dims}) / 1e3 * 4 * PRODUCTS
    if n.op in ("span_factors", "scan", "scan_end"):
        return 4 * own * PASS
    return max(own, given) * (FUNCTION if n.op in _FUNCTIONS else PASS)


def _levels(sizes: Mapping[str, int]) -> int:
    return max(1, (sizes[ROW] - 1).bit_length()) if COL in sizes else 1
