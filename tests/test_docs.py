"""The table of forms in the docs is made by the compiler."""

from __future__ import annotations

import runpy
from pathlib import Path

from mixc.runtime.load import shipped

DOCS = Path(__file__).parents[1] / "docs"


def test_the_table_of_forms_has_every_shipped_spec() -> None:
    text = runpy.run_path(str(DOCS / "make_forms.py"))["table"]()
    assert all(f"\n| {name} | " in text for name in shipped())
    assert "| mamba1 | `x` | scan | affine entry by entry, and its decay `exp(dt * A)`" in text
    assert "| max_plus | `h` | scan | entry by entry a maximum with what was there plus `a` |" in text
