"""The solver against trying everything, against CP-SAT, and where ConstrINT goes wrong."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mixc.autotune.space import (
    Infeasible,
    Space,
    ceil_div,
    divides,
    divisors_of,
    maximum,
    minimum,
    powers_of_two,
    where,
)
from mixc.errors import InputError
from mixc.targets import find

SETTINGS = settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))


def brute(space: Space) -> list[dict[str, int]]:
    names = list(space.domains)
    ranges = [d.values or range(d.lo, d.hi + 1, d.step) for d in space.domains.values()]
    points = (dict(zip(names, p, strict=True)) for p in itertools.product(*ranges))
    return [p for p in points if all(c.holds(p) for c in space.constraints)]


def keys(points: Any) -> list[tuple[int, ...]]:
    return [tuple(p.values()) for p in points]


@st.composite
def spaces(draw: Any, low: int = -4, high: int = 13, ops: str = "+-*/%cmM^w") -> Space:
    """Two to four variables and one to four constraints of random terms."""
    space = Space()
    names = "abcd"[:draw(st.integers(2, 4))]
    variables = []
    for n in names:
        if draw(st.booleans()):
            values = draw(st.sets(st.integers(low, high), min_size=1, max_size=6))
            variables.append(space.variable(n, values))
        else:
            bottom = draw(st.integers(low, high))
            variables.append(space.variable(n, low=bottom, high=bottom + draw(st.integers(0, 7))))

    def term(depth: int) -> Any:
        if depth == 0 or draw(st.integers(0, 3)) == 0:
            return draw(st.sampled_from(variables)) if draw(st.integers(0, 2)) else draw(st.integers(low, high))
        op = draw(st.sampled_from(ops))
        if op == "^":
            return term(depth - 1) ** draw(st.integers(1, 3))
        if op == "w":
            return where(relation(depth - 1), term(depth - 1), term(depth - 1))
        a, b = term(depth - 1), term(depth - 1)
        try:
            return {"+": lambda: a + b, "-": lambda: a - b, "*": lambda: a * b, "/": lambda: a // b,
                    "%": lambda: a % b, "c": lambda: ceil_div(a, b), "m": lambda: minimum(a, b),
                    "M": lambda: maximum(a, b)}[op]()
        except ZeroDivisionError:
            return a

    def relation(depth: int) -> Any:
        a, b = draw(st.sampled_from(variables)) + term(depth), term(depth)
        kind = draw(st.integers(0, 5 if "%" in ops else 4))
        made = (a == b, a != b, a <= b, a <= b, a < b, divides(b, a))[kind]
        if depth and draw(st.integers(0, 4)) == 0:
            other = relation(depth - 1)
            return made & other if draw(st.booleans()) else made | other
        return made if draw(st.integers(0, 7)) else ~made

    for _ in range(draw(st.integers(1, 4))):
        space.require(relation(2))
    return space


@given(spaces())
@SETTINGS
def test_every_solution_once_and_nothing_else(space: Space) -> None:
    assert sorted(keys(space.solutions())) == sorted(keys(brute(space)))


@given(spaces(), st.data())
@SETTINGS
def test_by_cost_is_sorted_and_complete(space: Space, data: Any) -> None:
    from mixc.autotune.space import Term

    a, b = Term("var", name="a"), Term("var", name="b")
    cost = data.draw(st.sampled_from([a * 1.5 - b * b, maximum(a, b * 0.5) + 1 / (b * b + 1),
                                      where(a < b, a * b, 2.5 - a), ceil_div(a * a, b * b + 1) * 0.25 - minimum(a, b)]))
    for found in (list(space.best(cost)), list(space.searched(cost))):
        costs = [cost.evaluate(p) for p in found]
        assert costs == sorted(costs)
        assert sorted(keys(found)) == sorted(keys(brute(space)))


@given(spaces(), st.permutations("ab"))
@SETTINGS
def test_the_least_of_every_way_is_the_first_by_cost(space: Space, by: list[str]) -> None:
    from mixc.autotune.space import Term

    a, b = (Term("var", name=n) for n in "ab")
    cost = maximum(a * a, b * 0.5) - a
    wanted: dict[tuple[int, ...], Any] = {}
    for found in space.ranked(lambda: cost):
        wanted.setdefault(tuple(found[1][n] for n in by), found)
    assert [*space.least(lambda: cost, *by).items()] == [*wanted.items()]
    assert {*wanted} == {tuple(p[n] for n in by) for p in brute(space)}


@given(spaces(), st.lists(st.sampled_from(["min", "max"]), min_size=2, max_size=2))
@SETTINGS
def test_lexicographic_order(space: Space, wants: list[str]) -> None:
    found = list(space.lexicographic([("b", wants[0]), ("a", wants[1])]))
    ranks = [tuple(p[n] if w == "min" else -p[n] for n, w in zip("ba", wants, strict=True)) for p in found]
    assert ranks == sorted(ranks)
    assert sorted(keys(found)) == sorted(keys(brute(space)))


@given(spaces())
@SETTINGS
def test_conflicts_conflict_and_are_minimal(space: Space) -> None:
    if brute(space):
        return
    error = space.infeasible()
    assert error.conflict and error.minimal

    def left(constraints: list[Any]) -> list[Any]:
        rest = Space()
        rest.domains, rest.constraints = space.domains, constraints
        return brute(rest)

    assert not left(error.conflict)
    for c in error.conflict:
        assert left([d for d in error.conflict if d is not c])


@given(spaces(low=0, high=40, ops="+*mM"))
@settings(SETTINGS, max_examples=40)
def test_cpsat_agrees(space: Space) -> None:
    pytest.importorskip("ortools")
    from tests.autotune.cpsat import CpSat

    order = [(n, "max") for n in space.domains]
    found = next(iter(space.lexicographic(order)), None)
    assert CpSat(space).lexicographic(order) == (None if found is None else list(found.values()))


def test_a_square_that_five_divides() -> None:
    """ConstrINT drops x = 5."""
    space = Space()
    x, y = space.variable("x", low=1, high=9), space.variable("y", low=1)
    space.require(y == x ** 2)
    space.require(y % 5 == 0)
    assert list(space.solutions()) == [{"x": 5, "y": 25}]


def test_products_do_not_round_up() -> None:
    space = Space()
    a, b = space.variable("a", low=1), space.variable("b", low=1)
    space.require(a * b == 101 * 97)
    space.require(a <= 97)
    space.require(a >= 2)
    assert list(space.solutions()) == [{"a": 97, "b": 101}]
    space.require(3 * b <= 302)
    assert not list(space.solutions())


def test_long_intervals() -> None:
    """No set is formed of a million values: bounds and congruences meet."""
    space = Space()
    n, m = space.variable("n", low=1, high=10 ** 9), space.variable("m", low=1, high=10 ** 9)
    space.require(n % 12 == 7)
    space.require(n % 35 == 9)
    space.require(n == 3 * m + 1)
    assert next(space.solutions()) == {"n": 79, "m": 26}
    space.require(n % 6 == 2)
    assert "cannot all hold" in str(space.infeasible())


def test_powers_and_divisors() -> None:
    assert powers_of_two(3, 64) == [4, 8, 16, 32, 64]
    assert divisors_of(360) == tuple(d for d in range(1, 361) if 360 % d == 0)
    space = Space()
    e, p = space.variable("e", low=0), space.variable("p", low=1, high=100)
    space.require(p == 2 ** e)
    assert sorted(x["p"] for x in space.solutions()) == powers_of_two(1, 100)


def test_half_bounded_variables_become_finite_or_are_refused_by_name() -> None:
    space = Space()
    n, m = space.variable("n", low=1), space.variable("m", low=1)
    space.require(n * 3 <= 10)
    with pytest.raises(InputError, match="nothing bounds `m`"):
        list(space.solutions())
    space.require(n * m == 6)
    assert sorted(keys(space.solutions())) == [(1, 6), (2, 3), (3, 2)]


def test_an_upper_limit_on_work_is_told() -> None:
    space = Space()
    x, y = space.variable("x", low=0, high=99), space.variable("y", low=0, high=99)
    space.require((x + 3 * y) % 7 != 0)
    found = space.solutions(limit=50)
    some = list(found)
    assert found.stopped and 0 < len(some) < 50
    every = space.solutions()
    assert len(list(every)) == len(brute(space)) and not every.stopped


def test_a_search_by_cost_that_stops_early_says_so() -> None:
    """What it gave until then is the beginning of the whole, best first."""
    space = Space()
    x, y = (space.variable(n, range(20)) for n in "xy")
    space.require((x + 3 * y) % 7 != 0, "no multiple")
    cost = x + 21 * y
    whole, some = space.searched(cost), space.best(cost, 50)
    first, every = list(some), list(whole)
    assert some.stopped and len(first) < len(every) and first == every[:len(first)]
    assert not whole.stopped and not space.best(cost).stopped and len(every) == len(brute(space))



def test_next_best_is_found_lazily() -> None:
    space = Space()
    x, y = (space.variable(n, low=0, high=300) for n in "xy")
    found = space.best(x + y * 1.0)
    assert [sum(next(found).values()) for _ in range(3)] == [0, 1, 1]
    assert found.work < 3000  # of 90,000 points


def test_the_conflict_is_told_in_the_words_of_who_stated_it() -> None:
    space = Space()
    C, warps = space.variable("C", powers_of_two(16, 128)), space.variable("warps", powers_of_two(1, 8))
    space.require(C % 16 == 0, "whole tensor-core tiles")
    space.require(C * 128 <= 512 * warps, "the state stays in registers")
    space.require(warps * 32 <= 64, "threads a block")
    with pytest.raises(Infeasible) as error:
        space.first(space.solutions())
    text = str(error.value)
    assert "the state stays in registers" in text and "threads a block" in text
    assert "whole tensor-core tiles" not in text
    assert "C * 128 <= 512 * warps" in text and "with C in {16, 32, 64, 128}" in text


def test_constraints_print_as_written() -> None:
    space = Space()
    a, b = space.variable("a", [1]), space.variable("b", [1])
    assert str((a + b) * 3 <= ceil_div(a, b) % 4) == "(a + b) * 3 <= ceil_div(a, b) % 4"
    assert str((a - (b - 1) == 2 ** a) | (minimum(a, b) < -b)) == "(a - (b - 1) == 2 ** a) | (minimum(a, b) < 0 - b)"


def test_mistakes_in_writing_are_errors() -> None:
    space = Space()
    a = space.variable("a", [1, 2])
    with pytest.raises(TypeError, match="do not chain"):
        bool(1 <= a <= 2)
    with pytest.raises(InputError, match="a variable `a` already"):
        space.variable("a", [1])
    with pytest.raises(InputError, match="over the integers"):
        space.require(a * 1.5 <= 2)
        space.first(space.solutions())


@pytest.mark.parametrize("shape", [dict(), dict(heads=1, D=768), dict(heads=4, D=192, batch=64),
                                   dict(heads=16, D=128, batch=256)])
def test_flashrnn_model_has_the_optimum_that_cpsat_finds(shape: dict[str, int]) -> None:
    pytest.importorskip("ortools")
    from tests.autotune.cpsat import CpSat

    sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
    from flashrnn_tiles import model

    space, order = model(find("h100"), **shape)
    found = space.lexicographic(order, limit=20_000)
    point = space.first(found)
    assert [point[n] for n, _ in order] == CpSat(space).lexicographic(order)
    assert found.work < 200
