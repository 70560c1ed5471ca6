"""From what a caller gives to a `Call`, or an InputError that names the argument.

    `k`: expected [B, T, H, K] with K = 64 (from `q`), got [2, 100, 4, 32]
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from mixc.errors import InputError
from mixc.ir.program import Decl, Program
from mixc.runtime import checks
from mixc.runtime.call import Call
from mixc.runtime.describe import OPTION_DEFAULTS
from mixc.runtime.options import dense, flag, initial, packed_lengths, token_mask
from mixc.runtime.rows import rows

if TYPE_CHECKING:
    from mixc.runtime.mixer import Mixer

Tensor = torch.Tensor
OPTIONS = tuple(OPTION_DEFAULTS)
REAL = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
COMPLEX = (torch.complex64, torch.complex128)


def bind(mixer: Mixer, args: tuple[Any, ...], given: dict[str, Any], options: dict[str, Any], *,
         token: bool = False) -> Call:
    """The canonical form of a call.

    Args:
        args: tensors by position, ins then params.
        given: tensors and consts by keyword.
        options: initial_state, cu_seqlens, mask, reverse, check, output_final_state.
        token: the ins lack T, as `step` takes them.
    Raises:
        InputError: anything the spec cannot take.
    """
    declared = mixer.declared
    tensors, consts = _by_name(declared, args, given)
    shapes = _Shapes(declared, tensors, token)
    cu, mask = options.get("cu_seqlens"), options.get("mask")
    careful = flag(options, "check")
    if cu is not None:
        packed_lengths(cu, shapes.B, shapes.T, shapes.device, careful)
    if mask is not None:
        token_mask(mask, shapes.B, shapes.T, shapes.device)
    layout = rows(shapes.B, shapes.T, cu_seqlens=cu, mask=mask, reverse=flag(options, "reverse"))
    shapes.take_states(options.get("initial_state"), layout.N)
    sizes = shapes.all_sizes()
    program, values = mixer.specialise(sizes, checks.const_numbers(declared, consts))
    start = initial(program, options.get("initial_state"), sizes, layout.N, shapes.H, shapes.headless, shapes.device,
                    "state" if token else "initial_state", "B" if cu is None else "N")
    call = Call(program, sizes, values, shapes.H, shapes.ins(tensors), shapes.params(tensors), layout, shapes.dtype,
                _out_dtypes(program, tensors), shapes.device, start.states, start.lags, start.pos,
                flag(options, "output_final_state"), shapes.headless)
    if careful:
        checks.ranges(call)
    return call


def _by_name(declared: Program, args: tuple[Any, ...], given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Every tensor and const by name; all of the spec's tensors, and nothing else."""
    order = [d.name for d in (*declared.ins, *declared.params)]
    consts = {d.name for d in declared.consts}
    if len(args) > len(order):
        raise InputError(f"{declared.name} takes {len(order)} tensor{'s' * (len(order) != 1)} ({', '.join(order)}), "
                         f"got {len(args)} by position")
    tensors = dict(zip(order, args, strict=False))
    for name, value in given.items():
        if name in tensors:
            raise InputError(f"`{name}` is given twice: by position and by keyword")
        if name not in order and name not in consts:
            _unknown(name, declared, [*order, *sorted(consts), *OPTIONS])
        if name in order:
            tensors[name] = value
    missing = [n for n in order if n not in tensors]
    if missing:
        names = ", ".join(f"`{n}`" for n in missing)
        raise InputError(f"{declared.name} misses {names}: it takes {', '.join(order)}")
    return tensors, {n: v for n, v in given.items() if n in consts}


def _unknown(name: str, declared: Program, known: Iterable[str]) -> NoReturn:
    near = difflib.get_close_matches(name, list(known), 1)
    hint = f"; did you mean `{near[0]}`?" if near else f"; it takes {', '.join(known)}"
    raise InputError(f"{declared.name} has no argument `{name}`{hint}")


def _out_dtypes(program: Program, tensors: dict[str, Tensor]) -> dict[str, torch.dtype]:
    """The dtype of the first `in` that has dims, else of the first `in`, real or complex as the out is."""
    first = next((d for d in program.ins if d.dims), program.ins[0])
    given = tensors[first.name].dtype
    real = given.to_real() if given.is_complex else given
    wide = torch.complex128 if real == torch.float64 else torch.complex64
    return {d.name: wide if program.result("out", d.name).kind == "complex" else real for d in program.outs}


def has_length(declared: Program) -> None:
    if not declared.ins:
        raise InputError(f"{declared.name} has no input, so a call has no length")


