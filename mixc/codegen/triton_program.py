"""The Triton backend: the emitted module of a mixer, built once and called for every length.

The module is written to a file and imported (Triton reads a kernel's source from its file); what it is
given are the call's tensors in canonical form.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from functools import cache, lru_cache
from types import ModuleType
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch

from mixc.codegen.apart import parts_at
from mixc.codegen.names import named, own_names, renamed, safe, under_its_name
from mixc.codegen.refuse import refuse
from mixc.errors import Diagnostic, InputError, SpecError
from mixc.ir.node import postorder
from mixc.ir.program import Program
from mixc.passes.affine import AffineForms
from mixc.passes.around import Around, around
from mixc.passes.behind import behind
from mixc.passes.classify import classify, parts_of
from mixc.passes.context import Context, context, has_context
from mixc.passes.entries import entries_apart
from mixc.passes.joint import joint
from mixc.passes.lower import with_inverses
from mixc.passes.planes import context_of_planes, is_complex
from mixc.runtime.call import Call
from mixc.runtime.recorded import start

if TYPE_CHECKING:
    from mixc.codegen.config import Config
    from mixc.codegen.module import Module
    from mixc.runtime.mixer import Mixer
    from mixc.targets import Target

# by mixer: the module of each step and config, and the same by kind of call
_modules: WeakKeyDictionary[Any, dict[Any, ModuleType]] = WeakKeyDictionary()


@lru_cache(maxsize=256)
def refused(step: Program) -> SpecError | None:
    """Why a group of states of a step, or of its stages, has no kernels; None: all have.  Found by writing them: nothing
    else knows all of it."""
    try:
        for part in parts_of(_real(replace(step, level="step", groups=(), parts=())).program):
            kernels(part)
    except SpecError as error:
        return error
    return None


def _real(step: Program) -> Context:
    """The step that runs where there are lags, positions and complex values: of planes, and inputs for the others."""
    found = context_of_planes(step) if is_complex(step) else context(step) if has_context(step) else Context(step, step, {})
    if found is None:
        raise refuse("a complex value that has no planes of real ones")
    told = found.step.told((*found.step.ins, *found.step.params))
    for d in found.step.dims:
        if d.name not in told:
            raise refuse(f"no in or param tells the size of {d.name}")
    return found


def has_kernels(stages: Program) -> bool:
    return refused(stages) is None


def emit(step: Program, target: str | Target = "h100", shape: Mapping[str, int] | None = None, dtype: str = "bf16",
         config: Config | None = None, fixed: frozenset[str] = frozenset(), said: str = "") -> str:
    """The text of the standalone module of a step whose states have kernels.

    Args:
        target: of `mixc targets`. shape: B, T, H and dims that the tiles are for (not named: 8, 4096, 16 and 64).
        config: these sizes instead of those that the model chooses. fixed: consts that the step was unrolled for. said: the spec, for readers."""
    from mixc.codegen.staged_module import StagedModule

    real, sizes = _real(step), shape or {}
    program = named(real.program)
    parts = parts_of(program)
    if len(parts) == 1 and config is None:
        parts = parts_at(program, target, whole_shape(program, sizes), dtype)
    if len(parts) == 1:
        made = kernels_at(real.program, whole_shape(real.program, sizes))
        text = made.text(config or default_config(real.program, target, sizes, dtype), named(step), real, fixed,
                         last_config(made, target, sizes, dtype), said)
        return under_its_name(text, step)
    if config is not None:
        raise InputError(f"`config`: {step.name} runs in {len(parts)} parts, whose sizes the model chooses")
    configs = [default_config(part, target, sizes, dtype) for part in parts]
    modules = [kernels_at(part, whole_shape(part, sizes)) for part in parts]
    last = [last_config(m, target, sizes, dtype) for m in modules]
    return under_its_name(StagedModule(program, parts, modules).text(configs, named(step), real, fixed, last, said), step)


@lru_cache(maxsize=64)
def kernels(step: Program, instead: str = "") -> Module:
    """The kernels of a step, forward and backward; sizes are chosen later.  `instead`: why they are token by token."""
    step = named(_real(step).program)
    inner = renamed(step, own_names(step))
    found = _around(inner)
    made = _between(found.program if found else inner, step, instead=instead)
    if not instead and (made.by_rule or made.each) and (divided := _beside(inner, step, {*made.each})) is not None:
        found, made = divided
    made.around = found
    last = behind(found) if found else None
    if last is not None and not own_names(last.program):
        try:
            made.behind = last, kernels(last.program)
            made.behind[1].typed_by_call = True
        except SpecError:
            made.behind = None  # torch has all there is
    return made


def _beside(inner: Program, step: Program, each: set[str]) -> tuple[Around | None, Module] | None:
    """The kernels of states that lie beside each other, a program's own each, what sums over these formed around them.
    None: they have no chunk kernels either, or are those whose programs have one of `each` anyway."""
    groups = [[inner.decl(s) for s in g.states] for g in classify(inner).groups if g.form == "chunk"]
    beside = frozenset(d for states in groups if len(states[0].dims) > 2 for d in AffineForms(inner, states).apart)
    if beside <= each:
        return None
    found = _around(inner, beside)
    program = found.program if found else inner
    if any(g.form != "chunk" for g in classify(program).groups):
        return None
    made = _between(program, step, tuple(d.name for d in inner.dims if d.name in beside))
    return None if made.by_rule else (found, made)


def kernels_at(step: Program, sizes: Mapping[str, int]) -> Module:
    """Those that have room for these sizes of dims, by the step's names."""
    made = kernels(step)
    wide = made.no_room({made.own.get(d, d): n for d, n in sizes.items()})
    return kernels(step, wide) if wide else made


