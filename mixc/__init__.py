"""mixc: sequence mixers from what happens to one token.

    gdn = mixc.load("gated_delta_rule")
    o, state = gdn(q, k, v, g, beta)
"""

from mixc import nn
from mixc.errors import InputError, SpecError
from mixc.lang import outs
from mixc.runtime.jit import jit
from mixc.runtime.load import load, loads
from mixc.runtime.mixer import Mixer

__all__ = ["InputError", "Mixer", "SpecError", "jit", "load", "loads", "nn", "outs"]
