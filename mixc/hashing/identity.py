"""The hash of a mixer, and which shipped spec it is."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from mixc.hashing.canonical import Canonical, canonical
from mixc.hashing.spec import Elaborate
from mixc.ir.program import Program

if TYPE_CHECKING:
    from mixc.runtime.mixer import Mixer

_found: WeakKeyDictionary[Mixer, Canonical] = WeakKeyDictionary()


def hash_of(mixer: Mixer) -> str:
    """32 hexadecimal digits, equal for two specs exactly when they are one function (language.md, section 2)."""
    return canonical_of(mixer).digest.hex()[:32]


def canonical_of(mixer: Mixer) -> Canonical:
    if mixer not in _found:
        _found[mixer] = canonical(mixer.declared, elaborate_of(mixer))
    return _found[mixer]


def elaborate_of(mixer: Mixer) -> Elaborate:
    structural = frozenset(mixer.structural_consts)

    def elaborate(sizes: dict[str, int]) -> tuple[Program, frozenset[str]]:
        return mixer.specialise(sizes, {})[0], structural
    return elaborate


def outline(program: Program) -> Counter[tuple[str, str, int, int]]:
    """What two specs must have in common to be worth a hash: how many declarations of each kind."""
    return Counter((d.role, d.kind, len(d.dims), min(len(d.ranges), 1)) for d in program.decls)
