"""Which shipped spec a mixer is, under which names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mixc.hashing.confirm import Matching, same_function
from mixc.hashing.identity import outline

if TYPE_CHECKING:
    from mixc.runtime.mixer import Mixer


def shipped_twin(mixer: Mixer) -> tuple[str, Matching] | None:
    """The first shipped mixer that is the same function, and what of it is what of `mixer`; None for its own file."""
    from mixc.runtime.load import from_text, shipped

    found = None
    for path in shipped().values():
        text = path.read_text(encoding="utf-8")
        for name in _names(text):
            other = from_text(text, str(path), name)
            if outline(other.declared) != outline(mixer.declared):
                continue
            if other.text == mixer.text:
                return None
            if found is None and (matching := same_function(other, mixer)) is not None:
                found = name, matching
    return found


def _names(text: str) -> list[str]:
    from mixc.errors import Source
    from mixc.frontend import parse

    return [m.name for m in parse(Source("<shipped>", text))]
