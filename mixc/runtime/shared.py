"""One function, one kernel: a mixer runs on the kernels of an earlier one that is the same function.

Matched by `hashing.same_function`: other names, another order of names and of a state's dims.  Where a spec has a
kink (`maximum`, `clamp`, a comparison) nothing is shared, since there a derivative is what its own text says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakSet

from mixc.hashing.canonical import outline
from mixc.hashing.confirm import SIDES, Matching, same_function
from mixc.ir.node import postorder
from mixc.passes.context import has_context
from mixc.runtime.call import Call

if TYPE_CHECKING:
    import torch

    from mixc.runtime.mixer import Mixer

    Results = tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]

_owners: dict[Any, WeakSet[Mixer]] = {}  # those that have kernels of their own, by what they declare
_found: WeakKeyDictionary[Mixer, Twin | None] = WeakKeyDictionary()


@dataclass(frozen=True)
class Twin:
    """The mixer whose kernels run, and what of it is what of the caller's."""

    mixer: Mixer
    matching: Matching
    order: dict[str, list[int]]  # by names of the caller: which of its dims each dim of the other's is

    def run(self, run: Callable[[Mixer, Call], Results], call: Call) -> Results:
        """A call of the mixer that has none, by the kernels of the other."""
        names, dims, order = self.matching.names, self.matching.dims, self.order

        def given(values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return {names[n]: _permuted(x, order[n]) for n, x in values.items()}

        consts = {names[n]: value for n, value in call.consts.items()}
        sizes = {dims[d]: size for d, size in call.sizes.items()}
        outs, states = run(self.mixer, replace(
            call, program=self.mixer.specialise({d.name: sizes[d.name] for d in self.mixer.declared.dims}, consts)[0],
            sizes=sizes, consts=consts, ins=given(call.ins), params=given(call.params), states0=given(call.states0),
            out_dtypes={names[n]: dtype for n, dtype in call.out_dtypes.items()}))

        def own_names(values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return {n: _permuted(values[m], [order[n].index(i) for i in range(len(order[n]))])
                    for n, m in names.items() if m in values}
        return own_names(outs), own_names(states)


def _permuted(x: torch.Tensor, order: list[int]) -> torch.Tensor:
    """Its last axes in this order."""
    before = x.dim() - len(order)
    return x if order == sorted(order) else x.permute(*range(before), *(before + i for i in order))


def twin(mixer: Mixer) -> Twin | None:
    """Whose kernels `mixer` runs on; None: it has its own."""
    if mixer not in _found:
        _found[mixer] = _search(mixer)
    return _found[mixer]


def _search(mixer: Mixer) -> Twin | None:
    program = mixer.declared
    roots = [*program.values(), *program.inits]
    if has_context(program) or any(n.op in SIDES or n.kind == "complex" for n in postorder(roots)):
        return None
    owners = _owners.setdefault(frozenset(outline(program).items()), WeakSet())
    for other in list(owners):
        matching = same_function(mixer, other)
        if matching is not None:
            dims = {n: [matching.dims[d] for d in program.decl(n).dims] for n in matching.names}
            return Twin(other, matching, {n: [dims[n].index(d) for d in other.declared.decl(m).dims]
                                          for n, m in matching.names.items()})
    owners.add(mixer)
    return None
