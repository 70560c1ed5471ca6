"""Printed stages and emitted text of a few examples, as they were when somebody last looked at them.

`make golden` writes them anew: read the diff before committing it.
"""

from __future__ import annotations

import difflib
from pathlib import Path

import pytest

import mixc
from mixc.cli.stages import stages
from mixc.runtime import compiled

GOLDEN = Path(__file__).parent / "golden"


def compare(name: str, text: str, update: bool) -> None:
    path = GOLDEN / name
    if update:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    changed = "\n".join(difflib.unified_diff(before.splitlines(), text.splitlines(), "golden", "now", lineterm=""))
    assert before == text, f"{name} has changed; if that is meant: make golden\n{changed[:4000]}"


@pytest.mark.parametrize("name", ["simple_gla", "linear_attention_normalised", "hgrn"])
def test_golden_stages(name, update_golden):
    found = stages(mixc.load(name).declared)
    compare(f"{name}.stages", "\n".join(f"# ---- {stage}\n{text}" for stage, text in found.items()), update_golden)


@pytest.mark.parametrize("name", ["simple_gla", "gated_delta_rule"])
def test_golden_torch_program(name, update_golden):
    code = compiled.compiled(mixc.load(name).declared)
    wanted = frozenset(d.name for d in (*code.step.ins, *code.step.params))
    texts = [code.forward(False, True, True).text, code.backward(False, True, wanted).text]
    compare(f"{name}_torch.py.txt", "\n\n".join(texts), update_golden)


@pytest.mark.parametrize("name", ["simple_gla"])
def test_golden_kernels(name, update_golden):
    compare(f"{name}_triton.py.txt", mixc.load(name).emit("h100"), update_golden)
