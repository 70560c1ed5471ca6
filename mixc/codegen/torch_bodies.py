"""Bodies that `torch.compile` made (`torch_fused`), run over the chunks of a segment.

Where chunks are carried first, `ends` and `body` work on all of them at once; where they run one after the other, as
slabs of a matrix a row would not fit the cache, `body` is called for every chunk, and what torch.compile does around a
graph would take a third of the time: it is left out from the second chunk on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Hashable
from itertools import chain
from operator import itemgetter
from typing import Any

import torch

from mixc.codegen.torch_prelude import once_made
from mixc.codegen.torch_scan_prelude import carry
from mixc.codegen.torch_segment import Segment

Tensor = torch.Tensor
Function = Callable[..., Any]
Given = dict[str, Any]
# behind the last dim of rows that `body` hands on: rows that lie as one dim would be written in a loop of their own
APART = 16
MOST = 64  # graphs that a function remembers
# of Inductor: one loop for all rows, whose values are no buffers; that rows lie as they did is not asked in every call
OPTIONS: dict[str, Any] = {"size_asserts": False, "alignment_asserts": False,
                           "realize_reads_threshold": 1 << 20, "realize_opcount_threshold": 1 << 20,
                           "max_fusion_size": 1 << 20, "cpp.max_horizontal_fusion_size": 1 << 20}


class Compiled:
    """A function of named tensors and lists of them, compiled; of the arguments it is given it takes those it names.

    What torch.compile does around a graph, it looks at every argument, is left out where arguments are known to be as
    those of a call before, but for what they hold and where they lie (`known`).
    """

    def __init__(self, f: Function):
        self.names, self._mine = read_by(f), _Graphs()
        self._run = torch.compile(f, fullgraph=True, backend=self._backend)

    def __call__(self, args: Given, known: Hashable = None) -> Any:
        """known: what says of all arguments of what shapes they are and how they lie in memory; numbers are looked
        at here.  None: nothing does."""
        key = known and (known, *(x for x in map(args.get, self.names) if not isinstance(x, Tensor | list)))
        if key in self._mine.graphs:
            graph, sizes, take = self._mine.graphs[key]
            return graph(list(take([*self._flat(args), *sizes])))
        self._mine.last = None
        given = {n: _at_start(args[n]) for n in self.names}
        found = self._run(**given)
        if key and self._mine.last:
            self._remember(key, self._flat(given), list(found or ()), *self._mine.last)
        self._mine.last = None
        return found

    def _flat(self, args: Given) -> list[Any]:
        return list(chain.from_iterable(v if isinstance(v, list) else (v,) for v in map(args.__getitem__, self.names)))

    def _remember(self, key: Hashable, args: list[Any], found: list[Any], graph: Function, inputs: list[Any],
                  given: Any) -> None:
        """Whence a graph's inputs are, if it did all there was to do; and the sizes among them."""
        at = {id(x): i for i, x in enumerate(args) if isinstance(x, Tensor)}
        sizes = [x for x in inputs if not isinstance(x, Tensor)]
        at |= {id(x): len(args) + i for i, x in enumerate(sizes)}
        if len(found) != len(given) or any(x is not y for x, y in zip(found, given, strict=True)) or any(
                id(x) not in at for x in inputs) or len(inputs) < 2:
            return
        if len(self._mine.graphs) >= MOST:
            self._mine.graphs.clear()
        self._mine.graphs[key] = graph, sizes, itemgetter(*(at[id(x)] for x in inputs))

    def _backend(self, module: Any, inputs: Any) -> Any:
        from torch._functorch import config
        from torch._inductor.compile_fx import compile_fx, compile_fx_inner

        def inner(*args: Any, **options: Any) -> Any:
            graph = compile_fx_inner(*args, **options)

            def run(given: list[Any]) -> Any:
                inputs = list(given)  # which the graph empties
                found = graph(given)
                self._mine.last = graph, inputs, found
                return found
            run._boxed_call = True  # type: ignore[attr-defined]
            return run
        with config.patch(enable_autograd_cache=False):  # what it finds there is not compiled by `inner`
            return compile_fx(module, inputs, inner_compile=inner, config_patches=OPTIONS)


