"""Writes the pages of docs/ that the compiler knows better: forms.md, gallery.md, errors.md.

    python docs/make_pages.py           (in a checkout: the index of errors takes its examples from the tests)
"""

from __future__ import annotations

import sys
from pathlib import Path

import mixc
from mixc.codegen.derivation import kernel_lines
from mixc.frontend.codes import CODES, LATER
from mixc.runtime.load import shipped

DOCS = Path(__file__).parent
MADE = "\n\nMade by `python docs/make_pages.py`"
FORMS = f"""# Recurrences and their forms{MADE}, which asks the compiler (`mixer.form`, `mixer.why`).

| spec | state | form | why |
|---|---|---|---|
"""
GALLERY = f"""# Gallery{MADE}. Lines count what computes or declares; kernels are Triton's, forward and backward.

`mixc explain NAME --html page.html` says more of each, `mixc bench NAME` times it on this machine.

| spec | paper | form | lines | kernels | hash |
|---|---|---|---|---|---|
"""
ERRORS = f"""# Errors{MADE} from `mixc/frontend/codes.py` and from the tests of every code.

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
    kernels = len(kernel_lines(m.declared))
    return f"| {name} | {_cell(m.declared.doc.strip())} | {forms} | {len(lines)} | {kernels} | `{m.hash[:12]}` |"


def gallery() -> str:
    return GALLERY + "\n".join(map(row, sorted(shipped()))) + "\n"


def errors() -> str:
    """Every code, what it means, and the first diagnostic of the tests that has it."""
    sys.path.insert(0, str(DOCS.parent))
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
