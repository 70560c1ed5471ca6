"""The slips a PyTorch user makes first, each with what to write instead.

Shared by both surfaces: a `.mix` text and a Python function are refused in the same words.
"""

from __future__ import annotations

import re

from mixc.errors import Diagnostic, Span
from mixc.frontend.names import FUNCTIONS, REDUCTIONS

MODULES = {"torch", "F", "nn", "np", "numpy", "math", "jnp", "jax", "tl", "cmath"}
STATEMENTS = {
    "if": "the same lines run for every token: choose between values with `where(cond, a, b)`",
    "while": "the only loop is `for n in N { ... }` over a dim",
    "return": "what comes out is written `out o[V] = ...`",
    "import": "nothing is imported: the functions of the language are always there",
    "def": "there are no functions: give the value a name, `y = ...`",
    "for": "the only loop is `for n in N { ... }` over a dim",
}
STATEMENTS |= dict.fromkeys(("elif", "else", "match"), STATEMENTS["if"])
STATEMENTS |= dict.fromkeys(("yield", "print"), STATEMENTS["return"])
STATEMENTS |= dict.fromkeys(("lambda", "class", "async"), STATEMENTS["def"]) | {"from": STATEMENTS["import"]}
STATEMENTS |= dict.fromkeys(("assert", "raise", "try"), "what must hold of an input is a range: `in g where g <= 0`")
STATEMENTS |= {"with": "nothing stands around lines: gradients end at `stop_gradient(x)`, and autocast changes nothing",
               "pass": "leave it out"}
STATEMENTS |= dict.fromkeys(("break", "continue", "del", "global", "nonlocal", "await"),
                            "lines run from top to bottom, once per token")

