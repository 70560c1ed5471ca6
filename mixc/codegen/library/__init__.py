"""What emitted files share: real files of Triton and torch, of which a module brings along what it reads.

Nothing here is imported: the text is written into modules that need torch and triton only.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

NARROW = 32  # entries of a key: a sum over fewer does not average out what is rounded in it


@cache
def library(name: str) -> str:
    """The text of a file, behind its imports."""
    text = Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8")
    return text[text.index("\n\n\n"):].replace("NARROW", str(NARROW))


@cache
def names(*files: str) -> frozenset[str]:
    """What files define."""
    return frozenset(re.findall(r"^(?:def|class) (\w+)", "".join(map(library, files)), re.MULTILINE))
