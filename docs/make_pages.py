"""Writes the pages of docs/ that the compiler knows better: forms.md, gallery.md, errors.md.

    python docs/make_pages.py           (in a checkout: the index of errors takes its examples from the tests)
"""

from __future__ import annotations

import sys
from pathlib import Path

import mixc
from mixc.autotune.tuner import schedules_of
from mixc.codegen.derivation import kernel_lines
from mixc.ir.program import Program
from mixc.passes.classify import parts_of
from mixc.runtime.load import shipped
from mixc.targets import find

DOCS = Path(__file__).parent
MADE = "\n\nMade by `python docs/make_pages.py`"
FORMS = f"""# Recurrences and their forms{MADE}, which asks the compiler (`mixer.form`, `mixer.why`).

| spec | state | form | why |
|---|---|---|---|
"""
SIZES = {"B": 8, "T": 4096, "H": 16}
SHAPE = ", ".join(f"{n} = {size}" for n, size in SIZES.items())
GALLERY = f"""# Gallery{MADE}. Lines count what computes or declares; kernels are Triton's, forward and backward.
Times are the tuner's model of these kernels on an H100, not measured: {SHAPE}, bf16, other dims 64.

`mixc explain NAME --html page.html` says more of each, `mixc bench NAME` times it on this machine.

| spec | paper | form | lines | kernels | forward, ms | backward, ms | hash |
|---|---|---|---|---|---|---|---|
"""
ERRORS = f"""# Errors{MADE} from `docs/codes.py` and from the tests of every code.

A diagnostic has a code, the place, and where one is known what to write instead; `mixc.SpecError` carries them all.

"""


def _cell(text: str) -> str:
    return text.replace("|", chr(92) + "|").replace("\n", " ")


def table() -> str:
    """A row a state of every shipped spec, in the words of the compiler."""
    rows = []
    for name in sorted(shipped()):
        mixer = mixc.load(name)
        rows += [f"| {name} | `{state}` | {form} | {_cell(mixer.why[state])} |"
                 for state, form in mixer.form.items()] or [f"| {name} | | | it has no state |"]
    return FORMS + "\n".join(rows) + "\n"


def row(name: str) -> str:
    """A spec in the gallery."""
    m = mixc.load(name)
    lines = [s for s in m.text.splitlines() if s.strip() and not s.strip().startswith("#")]
    forms = ", ".join(dict.fromkeys(m.form.values())) or "no state"
    times = [f"{s * 1e3:.2f}" if s else "" for s in _seconds(m.declared)]
    found = [str(len(kernel_lines(m.declared))), *times, f"`{m.hash[:12]}`"]
    return f"| {name} | {_cell(m.declared.doc.strip())} | {forms} | {len(lines)} | {' | '.join(found)} |"


def _seconds(step: Program) -> list[float | None]:
    """Of the forward and of the backward, by the tuner's model; None where kernels have their sizes by rule."""
    made = schedules_of(step, find("h100"), SIZES | {d.name: d.size or 64 for d in step.dims}, "bf16")
    if len(made) < len(parts_of(step)):
        return [None, None]
    chosen = [x for s in made for x in s.default()[1].items()]
    return [sum(c.seconds for n, c in chosen if n.startswith(direction)) for direction in ("fwd", "bwd")]


def gallery() -> str:
    return GALLERY + "\n".join(map(row, sorted(shipped()))) + "\n"


def errors() -> str:
    """Every code, what it means, and the first diagnostic of the tests that has it."""
    sys.path.insert(0, str(DOCS.parent))
    from docs.codes import CODES, LATER
    from tests.frontend.specs import refused
    from tests.frontend.test_refused import BAD

    examples = {code: text for text, code, *_ in reversed(BAD)}
    parts = []
    for code, meaning in sorted({**CODES, **LATER}.items()):
        parts.append(f"## {code}\n\n{meaning[0].upper()}{meaning[1:]}.\n")
        if code in examples:
            said = next(d for d in refused(examples[code]) if d.code == code)
            parts.append(f"```text\n{said}\n```\n")
    return ERRORS + "\n".join(parts)


if __name__ == "__main__":
    for page, text in (("forms", table()), ("gallery", gallery()), ("errors", errors())):
        (DOCS / f"{page}.md").write_text(text, encoding="utf-8")
