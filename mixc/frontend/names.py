"""The vocabulary: functions, reductions, and which names are taken."""

from __future__ import annotations

import difflib
import keyword
from collections.abc import Iterable

# name: how many arguments
FUNCTIONS = dict.fromkeys(
    ("exp", "log", "log1p", "expm1", "sqrt", "rsqrt", "square", "abs", "sign", "sin", "cos", "tanh", "sigmoid",
     "logsigmoid", "softplus", "relu", "silu", "gelu", "elu", "real", "imag", "conj", "stop_gradient"), 1)
FUNCTIONS |= {"maximum": 2, "minimum": 2, "logaddexp": 2, "clamp": 3, "where": 3}
REAL_ONLY = {"logsigmoid", "softplus", "relu", "gelu", "elu", "maximum", "minimum", "logaddexp", "clamp"}
REDUCTIONS = ("sum", "mean", "max", "min", "norm", "softmax")
OVER_TIME = ("lag", "grad")
VALUES = ("pos", "inf", "pi")
WORDS = {*FUNCTIONS, *REDUCTIONS, *OVER_TIME, *VALUES, "index"}
CALL_ARGUMENTS = {"self", "initial_state", "output_final_state", "cu_seqlens", "mask", "reverse", "check", "backend",
                  "state"}
IMPLIED = {"B": "batch", "T": "time", "H": "head"}


def refusal(name: str) -> tuple[str, str] | None:
    """Why `name` cannot be given to anything of a mixer (message, help); None if it can."""
    if name.startswith("_"):
        return f"`{name}` starts with an underscore", f"call it `{name.lstrip('_') or 'x'}`"
    if keyword.iskeyword(name):
        return f"`{name}` is a keyword of Python", f"call it `{name}_`"
    if name in WORDS:
        return f"`{name}` is a word of the language", f"call it `{name}_`"
    if name in CALL_ARGUMENTS:
        return f"`{name}` is an argument of every mixer's call", f"call it `{name}_`"
    return None


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that `name` was probably meant to be."""
    known = list(known)
    same = [k for k in known if k.lower() == name.lower()] or difflib.get_close_matches(name, known, 1, 0.6)
    return same[0] if same else None