class _Shapes:
    """B, T, H and the size of every dim, solved from the tensors of a call."""

    def __init__(self, declared: Program, tensors: dict[str, Any], token: bool):
        self.declared, self.token = declared, token
        has_length(declared)
        for d in (*declared.ins, *declared.params):
            self._kind(d, tensors[d.name], tensors)
        self.device: torch.device = tensors[declared.ins[0].name].device
        self.headless = self._head_form(tensors)
        self.sizes = declared.fixed
        self.origin: dict[str, str] = dict.fromkeys(self.sizes, "the spec")
        self.root = {"B": "B", "T": "T", **declared.root}
        for d in (*declared.ins, *declared.params):
            self._fit(d, tensors[d.name])
        self.H = self._heads(tensors)
        self.B = self.sizes.pop("B")
        self.T = 1 if token else self.sizes.pop("T")
        # "an input" is an `in`: a parameter kept in fp64 does not change what a mixer promises
        wide = any(tensors[d.name].dtype in (torch.float64, torch.complex128) for d in declared.ins)
        self.dtype = torch.float64 if wide else torch.float32

    def _kind(self, d: Decl, x: Any, tensors: dict[str, Any]) -> None:
        want = self.text(d, headless=False)
        if not isinstance(x, Tensor):
            got = " ".join(repr(x).split())
            raise InputError(f"`{d.name}`: expected a tensor {want}, got {type(x).__name__} {got:.60}")
        allowed = COMPLEX if d.kind == "complex" else REAL
        if x.dtype not in allowed:
            names = ", ".join(str(t).removeprefix("torch.") for t in allowed)
            raise InputError(f"`{d.name}`: expected {want} of {names}, got {str(x.dtype).removeprefix('torch.')}")
        dense(d.name, x, want)
        first = self.declared.ins[0].name
        home = tensors[first]
        if isinstance(home, Tensor) and x.device != home.device:
            raise InputError(f"`{d.name}`: expected on {home.device}, as `{first}`, got {x.device}")

    def lead(self, d: Decl) -> tuple[str, ...]:
        return () if d.role == "param" else ("B",) if self.token else ("B", "T")

    def text(self, d: Decl, headless: bool | None = None) -> str:
        headless = self.headless if headless is None else headless
        return f"[{', '.join([*self.lead(d), *([] if headless else ['H']), *d.dims])}]"

    def _head_form(self, tensors: dict[str, Tensor]) -> bool:
        """Whether the call has no head axis: all ins lack it, or none does."""
        extra = {d.name: tensors[d.name].ndim - len(self.lead(d)) - len(d.dims) for d in self.declared.ins}
        headless = not any(n == 1 for n in extra.values())
        for d in (*self.declared.ins, *self.declared.params):
            x = tensors[d.name]
            n = x.ndim - len(self.lead(d)) - len(d.dims)
            if n == (0 if headless else 1):
                continue
            want = self.text(d, headless)
            why = ""
            if n == 0:
                with_axis = next(name for name, n in extra.items() if n == 1)
                why = f" (`{with_axis}` has a head axis; H may be 1)"
            elif headless and n == 1:
                why = " (no input has a head axis)"
            elif headless:
                want = f"{self.text(d, False)}, or {want} without heads"
            raise InputError(f"`{d.name}`: expected {want}, got {list(x.shape)}{why}")
        return headless

    def _fit(self, d: Decl, x: Tensor) -> None:
        """Takes the sizes of x, or finds that they disagree; head counts are compared later."""
        lead = self.lead(d)
        for axis, dim in enumerate((*lead, *([] if self.headless else ["H"]), *d.dims)):
            n = x.shape[axis]
            if n == 0 and axis >= len(lead):
                raise InputError(f"`{d.name}`: expected {self.text(d)} with {dim} at least 1, got {list(x.shape)}")
            if dim == "H":
                continue
            root = self.root[dim]
            have, origin = self.sizes.setdefault(root, n), self.origin.setdefault(root, f"`{d.name}`")
            if have != n:
                raise InputError(f"`{d.name}`: expected {self.text(d)} with {dim} = {have} (from {origin}), "
                                 f"got {list(x.shape)}")

    def _heads(self, tensors: dict[str, Tensor]) -> int:
        if self.headless:
            return 1
        groups = {d.name: tensors[d.name].shape[len(self.lead(d))] for d in (*self.declared.ins, *self.declared.params)}
        most = max(groups, key=groups.__getitem__)
        for d in (*self.declared.ins, *self.declared.params):
            if groups[most] % groups[d.name]:
                raise InputError(f"`{d.name}`: expected {self.text(d)} with a head count that divides "
                                 f"H = {groups[most]} (from `{most}`), got {list(tensors[d.name].shape)}")
        return groups[most]

    def take_states(self, state: Any, N: int) -> None:
        """Sizes that only a state has come from the initial one."""
        named = {d.name: d for d in self.declared.states}
        if isinstance(state, Tensor) and len(named) == 1:
            state = {next(iter(named)): state}
        for name, x in state.items() if isinstance(state, dict) else ():
            d = named.get(name)
            missing = d is not None and any(self.root[dim] not in self.sizes for dim in d.dims)
            if d is not None and missing and isinstance(x, Tensor) and x.ndim == len(d.dims) + 2 - self.headless:
                for dim, n in zip(d.dims, x.shape[-len(d.dims):], strict=True):
                    self.sizes.setdefault(self.root[dim], n)

    def all_sizes(self) -> dict[str, int]:
        for d in self.declared.dims:
            if self.root[d.name] not in self.sizes:
                raise InputError(f"{self.declared.name}: no tensor says the size of `{d.name}`; write "
                                 f"`{d.name} = 4` in the header, or give an initial state that has it")
        return {d.name: self.sizes[self.root[d.name]] for d in self.declared.dims}

    def ins(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """[B, T, G, dims...]"""
        found = {}
        for d in self.declared.ins:
            x = tensors[d.name]
            x = x.unsqueeze(1) if self.token else x
            found[d.name] = x.unsqueeze(2) if self.headless else x
        return found

    def params(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """[G, dims...]"""
        return {d.name: tensors[d.name].unsqueeze(0) if self.headless else tensors[d.name]
                for d in self.declared.params}
