"""The demo from beginning to end, with a training too short to learn much."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_demo(tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "examples" / "demo.py"
    done = subprocess.run([sys.executable, str(script), "--steps", "20", "--seconds", "5", "--out", str(tmp_path)],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for said in ("agrees with the fp64 step", "times faster", "unigram entropy", "they differ by", "done in"):
        assert said in " ".join(done.stdout.split())
    assert (tmp_path / "demo_loss.png").stat().st_size > 10_000
    assert (tmp_path / "simple_gla.py").exists()