_BY_NAME = "dims have names: nothing is transposed, reshaped or repeated by hand; `a @ b` sums over the dims both have"
_INSTEAD = {
    **dict.fromkeys(("T", "mT", "t", "transpose", "permute", "swapaxes", "view", "reshape", "unsqueeze", "squeeze",
                     "expand", "repeat", "flatten", "movedim", "rearrange", "broadcast_to", "contiguous"), _BY_NAME),
    **dict.fromkeys(("matmul", "mm", "bmm", "mv", "dot", "inner", "einsum", "bilinear", "addmm"),
                    "write `a @ b`: it sums over every dim that both have; keep a shared dim with `sum[K](a * b)`"),
    **dict.fromkeys(("outer", "kron"), "write `k * v`: values broadcast by dim name, so it is the outer product"),
    **dict.fromkeys(("shape", "size", "numel", "len", "ndim"), "a dim's name in an expression is its size"),
    **dict.fromkeys(("cumsum", "cumprod", "cummax", "logcumsumexp", "scan"),
                    "over time a state does that: `state s`, then `s = s + x`"),
    **dict.fromkeys(("zeros", "ones", "full", "zeros_like", "ones_like", "tensor", "empty"),
                    "write the number: a value without dims is repeated"),
    **dict.fromkeys(("cat", "concat", "stack", "chunk", "split"), "give every part its own name and dims"),
    **dict.fromkeys(("float", "double", "half", "to", "bfloat16", "type", "int", "long"),
                    "every value is a float of the run's precision: nothing is cast"),
    **dict.fromkeys(("amax", "argmax"), "write `max[K](x)`"), "amin": "write `min[K](x)`",
    "var": "write `mean[K](square(x - mean[K](x)))`", "prod": "write `exp(sum[K](log(x)))` for positive x",
    "logsumexp": "write `log(sum[K](exp(x - max[K](x)))) + max[K](x)`",
    "rms": "write `sqrt(mean[K](square(x)))`", "detach": "write `stop_gradient(x)`", "ln": "write `log(x)`",
    "pow": "write `x ** y`", "normalize": "write `x / norm[K](x)`",
    **dict.fromkeys(("arange", "index"), "write `index[K]`"),
    "conv1d": "write `sum[W](c * lag[W](x))`", "roll": "write `lag(x, n)`", "shift": "write `lag(x, n)`",
    "mul": "write `a * b`", "add": "write `a + b`", "sub": "write `a - b`", "div": "write `a / b`",
    "neg": "write `-x`", "item": "a value needs no `.item()`", "log2": "write `log(x) / log(2)`",
    "sgn": "write `sign(x)`", "linear": "write `W @ x`, with `param W[D, E]`", "clip": "write `clamp(x, low, high)`",
    "exp2": "write `2 ** x`", "tan": "write `sin(x) / cos(x)`", "logit": "write `log(p / (1 - p))`",
    "swish": "write `silu(x)`", "pi": "write `pi`", "inf": "write `inf`", "e": "write `exp(1)`",
    "leaky_relu": "write `maximum(x, 0.01 * x)`", "relu6": "write `clamp(x, 0, 6)`",
    "hardtanh": "write `clamp(x, -1, 1)`", "hardsigmoid": "write `clamp(x / 6 + 0.5, 0, 1)`",
    "hardswish": "write `x * clamp(x / 6 + 0.5, 0, 1)`", "mish": "write `x * tanh(softplus(x))`",
    "selu": "write `1.0507 * where(x > 0, x, 1.67326 * expm1(x))`",
    "prelu": "write `where(x > 0, x, a * x)`, with `param a`", "softsign": "write `x / (1 + abs(x))`",
    "celu": "write `where(x > 0, x, a * expm1(x / a))`",
    "swiglu": "write `silu(x) * y`", "glu": "write `sigmoid(x) * y`", "softcap": "write `c * tanh(x / c)`",
    "sinh": "write `(exp(x) - exp(-x)) / 2`", "cosh": "write `(exp(x) + exp(-x)) / 2`",
    "softmin": "write `softmax[K](-x)`", "log_softmax": "write `log(softmax[K](x))`", "reciprocal": "write `1 / x`",
    "lerp": "write `a + w * (b - a)`", "addcmul": "write `a + x * y`", "addcdiv": "write `a + x / y`",
    "std": "write `sqrt(mean[K](square(x - mean[K](x))))`",
    "heaviside": "write `x > 0`: as a number it is 1 or 0",
    "hypot": "write `sqrt(x * x + y * y)`", "polar": "write `r * exp(1j * a)`", "complex": "write `x + 1j * y`",
    "re": "write `real(x)`", "im": "write `imag(x)`", "l1norm": "write `sum[K](abs(x))`",
    "frobenius": "write `norm(x)`",
    "mse": "write `sum(square(x - y))`", "mse_loss": "write `mean(square(x - y))`", "power": "write `x ** y`",
    "cosine_similarity": "write `(x @ y) / (norm(x) * norm(y))`", "any": "write `max[K](x > 0) > 0`",
    "all": "write `min[K](x > 0) > 0`", "argmin": "write `min[K](x)`",
    **dict.fromkeys(("topk", "sort", "gather", "scatter", "index_select", "one_hot"),
                    "entries are told apart by a mask: `where(x >= max[K](x), x, 0)`, `index[K] == n`"),
    **dict.fromkeys(("tril", "triu", "eye", "diag", "trace"),
                    "entries are told apart by their places: `where(index[K] >= index[E], x, 0)`, with `E = K`"),
    **dict.fromkeys(("dropout", "rand", "randn", "bernoulli", "normal"),
                    "nothing is random in a mixer: give what was drawn as an input"),
    **dict.fromkeys(("floor", "ceil", "round", "trunc"), "whole numbers come of `pos`, `index` and loops: `pos // n`"),
    **dict.fromkeys(("fmod", "remainder", "mod"), "write `pos % n`"),
    **dict.fromkeys(("inverse", "inv", "solve", "pinverse"),
                    "no system is solved in a step: an inverse can be carried, `P = P - u * w / (1 + w @ k)`"),
    **dict.fromkeys(("conv", "convolution"), "write `sum[W](c * lag[W](x))`"),
    "layer_norm": "with `y = x - mean[D](x)` write `y * rsqrt(mean[D](square(y)) + 1e-5)`",
    "rms_norm": "write `x * rsqrt(mean[D](square(x)) + 1e-6)`", "masked_fill": "write `where(cond, value, x)`",
}