def whole_shape(step: Program, shape: Mapping[str, int]) -> dict[str, int]:
    """A size for every dim: one that `shape` does not name has 64, or the size of its alias."""
    sizes = {"B": 8, "T": 4096, "H": 16, **shape}
    for d in step.dims:
        sizes[d.name] = d.size or shape.get(d.name) or sizes.get(d.alias or "", 64)
    return sizes


def _around(inner: Program, beside: frozenset[str] = frozenset()) -> Around | None:
    """What is formed of all tokens, what is left having names that mean nothing else in kernels."""
    avoid: set[str] = set()
    while (found := around(inner, avoid, beside)) is not None and (clash := own_names(found.program)):
        avoid |= {*clash, *found.front, *found.read, *found.sizes}
    return found


def _between(inner: Program, step: Program, each: tuple[str, ...] = (), instead: str = "") -> Module:
    """The kernels of what stands between products over all tokens; `step`: the whole under its user's names.  `each`: dims
    of which a program is to have one entry (none: what the chunk's program says).  `instead`: see `kernels`."""
    from mixc.codegen.cell_module import CellModule
    from mixc.codegen.token_module import TokenModule

    stages = classify(inner)
    if instead:
        return TokenModule(inner, step, instead)
    if any(g.form == "sequential" for g in stages.groups):
        return (TokenModule if any(len(s.dims) > 1 for s in step.states) else CellModule)(inner, step)
    try:
        return _chunks(stages, inner, step, each)
    except SpecError as error:  # a chunk of tiles too many, or too wide
        if error.diagnostics[0].code != "MX310":
            raise
        matrices = joint(inner)
        if matrices is not None and _forms(together := classify(matrices)) == _forms(stages):
            return _chunks(together, inner, step)
        return TokenModule(inner, step, error.diagnostics[0].message.removeprefix("no kernel: "))


def _forms(stages: Program) -> dict[str, str]:
    return {s: g.form for g in stages.groups for s in g.states}


