"""Making specs for the tests of the frontend."""

from mixc.errors import Diagnostic, Source, SpecError
from mixc.frontend.check import elaborate
from mixc.frontend.parse import parse
from mixc.ir.program import Program

GATED_DELTA = """\
# Gated delta rule (Yang et al. 2024, arXiv 2412.06464)
# in two lines of comment
mixer gated_delta_rule(K, V) {
    in    q[K], v[V]                        # query, value
    in    k[K] where norm[K](k) <= 1        # key
    in    g    where g <= 0                 # log of the decay
    in    beta where 0 <= beta <= 1         # write strength
    const scale = K ** -0.5
    state S[K, V]

    S = exp(g) * S
    S = S + beta * k * (v - k @ S)          # the error is read after the decay

    out o[V] = scale * (q @ S)
}
"""


def step(text: str, sizes: dict[str, int] | None = None, consts: dict[str, float] | None = None) -> Program:
    (mixer,) = parse(Source("test.mix", text))
    return elaborate(mixer, sizes, consts)


def body(lines: str, header: str = "K, V", declarations: str = "in q[K], k[K], v[V], g, beta\nstate S[K, V]") -> str:
    """A mixer around lines, whose first line is line 5."""
    before = f"mixer m({header}) {{\n{declarations}\n"
    return before + "\n" * (4 - before.count("\n")) + lines + "\n}\n"


def refused(text: str) -> list[Diagnostic]:
    """What is wrong with a spec."""
    try:
        step(text)
    except SpecError as e:
        return e.diagnostics
    raise AssertionError("accepted:\n" + text)