_SPELLED = {n.replace("_", ""): text for n, text in _INSTEAD.items()} | {"l2norm": _INSTEAD["normalize"]}


def instead(name: str, x: str = "x") -> str | None:
    """What to write for a PyTorch name, if we know."""
    if name in REDUCTIONS:
        return f"write `{name}[K]({x})`, with the dims to reduce over in the brackets, or `{name}({x})` for all"
    if name in FUNCTIONS:
        return f"write `{name}({', '.join([x, 'b', 'c'][:FUNCTIONS[name]])})`"
    return _INSTEAD.get(name) or _SPELLED.get(name.lower().replace("_", ""))


def statement(word: str, span: Span) -> Diagnostic:
    return Diagnostic("MX103", f"`{word}` is no statement of the language", span, STATEMENTS[word])


def attribute(base: str, name: str, span: Span, called: bool = False) -> Diagnostic:
    """x.T, x.sum(...), torch.exp(...): `base` is the text before the dot."""
    if base.split(".")[0] in MODULES:
        help_ = instead(name) or "the functions of the language are listed in docs/language.md, section 1"
        return Diagnostic("MX105", f"`{base}.{name}` is no function of the language", span, help_)
    help_ = instead(name, base) or "write functions before their arguments: `exp(x)`, `sum[K](x)`"
    what = f"`{base}.{name}(...)`: values have no methods" if called else f"`{base}.{name}`: values have no attributes"
    return Diagnostic("MX104", what, span, help_)


def no_target(text: str, span: Span) -> Diagnostic:
    help_ = "assign to whole names; a part of a state changes by `S = where(cond, new, S)`"
    if text.split("[")[0].strip() == "out":
        help_ = f"an out has a name: `out o{text[3:].strip()} = ...`"
    return Diagnostic("MX108", f"`{text}` is no name to assign to", span,
                      _OVER_TIME if re.search(r"\[\s*t\s*[],]", text) else help_)


_OVER_TIME = ("a state's name is what the previous token left, until a line assigns it: `S = exp(g) * S + ...`; "
              "`lag(x, 1)` is an input of the token before")


def position(text: str, span: Span) -> Diagnostic:
    if re.search(r"\[\s*t\s*([-+]\s*\d+\s*)?[],]", text):
        return Diagnostic("MX106", f"`{text}` picks a token: time is implied", span, _OVER_TIME)
    plain = text.replace("'", "").replace('"', "")
    if plain != text:
        return Diagnostic("MX106", f"`{text}` has quotes: in a body dims stand without", span, f"write `{plain}`")
    return Diagnostic("MX106", f"`{text}` picks by position: brackets hold names of dims and loop indices", span,
                      "entries are picked inside `for n in N { ... x[n] ... }`, or by a mask: "
                      "`sum[K](where(index[K] == 0, S, 0))`")


def number_as_dim(text: str, span: Span) -> Diagnostic:
    return Diagnostic("MX106", f"`{text}` is no name of a dim", span,
                      "dims have names, given in the header: `mixer f(K, N = 4) { in x[K, N]`")


def several_targets(span: Span) -> Diagnostic:
    return Diagnostic("MX107", "one line assigns one name", span,
                      "lines run from top to bottom: keep the old value first, `old = a`, then `a = b`, then `b = old`")


def keyword(fn: str, name: str, span: Span) -> Diagnostic:
    if fn in REDUCTIONS:
        help_ = f"dims to reduce over stand in brackets: `{fn}[K](x)`"
    else:
        help_ = "arguments go by position; `clamp(x, low, high)`"
    return Diagnostic("MX109", f"`{name}=`: functions take no keywords", span, help_)


def lost_value(text: str, span: Span) -> Diagnostic:
    return Diagnostic("MX110", f"the value of `{text}` goes nowhere", span,
                      "give it a name, `y = ...`, or let it out, `out y[D] = ...`")
