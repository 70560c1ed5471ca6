"""A mixer as two operators of torch, `mixc::NAME_KEY` and its backward: what compiled graphs and exports hold.

The operator is the whole call on the caller's own tensors, so that a tracer sees one node: arguments are checked
by its fake implementation, on shapes, and once more when it runs.  Its schema names every tensor of the spec:

    gla_1a2b3c4d(Tensor? in_q, ..., Tensor? state_S, Tensor? cu_seqlens, Tensor? mask, float? number_scale,
                 Tensor? tensor_scale, bool reverse, bool token, bool check, str backend) -> (Tensor, Tensor)

The backward operator runs the call again and pulls the cotangents back: nothing but the inputs is kept between the
two, which is what activation checkpointing would do.  Eager calls do not come here; they keep what is cheaper to
keep than to form again.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import torch
from torch.utils._python_dispatch import _disable_current_modes

from mixc.errors import InputError
from mixc.ir.evaluate import dtype_of
from mixc.ir.program import Program
from mixc.runtime import arguments, functional
from mixc.runtime.call import counts_tokens, histories
from mixc.runtime.options import flag, initial, token_mask

if TYPE_CHECKING:
    from mixc.runtime.mixer import Mixer

Tensor = torch.Tensor
ROWS = ("cu_seqlens", "mask", "reverse", "output_final_state")
FLAGS = {"reverse": "bool", "token": "bool", "check": "bool", "backend": "str"}
_mixers: WeakValueDictionary[str, Mixer] = WeakValueDictionary()
_operators: dict[str, Operator] = {}


def key(mixer: Mixer) -> str:
    """The name of its operators: the same for the same text, in every process."""
    text = mixer.text if not isinstance(mixer._spec, Program) else repr(mixer._spec)
    name = f"{mixer.__name__}_{zlib.crc32(text.encode()):08x}"
    _mixers.setdefault(name, mixer)
    return name


def registered(name: str) -> bool:
    """Makes the operators of a mixer the first time they are asked for; under a tracer at once and for good."""
    if name not in _operators:
        _operators[name] = Operator(name, _mixers[name])
    return True


# what torch.compiler.assume_constant_result does, which imports all of dynamo
registered._dynamo_marked_constant = True  # type: ignore[attr-defined]


def call(mixer: Mixer, args: tuple[Any, ...], options: dict[str, Any], token: bool) -> tuple[Any, Any]:
    """A call as one node of a graph, or of what a transform of torch.func makes.  (Dynamo reads this: it keeps to plain
    Python.)"""
    slots = mixer._slots
    registered(slots.key)
    flat = slots.flat(args, options, token)
    if not torch._C._are_functorch_transforms_active():
        found = getattr(torch.ops.mixc, slots.key).default(*flat)
    elif torch.compiler.is_compiling() and not _batched(flat):
        raise InputError(f"{mixer.__name__}: a compiled graph has no derivatives of torch.func (grad, vjp, ...) of a "
                         "mixer: compile what is inside them, or without fullgraph=True, where they run outside of it")
    elif torch.compiler.is_compiling():
        found = getattr(torch.ops.mixc, slots.key).default(*flat)
    else:
        found = functional.run(_operators[slots.key], flat)
    n = len(slots.outs)
    o = found[0] if n == 1 else mixer._outs_type(*found[:n])
    if not (token or options.get("output_final_state")):
        return o, None
    return o, {name: x for name, x in zip(slots.states, found[n:], strict=True) if slots.kept(name, x, token)}


def _batched(flat: list[Any]) -> bool:
    """Is vmap the innermost transform?  Torch has a rule for that, one call after another, also where it traces."""
    return any(torch._C._functorch.is_batchedtensor(x) for x in flat if isinstance(x, Tensor))


class Slots:
    """The order of an operator's arguments and results."""

    def __init__(self, mixer: Mixer):
        p = mixer.declared
        self.key = key(mixer)
        self.title = p.name
        self.tensors = tuple(d.name for d in (*p.ins, *p.params))
        self.lags = tuple(histories(p, {d.name: 2 for d in p.dims}))
        self.states = (*(d.name for d in p.states), *self.lags, *(["pos"] if counts_tokens(p) else []))
        self.only = p.states[0].name if len(p.states) == 1 else None
        self.consts = tuple(d.name for d in p.consts)
        self.outs = tuple(d.name for d in p.outs)
        self.rowwise = (*range(len(p.ins)), *range(len(self.tensors), len(self.tensors) + len(self.states)))
        self.ragged = len(self.tensors) + len(self.states)  # where cu_seqlens stands; the mask is next
        self.known = {*self.tensors, *self.consts, *arguments.OPTIONS}

    def schema(self) -> str:
        given = [*(f"Tensor? in_{n}" for n in self.tensors), *(f"Tensor? state_{n}" for n in self.states),
                 "Tensor? cu_seqlens", "Tensor? mask", *(f"float? number_{n}" for n in self.consts),
                 *(f"Tensor? tensor_{n}" for n in self.consts), *(f"{t} {n}" for n, t in FLAGS.items())]
        return ", ".join(given)

    def flat(self, args: tuple[Any, ...], options: dict[str, Any], token: bool) -> list[Any]:
        """The operator's arguments for those of a call."""
        self.check(args, options, token)
        tensors = [args[i] if i < len(args) else options.get(n) for i, n in enumerate(self.tensors)]
        start = options.get("initial_state")
        if isinstance(start, Tensor):
            if self.only is None:
                raise InputError(f"`initial_state`: expected a dict by name ({', '.join(self.states)}), got one tensor")
            start = {self.only: start}
        start = start or {}
        for name in start:
            if name not in self.states:
                raise InputError(f"`initial_state`: {self.title} has no state `{name}`")
        consts = [options.get(n) for n in self.consts]
        reverse, check = flag(options, "reverse"), flag(options, "check")
        return [*tensors, *[start.get(n) for n in self.states], options.get("cu_seqlens"), options.get("mask"),
                *[None if c is None or isinstance(c, Tensor) else float(c) for c in consts],
                *[c if isinstance(c, Tensor) else None for c in consts],
                reverse, token, check, options.get("backend", "auto")]

    def check(self, args: tuple[Any, ...], options: dict[str, Any], token: bool) -> None:
        """What an eager call refuses before it looks at a tensor, and an operator would not see, or not name."""
        if len(args) > len(self.tensors):
            raise InputError(f"{self.title} takes {len(self.tensors)} tensors ({', '.join(self.tensors)}), "
                             f"got {len(args)} by position")
        for name, x in [*zip(self.tensors, args, strict=False), *options.items()]:
            if name not in self.known:
                raise InputError(f"{self.title} has no argument `{name}`")
            if token and name in ROWS:
                raise InputError(f"{self.title}.step has no argument `{name}`: "
                                 "one token has neither rows nor direction")
            if name in self.consts and isinstance(x, bool | str | complex | list | tuple | dict):
                raise InputError(f"`{name}` is a const: expected a number, got {type(x).__name__} {x!r:.60}")
            if name in (*self.tensors, "cu_seqlens", "mask") and not isinstance(x, Tensor | None):
                raise InputError(f"`{name}`: expected a tensor, got {type(x).__name__}")
            if name == "initial_state" and not isinstance(x, dict | Tensor | None):
                raise InputError(f"`initial_state`: expected a dict by name ({', '.join(self.states)}), "
                                 f"got {type(x).__name__}")
        for name in self.tensors[:len(args)]:
            if name in options:
                raise InputError(f"`{name}` is given twice: by position and by keyword")
        flag(options, "output_final_state")

    def kept(self, name: str, x: Tensor, token: bool) -> bool:
        """Is there such a state?  A window of one token has no history."""
        return name not in self.lags or x.shape[1] > 0

    def unflat(self, flat: list[Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Tensors and consts by name, and the options of the call."""
        it = iter(flat)
        tensors = {n: x for n in self.tensors if (x := next(it)) is not None}
        start = {n: x for n in self.states if (x := next(it)) is not None}
        options: dict[str, Any] = {"initial_state": start or None, "cu_seqlens": next(it), "mask": next(it)}
        numbers = [next(it) for _ in self.consts]
        consts = {n: x for n, a in zip(self.consts, numbers, strict=True)
                  if (x := next(it)) is not None or (x := a) is not None}
        return tensors | consts, options | dict(zip(FLAGS, it, strict=True))


class Operator:
    """Both operators of one mixer, and what they do."""

    def __init__(self, name: str, mixer: Mixer):
        self.mixer, self.slots, self.name = mixer, mixer._slots, f"mixc::{name}"
        schema, results = self.slots.schema(), len(self.slots.outs) + len(self.slots.states)
        returns = "Tensor" if results == 1 else f"({', '.join(['Tensor'] * results)})"
        forward = torch.library.custom_op(self.name, self.forward, mutates_args=(), schema=f"({schema}) -> Tensor[]"
                                          if results == 1 else f"({schema}) -> {returns}")
        backward = torch.library.custom_op(
            f"{self.name}_backward", self.backward, mutates_args=(),
            schema=f"({schema}, Tensor?[] cotangents, bool[] needs) -> Tensor[]")
        forward.register_fake(self.fake)
        backward.register_fake(self.fake_backward)
        forward.register_autograd(self.pull, setup_context=self.keep)
        self.call = getattr(torch.ops.mixc, name).default
        self.back = getattr(torch.ops.mixc, f"{name}_backward").default

    # ------------------------------------------------------------ what they do
    def forward(self, *flat: Any) -> Any:
        with torch.no_grad():
            found = self._run(list(flat))
        inputs = {x.untyped_storage().data_ptr() for x in flat if isinstance(x, Tensor)}
        return self._results([_own(x, inputs) for x in found])

    def _results(self, found: list[Tensor]) -> Any:
        return list(found) if len(found) == 1 else tuple(found)

    def _run(self, flat: list[Any]) -> list[Tensor]:
        given, options = self.slots.unflat(flat)
        if options.pop("token"):
            o, state = self.mixer._eager_step(options.pop("initial_state"), (), given | {
                n: x for n, x in options.items() if n in ("check", "backend")})
        else:
            o, state = self.mixer._eager((), given | options | {"output_final_state": True})  # type: ignore[assignment]
        empty = next(iter(state.values())) if state else o
        return [*([o] if isinstance(o, Tensor) else o), *(state.get(n, empty.new_empty(empty.shape[0], 0))
                                                         for n in self.slots.states)]

    def backward(self, *flat: Any) -> list[Tensor]:
        *given, cotangents, needs = flat
        with _autograd_again(), torch.enable_grad():
            leaves = [x.detach().requires_grad_() if isinstance(x, Tensor) and n else x
                      for x, n in zip(given, needs, strict=True)]
            found = self._run(leaves)
            ends = [(x, c) for x, c in zip(found, cotangents, strict=True) if c is not None and x.requires_grad]
            wanted = [x for x, n in zip(leaves, needs, strict=True) if n]
            pulled = torch.autograd.grad([x for x, _ in ends], wanted, [c for _, c in ends],
                                         allow_unused=True) if ends else [None] * len(wanted)
        return [torch.zeros_like(x, memory_format=torch.contiguous_format) if g is None else _own(g, set())
                for x, g in zip(wanted, pulled, strict=True)]

    # ------------------------------------------------------------ their shapes
    def fake(self, *flat: Any) -> Any:
        given, options = self.slots.unflat(list(flat))
        declared, token = self.mixer.declared, options["token"]
        tensors, consts = arguments._by_name(declared, (), given)
        shapes = arguments._Shapes(declared, tensors, token)
        cu, mask, N = options["cu_seqlens"], options["mask"], shapes.B
        if cu is not None:
            if cu.ndim != 1 or shapes.B != 1:
                raise InputError(f"`cu_seqlens`: expected int [N + 1] and inputs with B = 1, got {list(cu.shape)}")
            N = cu.shape[0] - 1
        if mask is not None:
            token_mask(mask, shapes.B, shapes.T, shapes.device)
        shapes.take_states(options["initial_state"], N)
        sizes = shapes.all_sizes()
        program = self._program(sizes, consts)
        initial(program, options["initial_state"], sizes, N, shapes.H, shapes.headless, shapes.device)
        dtypes = arguments._out_dtypes(program, tensors)
        heads = () if shapes.headless else (shapes.H,)
        rows = (shapes.B,) if token else (shapes.B, shapes.T)
        found = [((*rows, *heads, *(sizes[n] for n in d.dims)), dtypes[d.name]) for d in program.outs]
        found += [((N, *heads, *(sizes[n] for n in d.dims)), dtype_of(d.kind, shapes.dtype))
                  for d in program.states]
        past = histories(program, sizes)
        for name in self.slots.lags:
            if name not in past:
                found.append(((N, 0), shapes.dtype))
                continue
            x, depth = past[name]
            kind = dtype_of(x.kind, shapes.dtype)
            found.append(((N, depth, *heads, *(sizes[n] for n in x.dims)), kind))
        found += [((N,), torch.int64)] if "pos" in self.slots.states else []
        return self._results([torch.empty(s, dtype=t, device=shapes.device) for s, t in found])

    def _program(self, sizes: dict[str, int], consts: dict[str, Any]) -> Program:
        """The step for these sizes; what is traced may leave the sizes open that do not shape it."""
        unrolled, shaping = self.mixer.shaped_by
        if not unrolled and not shaping:
            return self.mixer.declared
        for name in shaping:
            if isinstance(consts.get(name), Tensor):
                raise InputError(f"`{name}` shapes the step (an exponent, a lag, a bound): under torch.compile give it "
                                 "as a number")
        with _disable_current_modes():
            numbers = {n: float(x) for n, x in consts.items() if not isinstance(x, Tensor)}
            return self.mixer.specialise({n: int(s) for n, s in sizes.items()}, numbers)[0]

    def fake_backward(self, *flat: Any) -> list[Tensor]:
        *given, _, needs = flat
        return [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x, n in zip(given, needs, strict=True) if n]

    # ------------------------------------------------------------ autograd
    def keep(self, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.is_tensor = [isinstance(x, Tensor) for x in inputs]
        ctx.others = [None if isinstance(x, Tensor) else x for x in inputs]
        ctx.save_for_backward(*(x for x in inputs if isinstance(x, Tensor)))
        ctx.set_materialize_grads(False)

    def pull(self, ctx: Any, *cotangents: Any) -> tuple[Tensor | None, ...]:
        if len(cotangents) == 1 and isinstance(cotangents[0], list):
            cotangents = tuple(cotangents[0])
        saved = iter(ctx.saved_tensors)
        given = [next(saved) if t else x for t, x in zip(ctx.is_tensor, ctx.others, strict=True)]
        needs = [t and bool(n) for t, n in zip(ctx.is_tensor, ctx.needs_input_grad, strict=False)]
        if not any(needs) or all(c is None for c in cotangents):
            return tuple([None] * len(given))
        grads = iter(self.back(*given, list(cotangents), needs))
        return tuple(next(grads) if n else None for n in needs)


def _own(x: Tensor, inputs: set[int]) -> Tensor:
    """x in memory of its own, in order: results of an operator share none."""
    if not x.is_contiguous():
        return x.contiguous()
    at = x.untyped_storage().data_ptr()
    if at in inputs or x.untyped_storage().nbytes() != x.nbytes:
        x = x.clone()
        at = x.untyped_storage().data_ptr()
    inputs.add(at)
    return x


@contextmanager
def _autograd_again() -> Iterator[None]:
    """Inside an operator autograd is switched off below the dispatcher; the backward needs it."""
    exclude = torch._C._dispatch_tls_local_exclude_set()
    for name in ("AutogradFunctionality", "AutogradOther", "ADInplaceOrView", "AutogradNestedTensor"):
        exclude = exclude.remove(getattr(torch._C.DispatchKey, name))
    with torch._C._ForceDispatchKeyGuard(torch._C._dispatch_tls_local_include_set(), exclude):
        yield
