"""Settings of the whole suite: kernels are interpreted on the CPU; `--update-golden` rewrites golden files."""

from __future__ import annotations

import os

os.environ.setdefault("TRITON_INTERPRET", "1")  # before triton is imported anywhere
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two workers whose threads wait for each other take four times as long

import gc
import importlib.util

import pytest

if importlib.util.find_spec("triton") is not None:
    from tests.interpreter import amend

    amend()


gc.set_threshold(20_000)  # a run makes millions of small objects, and few cycles: looking for them took 6 % of it


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write golden files anew instead of comparing")


@pytest.fixture(scope="session")
def update_golden(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--update-golden"))