class _Graphs(threading.local):
    """Of one thread.  last: the graph of its last call, what went in and what came out."""

    def __init__(self) -> None:
        self.graphs: dict[Hashable, tuple[Function, list[Any], Function]] = {}  # graph, sizes, what takes its inputs
        self.last: tuple[Function, list[Any], Any] | None = None


class Bodies:
    """Runs a segment's functions; called with its arguments, it gives its results.

    Attributes:
        states: what is carried, by the names of emitted arguments.
        turned: received states and params that bodies read with other dims inside: how to permute them.
        places: of results (role, name): the argument that is their place.
        handed, kept: rows that `body` hands to `sums`, and `shared` to others.
        fixed: arguments that no chunk has for its own.
    """

    def __init__(self, segment: Segment, states: list[str], reverse: bool, turned: dict[str, list[int]],
                 places: dict[tuple[str, str], str], handed: Collection[str], kept: Collection[str],
                 fixed: list[str], functions: dict[str, Any]):
        self.segment, self.states, self.reverse, self.turned = segment, states, reverse, turned
        self.places, self.handed, self.sums = places, handed, functions.get("sums")
        self.shared, self.ends, self.body = (f and Compiled(f) for f in map(functions.get, ("shared", "ends", "body")))
        self.sums_read = read_by(self.sums) if self.sums else ()
        self.rows = [*segment.rows, *kept]
        self.fixed = fixed
        self.compiled: set[tuple[Any, bool]] = set()

    def __call__(self, **given: Any) -> tuple[Any, ...]:
        given |= {n: self._turn(n, given[n]) for n in self.segment.heads}
        found = self._carried(given) if self.ends else self._chained(given)
        return tuple(given[self.places[role, name]] if (role, name) in self.places else found.pop(0)
                     for role, name, _ in self.segment.results)

    def _axes(self, name: str, x: Tensor) -> Tensor:
        return x.permute(self.turned[name]) if name in self.turned else x

    def _turn(self, name: str, x: Tensor) -> Tensor:
        return self._axes(name, x).contiguous()

    def _carried(self, given: Given) -> list[Tensor]:
        """All chunks at once, what they receive being carried first."""
        own = self._own(given, 0, given["M"])
        args = {n: _at_start(x) for n, x in own.items()} | self._lent(given, 0, given["M"])
        self._mark(args, given)
        if self.shared:
            self.shared(args)
        found = self.ends(args)  # type: ignore[misc]
        for n, a, b in zip(self.states, found[::2], found[1::2], strict=True):
            carry(given[f"{n}_at"], given[f"{n}_to"], a, b, given[f"{n}_done"], given["steps"], self.reverse)
        for n in (n for n in self.turned if n in self.segment.received):  # copies made before chunks received anything
            args[n].copy_(given[n].permute(self.turned[n]))
        return [*(self.body(args) or ()), *self._sums(given, 0, given["M"], own)]  # type: ignore[misc]

    def _chained(self, given: Given) -> list[Tensor]:
        """One chunk of all sequences after the other."""
        found, low, order = list[list[Tensor]](), 0, -1 if self.reverse else 1
        known = given["dtype"], given["device"]
        for j, (m, finish) in enumerate(zip(given["steps"][::order], given["finish"], strict=True)):
            at = given["M"] - low - m if self.reverse else low
            own = self._own(given, at, m)
            own |= {next_state(n): self._axes(n, given[f"{n}_to"][j]) for n in self.states}
            now = self.body(own | self._lent(given, at, m), (m, *known))  # type: ignore[misc]
            found.append([*(now or ()), *self._sums(given, at, m, own)])
            if finish is not None:
                finish()
            low += m
        return [torch.cat(xs[::order]) if len(xs) > 1 else xs[0] for xs in zip(*found, strict=True)]

    def _own(self, given: Given, low: int, m: int) -> Given:
        """Of the m chunks from `low` on, what is of this call: sizes, numbers, states and params (as they are read)."""
        args = {n: given[n] for n in self.fixed}
        for n in self.segment.received:
            args[n] = self._turn(n, given[n][low:low + m])
        for n in self.segment.heads:
            args[n] = given[n][:m]
        return args

    def _lent(self, given: Given, low: int, m: int) -> Given:
        """Of `body` and those before it, what lies in scratch, which is the same in every call."""
        def lent() -> Given:
            found: Given = {n: _part(given[n], low, m) for n in self.rows}
            found |= {n: _rows(given[n], low, m) for n in self.places.values()}
            return found | {n: _rows(given[n], self._at(low), m, APART) for n in self.handed}
        return self._once(given, ("body", low, m), lent)

    def _sums(self, given: Given, low: int, m: int, own: Given) -> tuple[Tensor, ...]:
        """Behind `body`."""
        def lent() -> Given:
            found = {n: given[n][low:low + m] for n in (*self.rows, *self.segment.scratch) if n in self.sums_read}
            at = self._at(low)
            return found | {n: given[n][at:at + m, ..., :-APART] for n in self.handed}
        if not self.sums:
            return ()
        args = own | self._once(given, ("sums", low, m), lent)
        return self.sums(**{n: args[n] for n in self.sums_read})  # type: ignore[no-any-return]

    def _once(self, given: Given, what: tuple[Any, ...], make: Callable[[], Given]) -> Given:
        """What is made of the scratch that a row lies in, or, where it lies in a tensor of this call, of that."""
        return once_made(given[self.rows[0]], (self, *what), make) if self.rows else make()

    def _at(self, low: int) -> int:
        """Where what is handed on stands: chunk after chunk does it in the same memory, which the cache holds."""
        return low if self.ends else 0

    def _mark(self, args: Given, given: Given) -> None:
        """How many chunks there are is no size to compile for."""
        m = given["M"]
        if (given["dtype"], m == 1) not in self.compiled and m > 1:
            for x in (y for v in args.values() for y in (v if isinstance(v, list) else [v])):
                if isinstance(x, Tensor) and x.ndim and len(x) == m:
                    torch._dynamo.mark_dynamic(x, 0)
        self.compiled.add((given["dtype"], m == 1))


