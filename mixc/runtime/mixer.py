"""The callable: a spec, bound to no sizes, run on tensors."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mixc.errors import Diagnostic, InputError, Source, SpecError
from mixc.hashing.evaluate import const_values
from mixc.ir.program import Program
from mixc.runtime import arguments, backends, checks, describe, functional, library, quick
from mixc.runtime.call import Call, histories

if TYPE_CHECKING:
    from mixc.codegen.config import Config
    from mixc.frontend.syntax import MixerSyntax
    from mixc.targets import Target

Tensor = torch.Tensor
State = dict[str, Tensor]

LISTED = 16  # values of a window that an emitted file names one by one


class Mixer:
    """A sequence mixer made from a spec.  `mixc.load` and `mixc.loads` make one.

    `mixer(q, k, …)` returns `(o, state)`; `mixer.step(state, q_t, k_t, …)` runs one token.
    """

    def __init__(self, spec: MixerSyntax | Program, source: Source | None = None):
        """
        Args:
            spec: a parsed mixer, or a program at level "step".
            source: the text it came from; a mixer with one pickles as its text.
        """
        self._spec, self._source = spec, source
        self._specialised: dict[Any, tuple[Program, dict[str, float]]] = {}
        self._programs: dict[Any, Program] = {}
        self._seen: dict[Any, quick.Seen] = {}  # calls by the shapes of their tensors
        self.noted = False  # whether the notes on a slow form were said
        self.declared: Program = spec if isinstance(spec, Program) else _elaborate_anyhow(spec)
        self.__name__ = self.__qualname__ = self.declared.name
        self.__doc__ = describe.documentation(self.declared)
        self.__signature__ = describe.signature(self.declared)
        self._outs_type = outs_type(self.__name__, tuple(d.name for d in self.declared.outs))
        self._slots = library.Slots(self)

    # ------------------------------------------------------------ running
    def __call__(self, *args: Any, **options: Any) -> tuple[Any, State | None]:
        if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
            return library.call(self, args, options, token=False)
        functional.refuse(self.__name__, args, options)
        return self._eager(args, options)

    @property
    def operator(self) -> Any:
        """The call as an operator of torch, `torch.ops.mixc.NAME_KEY`: what compiled graphs and exports hold."""
        library.registered(self._slots.key)
        return getattr(torch.ops.mixc, self._slots.key).default

    def operator_args(self, *args: Any, **options: Any) -> tuple[Any, ...]:
        """The operator's arguments for those of a call."""
        return tuple(self._slots.flat(args, options, False))

    def _eager(self, args: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, State | None]:
        key = quick.key(args, options)
        seen = self._seen.get(key)
        if seen is not None:
            call, name = seen.call(args, options, options.get("initial_state")), seen.backend
        else:
            given = _split(options)
            call = arguments.bind(self, args, given, options)
            name = backends.choose(self, options.get("backend", "auto"), call.device)
            if call.device.type == "meta":  # shapes alone: what the operator tells a tracer
                return library.call(self, args, options | given, token=False)
            self._remember(key, call, name, False)
        outs, states = backends.BACKENDS[name](self, call)
        return self._outs(outs, call), self._states(states, call) if call.want_state else None

    def _remember(self, key: Any, call: Call, backend: str, token: bool) -> None:
        if key is not None:
            if len(self._seen) >= 256:
                self._seen.clear()
            self._seen[key] = quick.Seen(self, call, backend, token)

    def step(self, state: State | Tensor | None, /, *args: Any, **options: Any) -> tuple[Any, State]:
        """One token: ins [B, H, …], params and consts as in a call; state None starts afresh.

        Returns:
            (o, state), o without T; the state dict after the token.
        """
        if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
            return library.call(self, args, {**options, "initial_state": state}, token=True)
        functional.refuse(self.__name__, args, options, state)
        return self._eager_step(state, args, options)

    def _eager_step(self, state: State | Tensor | None, args: tuple[Any, ...], options: dict[str, Any]
                    ) -> tuple[Any, State]:
        key = quick.key(args, options, state)
        key = None if key is None else (*key, "step")
        seen = self._seen.get(key)
        if seen is not None and seen.step is not None:
            return seen.step(seen.tensors(args, options), state)  # type: ignore[return-value]
        if seen is not None:
            call, name = seen.call(args, options, state), seen.backend
        else:
            given = _split(options)
            wrong = sorted(set(options) - {"check", "backend"})
            if wrong:
                raise InputError(f"{self.__name__}.step has no argument `{wrong[0]}`: "
                                 "one token has neither rows nor direction")
            options |= {"initial_state": state, "output_final_state": True}
            call = arguments.bind(self, args, given, options, token=True)
            name = backends.choose(self, options.get("backend", "auto"), call.device)
            self._remember(key, call, name, True)
        outs, states = backends.BACKENDS[name](self, call)
        return self._outs({name: o.squeeze(1) for name, o in outs.items()}, call, axis=1), self._states(states, call)

    def _outs(self, outs: State, call: Call, axis: int = 2) -> Any:
        values = [outs[d.name].to(call.out_dtypes[d.name]) for d in call.program.outs]
        if call.headless:
            values = [v.squeeze(axis) for v in values]
        if len(values) == 1:
            return values[0]
        return outs_type(self.__name__, tuple(d.name for d in call.program.outs))(*values)

    def _states(self, states: State, call: Call) -> State:
        found = {}
        for d in call.program.states:
            x = states[d.name].to(call.state_dtype(d.kind))
            found[d.name] = x.squeeze(1) if call.headless else x
        for name, (node, _) in histories(call.program, call.sizes).items():
            x = states[name].to(call.state_dtype(node.kind))
            found[name] = x.squeeze(2) if call.headless else x
        return found | ({"pos": states["pos"]} if "pos" in states else {})

    # ------------------------------------------------------------ what it is
    def specialise(self, sizes: dict[str, int], consts: dict[str, float]) -> tuple[Program, dict[str, float]]:
        """The step for these sizes and consts (only what unrolls or shapes it matters), and every const's value."""
        key = (tuple(sizes.items()), tuple(sorted(consts.items())))
        if key not in self._specialised:
            values = const_values(self.declared.consts, sizes, consts)
            if len(self._specialised) >= 256:
                self._specialised.clear()
            self._specialised[key] = self._elaborated(sizes, values), values
        return self._specialised[key]

    def _elaborated(self, sizes: dict[str, int], values: dict[str, float]) -> Program:
        if isinstance(self._spec, Program):
            return self._spec
        dims, consts = self.shaped_by
        unrolled, shaping = {d: sizes[d] for d in sorted(dims)}, {c: values[c] for c in sorted(consts)}
        key = (tuple(unrolled.items()), tuple(shaping.items()))
        if key not in self._programs:
            self._programs[key] = _elaborate(self._spec, unrolled, shaping)
        return self._programs[key]

    @cached_property
    def shaped_by(self) -> tuple[frozenset[str], frozenset[str]]:
        """The dims and the consts that the step itself depends on."""
        if isinstance(self._spec, Program):
            return frozenset(), frozenset()
        from mixc.frontend import loop_dims, structural_consts

        return frozenset(loop_dims(self._spec)), frozenset(structural_consts(self._spec))

    @cached_property
    def unrolled(self) -> frozenset[str]:
        """The dims whose size says what lines the step has: of loops, and in exponents, distances and bounds."""
        from mixc.frontend import unrolled_dims

        return frozenset() if isinstance(self._spec, Program) else frozenset(unrolled_dims(self._spec))

    @cached_property
    def _staged(self) -> Program:
        from mixc.passes.classify import classify

        return classify(self.declared)

    @property
    def form(self) -> dict[str, str]:
        """By state: "chunk", "scan" or "sequential"."""
        found = {s: g.form for g in self._staged.groups for s in g.states}
        return {d.name: found[d.name] for d in self.declared.states}

    @property
    def why(self) -> dict[str, str]:
        """By state: the term that decided its form, in words."""
        found = {s: g.why for g in self._staged.groups for s in g.states}
        return {d.name: found[d.name] for d in self.declared.states}

    @cached_property
    def hash(self) -> str:
        """32 hexadecimal digits that two specs share when they are one function: names, order and spelling do not
        count; ranges, defaults, outs, final states and gradients do."""
        from mixc.hashing import hash_of

        return hash_of(self)

    @property
    def structural_consts(self) -> frozenset[str]:
        """The consts whose values shape the step: integer exponents, distances of lags, bounds of ranges."""
        return self.shaped_by[1]

    @property
    def notes(self) -> tuple[Diagnostic, ...]:
        """What is no error but worth knowing: a state that runs token by token, and why."""
        return self._staged.notes

    def emit(self, target: str | Target = "h100", shape: dict[str, int] | None = None, dtype: str = "bf16",
             config: Config | str | Path | None = None) -> str:
        """The standalone module: kernels, launches, autograd function, NAME and NAME_step; torch and triton only.

        Args:
            target: a GPU of `mixc targets`, a `Target`, or the path of a form of one's own. dtype: bf16, fp16 or fp32.
            shape: sizes the tiles are chosen for. A dim that a loop goes over, or an exponent names, keeps its size (2
                where none is given): the module is of these lines; so does that of a short window, if it is given.
            config: these tiles instead (`mixc.codegen.config`), or a file of `mixc tune`.
        Raises:
            SpecError: MX310, a state has no kernels; MX312, no such target.
            InputError: no such dtype or dim; the file is no config, or one for another target, dtype or shape.
        """
        from mixc.codegen.triton_program import emit, refused
        gpu, shape = self._gpu(target), checks.shape(self.declared, shape or {})
        checks.kernel_dtype(dtype)
        arguments.has_length(self.declared)
        step = self.as_emitted(shape)
        if (why := refused(step)) is not None:
            raise backends.no_kernels(self, why)
        if isinstance(config, (str, Path)):
            from mixc.autotune.tuned import read

            config = read(Path(config)).config_for(self, gpu, shape, dtype)
        said = "" if isinstance(self._spec, Program) else self.text
        return emit(step, gpu, shape, dtype, config, self.structural_consts, said)

    @staticmethod
    def _gpu(target: str | Target) -> Target:
        from mixc.targets import find

        try:
            return find(target)
        except KeyError as error:
            raise SpecError(Diagnostic("MX312", str(error.args[0]))) from None

    def as_emitted(self, shape: dict[str, int]) -> Program:
        """The step that kernels of these sizes are of: dims that it depends on have sizes of their own."""
        from mixc.passes.context import windows_of

        root = self.declared.root
        sizes = {root[d]: shape.get(d, shape.get(root[d], 2)) for d in sorted(self.unrolled)}
        step = self.declared
        if sizes and not isinstance(self._spec, Program):
            step = _elaborate(self._spec, {d: sizes.get(root[d], 2) for d in self.shaped_by[0]}, {})
        sizes |= {d: shape[d] for d in windows_of(step) if shape.get(d, LISTED + 1) <= LISTED}
        if not sizes:
            return step
        return replace(step, dims=tuple(replace(d, size=sizes.get(d.name, d.size)) for d in step.dims))

    def explain(self, target: str | Target = "h100", shape: dict[str, int] | None = None) -> str:
        """Markdown: the step, the form of every state and why, the chunk's equations, its adjoint, its costs.

        Args:
            target, shape: what the costs are told for, as in `emit`."""
        gpu, sizes = self._gpu(target), checks.shape(self.declared, shape or {})
        from mixc.codegen.derivation import explain

        text = explain(self.declared)
        if not backends.has_chunk_program(self):
            return text
        from mixc.autotune.closed import explained

        return text + explained(self.as_emitted(sizes), gpu, sizes)

    def __repr__(self) -> str:
        return describe.representation(self.declared)

    @property
    def made_from_program(self) -> bool:
        """A part of a step: it has no text."""
        return isinstance(self._spec, Program)

    @property
    def text(self) -> str:
        """The spec as `.mix` text: as it was written, or what says the same as its Python function."""
        if isinstance(self._spec, Program):
            raise SpecError(Diagnostic("MX403", f"{self.__name__} was made from a program and has no text"))
        from mixc.frontend.unparse import unparse

        return self._spec.text or unparse(self._spec, self.declared)

    def __reduce__(self) -> tuple[Any, ...]:
        if isinstance(self._spec, Program):
            return Mixer, (self._spec,)
        from mixc.runtime.load import from_text

        whole = self._source or Source(f"{self._spec.source.name}:{self.__name__}", self.text)
        return from_text, (whole.text, whole.name, self.__name__)

    def __copy__(self) -> Mixer:
        return self

    def __deepcopy__(self, memo: Any) -> Mixer:
        return self  # it holds a spec and what was compiled from it, and nothing that changes


