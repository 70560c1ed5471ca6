"""Pages that the compiler makes are as it makes them; every example of the other pages runs."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
import torch

import mixc
from docs.codes import CODES, LATER
from mixc.runtime.draw import dim_sizes, draw
from mixc.runtime.load import shipped
from tests.frontend.python_text import run

DOCS = Path(__file__).parents[1] / "docs"
PAGES = runpy.run_path(str(DOCS / "make_pages.py"))
EXAMPLES = [(page, text) for page in ("language", "sequential")
            for text in re.findall(r"^```mix\n(.*?)^```", (DOCS / f"{page}.md").read_text(), re.M | re.S)]


def test_the_table_of_forms_has_every_shipped_spec() -> None:
    text = PAGES["table"]()
    assert all(f"\n| {name} | " in text for name in shipped())
    assert "| mamba1 | `x` | scan | affine entry by entry, and its decay `exp(dt * A)`" in text
    assert "| max_plus | `h` | scan | entry by entry a maximum with what was there plus `a` |" in text


def test_the_gallery_has_every_shipped_spec() -> None:
    text = (DOCS / "gallery.md").read_text()
    names = {line.split(" | ")[0][2:] for line in text.splitlines() if line.startswith("| ")}
    assert names - {"spec"} == set(shipped()), "run python docs/make_pages.py"
    for name in ("gla", "hgrn", "ar_net"):
        row = PAGES["row"](name)
        assert row.startswith(f"| {name} | ") and row.split(" | ")[-1] in text, "run python docs/make_pages.py"


def test_the_index_of_errors_has_every_code() -> None:
    text = PAGES["errors"]()
    codes = [*CODES, *LATER]
    assert re.findall(r"^## (MX\d+)$", text, re.M) == sorted(codes)
    assert set(re.findall(r"^## (MX\d+)$", (DOCS / "errors.md").read_text(), re.M)) == set(codes)
    assert text.count("```text\nerror[MX") > 35 and "write `exp(x)`" in text


@pytest.mark.filterwarnings("ignore:note")
@pytest.mark.parametrize(("page", "text"), EXAMPLES, ids=lambda x: x.split("mixer ")[-1].split("(")[0])
def test_an_example_means_what_its_step_says(page: str, text: str) -> None:
    torch.manual_seed(0)
    m = mixc.loads(text)
    sizes = dim_sizes(m.declared, None, (5, 3, 2, 4))
    x = draw(m.declared, B=2, T=21, H=2, sizes=sizes, dtype=torch.float32, device="cpu")
    got, want = (m(**x, backend=b)[0] for b in ("torch", "reference"))
    for a, b in zip(*(o if isinstance(o, tuple) else (o,) for o in (got, want)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_forms_and_hash_of_the_examples() -> None:
    made = {m.__name__: m for m in (mixc.loads(text) for _, text in EXAMPLES)}
    learner = next(text for _, text in EXAMPLES if "mixer learner" in text)
    loss = re.search(r"    loss = .*\n.*\n", learner)
    assert loss is not None
    by_hand = learner.replace(loss[0], "    S = S + beta * k * (v - k @ S)\n")
    assert "grad" not in by_hand and made["learner"].hash == mixc.loads(by_hand).hash
    assert made["cell"].form == {"h": "sequential"} and made["diagonal"].form == {"h": "scan"}


def test_the_python_example_of_the_reference() -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```", (DOCS / "language.md").read_text(), re.M | re.S)
    assert run(block, "decayed").hash == mixc.load("simple_gla").hash
