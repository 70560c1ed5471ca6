"""The pipeline: what a spec passes on its way to a program, in order."""

from collections.abc import Callable

from mixc.ir.program import Program
from mixc.passes.chunk import chunk as _chunk
from mixc.passes.classify import classify as _classify
from mixc.passes.differentiate import differentiate as _differentiate

# step -> stages -> chunk -> chunk (backward); each a function from Program to Program
PIPELINE: tuple[tuple[str, Callable[[Program], Program]], ...] = (
    ("classify", _classify), ("chunk", _chunk), ("differentiate", _differentiate))