def _split(options: dict[str, Any]) -> dict[str, Any]:
    """Takes tensors and consts out of the keywords; the options stay."""
    return {name: options.pop(name) for name in list(options) if name not in arguments.OPTIONS}


def _elaborate_anyhow(spec: MixerSyntax) -> Program:
    """The spec with loops of two rounds where their length comes from a call: for its declarations and forms."""
    from mixc.frontend import loop_dims

    return _elaborate(spec, dict.fromkeys(loop_dims(spec), 2), {})


def _elaborate(spec: MixerSyntax, sizes: dict[str, int], consts: dict[str, float]) -> Program:
    from mixc.frontend import elaborate

    return elaborate(spec, sizes or None, consts or None)


@cache
def outs_type(mixer: str, names: tuple[str, ...]) -> type:
    """The named tuple of several outs, known to torch's pytree (also to `torch.export`)."""
    from torch.utils import _pytree

    kind: Any = namedtuple(f"{mixer}_outs", names)  # type: ignore[misc]
    setattr(kind, "__reduce__", lambda self: (_rebuild_outs, (mixer, names, tuple(self))))  # noqa: B010
    if hasattr(_pytree, "_register_namedtuple"):
        _pytree._register_namedtuple(kind, serialized_type_name=f"mixc.{mixer}_outs.{'.'.join(names)}")
    return kind  # type: ignore[no-any-return]


def _rebuild_outs(mixer: str, names: tuple[str, ...], values: tuple[Any, ...]) -> Any:
    return outs_type(mixer, names)(*values)
