"""From text (or a Python function) to the step of a mixer."""

from mixc.frontend.check import elaborate, loop_dims, structural_consts, unrolled_dims
from mixc.frontend.parse import parse

__all__ = ["elaborate", "loop_dims", "parse", "structural_consts", "unrolled_dims"]
