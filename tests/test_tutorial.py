"""The tutorial, followed as it is written; the pages that docs link to."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.frontend.python_text import run

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.filterwarnings("ignore:note")
def test_the_tutorial_runs_as_written() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", (DOCS / "tutorial.md").read_text(), re.M | re.S)
    assert len(blocks) == 7
    assert run("\n".join(blocks), "losses")


def test_links_lead_somewhere() -> None:
    for page in DOCS.glob("*.md"):
        prose = re.sub(r"^```.*?^```|`[^`]*`", "", page.read_text(), flags=re.M | re.S)
        for target in re.findall(r"\]\(([^)#:]+)\)", prose):
            assert (page.parent / target).exists(), f"{page.name} -> {target}"
