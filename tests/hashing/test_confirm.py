"""Sharing is confirmed on fresh and scaled inputs, with every decision seen on both sides."""

from __future__ import annotations

import json
from random import Random

import pytest
from typer.testing import CliRunner

import mixc
from mixc.cli import app
from mixc.hashing import confirm, same_function, shipped_twin
from mixc.runtime.load import shipped
from tests.hashing.pairs import EQUAL, GDN, NEAR, point
from tests.hashing.rewrite import read, rewritten, text

# one has no digits left at 1500; the other's maxima have no other side where its inputs may lie
CERTAIN = [(name, a, b) for name, a, b in EQUAL if name not in ("log of sigmoid", "two norms that are short")]


@pytest.mark.parametrize("a, b", [p[1:] for p in CERTAIN[::3]], ids=[p[0] for p in CERTAIN[::3]])
def test_one_function_is_confirmed(a: str, b: str) -> None:
    first, second = mixc.loads(a), mixc.loads(b)
    found = same_function(first, second)
    assert found is not None
    assert set(found.names) == {d.name for d in first.declared.decls}
    assert set(found.names.values()) == {d.name for d in second.declared.decls}
    for d in first.declared.decls:
        other = second.declared.decl(found.names[d.name])
        assert other.role == d.role and sorted(found.dims[n] for n in d.dims) == sorted(other.dims)


@pytest.mark.parametrize("a, b", [p[1:] for p in NEAR[::6]], ids=[p[0] for p in NEAR[::6]])
def test_near_misses_are_not(a: str, b: str) -> None:
    assert same_function(mixc.loads(a), mixc.loads(b)) is None


@pytest.mark.parametrize("body, other", [
    ("where(x > 0.5, x, y)", "where(x > 0.5003, x, y)"), ("where(pos < 107, x, y)", "where(pos < 108, x, y)"),
    ("where(x * y > 0.1 and x > y, x, y)", "where(x * y > 0.1 and x > y + 0.0001, x, y)"),
])
def test_borders_are_where_they_were(body: str, other: str) -> None:
    """Probes at random fall on the same sides of both."""
    a, b = mixc.loads(point(body)), mixc.loads(point(other))
    assert a.hash == b.hash
    assert same_function(a, b) is None
    assert same_function(b, mixc.loads(point(other.replace(">", "- 0 >")))) is not None


def test_what_differs_at_nothing_alone_is_not_shared() -> None:
    a, b = (mixc.loads(point(f"y * rsqrt({total})")) for total in ("sum(square(y)) + 1e-30", "sum(square(y))"))
    assert a.hash == b.hash and same_function(a, b) is None


@pytest.mark.parametrize("body, other", [
    ("where(x > 1e6, y, x)", "x"),  # no probe comes so far: the hash cannot tell, and nothing is shared
    ("clamp(x, -1e5, 1e5) + y", "x + y"),
    ("where(x == 0.5, y, x * y)", "x * y"),
    ("where(index[D] > 30, x, y)", "y + 0 * x"),
    ("x * (index[D] % 10)", "x * (index[D] % 11)"),
    ("x * (pos // 100_000_000)".replace("_", ""), "0 * x"),
    ("x * sqrt(square(index[D] - 10))", "x * (10 - index[D])"),  # even powers under roots hide a side
    ("x * sqrt(square(D - 10))", "x * (10 - D)"),
    ("x * exp(0.5 * log(3 * (y - 1e6) ** 4))", "x * sqrt(3) * square(y - 1e6)"),
    ("x * rsqrt((y - 1e6) * (y - 1e6))", "x / (1e6 - y)"),
])
def test_what_cannot_be_driven_is_not_shared(body: str, other: str) -> None:
    a, b = mixc.loads(point(body)), mixc.loads(point(other))
    assert a.hash == b.hash
    assert same_function(a, b) is None
    assert same_function(a, mixc.loads(point(body))) is None


def test_a_root_of_an_even_power_that_shows_both_sides_is_shared() -> None:
    assert same_function(mixc.loads(point("y * sqrt(square(x))")), mixc.loads(point("abs(x) * y"))) is not None


def test_a_hash_alone_shares_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh probes find what those of the hash missed (here: a bump at the place of one of them)."""
    a, b = mixc.load("simple_gla"), mixc.load("retnet")
    monkeypatch.setattr(confirm, "canonical_of", lambda m: confirm.Canonical(b"same", ("K", "V"), m.declared.decls))
    assert same_function(a, b) is None


@pytest.mark.parametrize("name", ["gated_delta_rule", "mlstm_stabilised", "log_sum", "gru", "lru", "short_conv"])
def test_rewritten_examples_are_found(name: str) -> None:
    found = shipped_twin(mixc.loads(text(rewritten(read(shipped()[name].read_text()), Random(3)))))
    assert found is not None and found[0] == name


def test_check_says_so(tmp_path) -> None:  # type: ignore[no-untyped-def]
    spec = tmp_path / "mine.mix"
    spec.write_text(GDN.replace("q", "query").replace("scale", "c").replace("(K, V)", "(M, V)").replace("K", "M"))
    shape = ["--shape", "B=1,T=3,H=1"]
    said = CliRunner().invoke(app, ["check", str(spec), *shape])
    assert said.exit_code == 0, said.output
    assert "the same function as `gated_delta_rule`, with q ↔ query, scale ↔ c, K ↔ M" in " ".join(said.output.split())
    report = json.loads(CliRunner().invoke(app, ["check", str(spec), "--json", *shape]).output)
    assert report["mixers"][0]["same_as"] == "gated_delta_rule"
    own = json.loads(CliRunner().invoke(app, ["check", str(shipped()["hgrn"]), "--json", *shape]).output)
    assert "same_as" not in own["mixers"][0]