def tuned_kernels(step: Program, shape: Mapping[str, int]) -> Module:
    """Those of a step whose sizes are tuned, for dims of this shape (see `whole_shape`).

    Raises:
        SpecError: it has none."""
    parts = parts_of(step)
    if len(parts) > 1:
        raise SpecError(Diagnostic("MX310", f"{step.name} runs in {len(parts)} parts, each with sizes of its own"))
    made = kernels_at(step, whole_shape(step, shape))
    if made.by_rule:
        raise SpecError(Diagnostic("MX310", f"{step.name} runs token by token: a rule gives its sizes, none is tuned"))
    return made


def _chunks(stages: Program, inner: Program, step: Program, each: tuple[str, ...] = ()) -> Module:
    from mixc.codegen.module import Module
    from mixc.passes.beside import one_each
    from mixc.passes.chunk import chunk
    from mixc.passes.differentiate import differentiate

    forward = chunk(stages)
    matrices = {d.leaf() for g in stages.groups if g.form == "chunk" for d in map(stages.decl, g.states) if len(d.dims) > 1}
    if any(n.op == "scan" and n.args[2] in matrices for n in postorder(forward.values())):
        raise refuse("every entry of a matrix at every row")  # one row at a time, it stays on chip
    each = each or one_each(forward)
    fwd, bwd = (entries_apart(with_inverses(p, each)) for p in (forward, differentiate(forward)))
    made = Module(fwd, bwd, inner, step, each)
    for launch in ("fwd", "bwd"):  # written here: what has none is refused here
        made.kernel(launch)
    return made


def default_config(step: Program, target: str | Target, shape: Mapping[str, int], dtype: str) -> Config:
    """What the tuner's model chooses, nothing compiled; a dim that `shape` does not name has 64, or the size of its alias."""
    from mixc.autotune.tuner import schedule_of
    from mixc.targets import find

    sizes = whole_shape(step, shape)
    made = kernels_at(step, sizes)
    if made.by_rule:
        return made.sizes({made.own.get(d, d): n for d, n in sizes.items()}, 4 if dtype == "fp32" else 2)
    return schedule_of(step, find(target), sizes, dtype).default()[0]


def last_config(made: Module, target: str | Target, shape: Mapping[str, int], dtype: str) -> Config | None:
    """As `default_config`, of the kernels behind products, if there are some."""
    sizes = {made.own.get(n, n): size for n, size in shape.items()}
    return None if made.behind is None else default_config(made.behind[0].program, target, sizes, dtype)


def module(mixer: Mixer, call: Call) -> ModuleType:
    """The imported module for a call: chosen by sizes, dtype, device, and whether there are few sequences, long ones.

    Another length imports nothing, the first long call with few sequences apart."""
    from mixc.codegen.offline import load_text

    p, dtype, few = call.program, _dtype(call), _few(call)
    found = _modules.setdefault(mixer, {})
    kind = (p, dtype, few, tuple(call.sizes.items()), call.device.type)
    if kind not in found:
        shape = _shape(call)
        config = _config(mixer, p, call.device, shape, dtype)
        made = kernels_at(p, call.sizes)
        if (made, config) not in found:
            last = last_config(made, _target(call.device), shape, dtype)
            found[made, config] = loaded = load_text(made.text(config, last=last), p.name)
            loaded.alone = frozenset(  # type: ignore[attr-defined]
                d.name for d, own in zip(p.ins, made.p.ins, strict=False) if safe(own.name) in made.backs)
        found[kind] = found[made, config]
    return found[kind]


def read_alone(mixer: Mixer, call: Call) -> frozenset[str]:
    """The inputs some tokens ago that the kernels of a call read off these inputs; a token looks back at what was given."""
    if call.rows.T == 1 or is_complex(call.program) or len(parts_of_call(call)) > 1:
        return frozenset()
    found: frozenset[str] = module(mixer, call).alone
    return found


def parts_of_call(call: Call) -> tuple[Program, ...]:
    """The programs whose kernels run one after the other; a single token's state is read and written in one."""
    return parts_of(call.program) if call.rows.T == 1 else parts_at(call.program, _target(call.device), _shape(call), _dtype(call))