def next_state(name: str) -> str:
    """The argument that is the place of a state behind a chunk."""
    return f"{name}_next"


def read_by(f: Function) -> tuple[str, ...]:
    return f.__code__.co_varnames[:f.__code__.co_kwonlyargcount]


def _rows(x: Tensor, low: int, m: int, apart: int = 0) -> list[Tensor]:
    """x [M, C, ...] row by row, m chunks from `low` on, each at the start of its memory; `apart`: entries behind each
    that are none."""
    def rows() -> list[Tensor]:
        return [_again(row) for row in x.detach()[low:low + m, ..., :x.shape[-1] - apart].unbind(1)]
    return once_made(x, ("rows", low, m), rows)


def _part(x: Tensor, low: int, m: int) -> Tensor:
    """m chunks of x [M, ...] from `low` on, at the start of their memory."""
    if not low and m == len(x):
        return _at_start(x)
    return once_made(x, ("part", low, m), lambda: _again(x.detach()[low:low + m]))


def _at_start(x: Any) -> Any:
    """A tensor at the start of its memory: graphs differ by whether it lies there."""
    if not isinstance(x, Tensor):
        return x
    if not x.storage_offset():
        return x.detach() if x.requires_grad else x
    return once_made(x, "at the start", lambda: _again(x.detach()))


def _again(x: Tensor) -> Tensor:
    """The same memory as a tensor that begins there; by way of numpy in a fifth of the time of dlpack."""
    with torch.inference_mode(False):  # scratch keeps it, for calls in any mode
        return torch.from_numpy(x.numpy()) if x.device.type == "cpu" else torch.from_dlpack(x)
