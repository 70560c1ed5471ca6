"""`mixer.hash`: equal exactly for one function."""

from __future__ import annotations

import pytest

import mixc
from tests.hashing.pairs import EQUAL, NEAR


@pytest.mark.parametrize("a, b", [pair[1:] for pair in EQUAL], ids=[pair[0] for pair in EQUAL])
def test_one_function_one_hash(a: str, b: str) -> None:
    assert a != b
    assert mixc.loads(a).hash == mixc.loads(b).hash


@pytest.mark.parametrize("a, b", [pair[1:] for pair in NEAR], ids=[pair[0] for pair in NEAR])
def test_near_misses(a: str, b: str) -> None:
    assert mixc.loads(a).hash != mixc.loads(b).hash
