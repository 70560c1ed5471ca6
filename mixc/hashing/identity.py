"""The hash of a mixer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mixc.hashing.canonical import Canonical, canonical
from mixc.ir.program import Program

if TYPE_CHECKING:
    from mixc.runtime.mixer import Mixer

def hash_of(mixer: Mixer) -> str:
    """32 hexadecimal digits, equal for two specs exactly when they are one function (language.md, section 2)."""
    return canonical_of(mixer).digest.hex()[:32]


def canonical_of(mixer: Mixer) -> Canonical:
    structural = frozenset(mixer.structural_consts)

    def elaborate(sizes: dict[str, int]) -> tuple[Program, frozenset[str]]:
        return mixer.specialise(sizes, {})[0], structural

    return canonical(mixer.declared, elaborate)
