"""Writes docs/forms.md: every shipped recurrence, the form the compiler gives it, and why.

    python docs/make_forms.py
"""

from __future__ import annotations

from pathlib import Path

import mixc
from mixc.runtime.load import shipped

HEAD = """# Recurrences and their forms

Made by `python docs/make_forms.py`, which asks the compiler (`mixer.form`, `mixer.why`).

| spec | state | form | why |
|---|---|---|---|
"""


def table() -> str:
    """A row a state of every shipped spec, in the words of the compiler."""
    rows = []
    for name in sorted(shipped()):
        mixer = mixc.load(name)
        rows += [f"| {name} | `{state}` | {form} | {mixer.why[state].replace('|', chr(92) + '|')} |"
                 for state, form in mixer.form.items()] or [f"| {name} | | | it has no state |"]
    return HEAD + "\n".join(rows) + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("forms.md").write_text(table(), encoding="utf-8")