def _dtype(call: Call) -> str:
    """That of its tensors, as tuning calls it."""
    dtype = next((call.ins[d.name].dtype for d in call.program.ins if d.dims and not d.exact), call.dtype)
    return {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(dtype, "fp32")


def _few(call: Call) -> bool:
    """Has it few sequences, long ones?"""
    return call.rows.N * call.H < 64 and call.rows.T >= 2048


def _shape(call: Call) -> dict[str, int]:
    """What its sizes are chosen for: another length changes nothing."""
    return {**call.sizes, **({"B": 1, "H": 4, "T": 16384} if _few(call) else {"B": 8, "H": 16, "T": 2048})}


def _config(mixer: Mixer, step: Program, device: torch.device, sizes: dict[str, int], dtype: str) -> Config:
    """On a GPU one whose kernels were compiled and do not spill; kernels that are interpreted have the model's choice."""
    target = _target(device)
    looks = os.environ.get("TRITON_INTERPRET") != "1" and os.environ.get("MIXC_FIRST_BUILD") != "0"
    if device.type != "cuda" or not looks or kernels_at(step, sizes).by_rule:
        return default_config(step, target, sizes, dtype)
    from mixc.autotune.tuned import first

    return first(mixer, step, target, sizes, dtype)


@cache
def _target(device: torch.device) -> Target:
    """The device, as `mixc tune --target auto` names it, or the target whose limits are nearest to one without a table;
    without a GPU the one that the kernels are written for."""
    from mixc.targets import TARGETS, here

    if device.type != "cuda":
        return TARGETS["h100"]
    try:
        return here(device)
    except KeyError:
        if torch.version.hip:
            return TARGETS["mi300x"]
    major, minor = torch.cuda.get_device_capability(device)
    arch = [t for t in TARGETS.values() if t.arch.startswith("sm_") and int(t.arch[3:]) <= major * 10 + minor]
    return max(arch, key=lambda t: int(t.arch[3:]), default=TARGETS["a100"])


def run(mixer: Mixer, call: Call) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Outs in the call's order of rows, and final states.

    Raises:
        InputError: fp64 inputs, which the kernels do not take."""
    if call.dtype == torch.float64:
        raise InputError('the Triton kernels compute in fp32, an input is fp64; use backend="torch"')
    emitted, p, rows = module(mixer, call), call.program, call.rows
    flat = rows.starts is not None or rows.lens is not None
    ins = list[torch.Tensor | None]()
    for d in p.ins:
        if call.ins[d.name] is None:  # some tokens ago of another, which kernels read
            ins.append(None)
            continue
        x = rows.gather(call.ins[d.name])
        ins.append(x.reshape(1, rows.B * rows.T, *x.shape[2:]) if flat else x)
    params = [call.params[d.name] for d in p.params]
    states = {s.name: _initial(call, s.name) for s in p.states}
    consts = [call.consts[c.name] for c in p.consts]
    out, final = emitted.run(*ins, *params, *consts, initial_state=states, output_final_state=True,
                             sequences=_sequences(call, flat))
    outs = dict(zip((o.name for o in p.outs), out, strict=True))
    shaped = {n: rows.scatter(y.reshape(rows.B, rows.T, *y.shape[2:])) for n, y in outs.items()}
    return shaped, final


def _sequences(call: Call, flat: bool) -> tuple[torch.Tensor, torch.Tensor] | None:
    """First row and length of every sequence among the flat rows, or None for a dense batch."""
    rows = call.rows
    if not flat:
        return None
    starts = rows.starts
    if starts is None:
        starts = torch.arange(rows.N, device=call.device) * rows.T
    lens = rows.lens if rows.lens is not None else torch.full_like(starts, rows.T)
    return starts.to(torch.int64).contiguous(), lens.to(torch.int32).contiguous()


def _initial(call: Call, name: str) -> torch.Tensor | None:
    """The given initial state, or the declared one where that is not 0: [N, H, dims...] in fp32."""
    d = call.program.decl(name)
    return start(call, d, torch.float32) if name in call.states0 or d.init is not None else None
