"""Three paths of a delta rule's gradient that are easily lost, and that the comparison with the step notices each.

u = (I + L)^-1 (v - k S0): gradients flow through the keys that read the carried state (the transition I - beta k k^T),
through that state into the correction (to the chunk before), and through the inverse.  Every test cuts one of
them in the compiler and sees which gradients leave the bound; uncut, none does.
"""

from __future__ import annotations

import pytest
import torch

import mixc
from mixc.ir import derivatives
from mixc.ir.node import make, substitute
from mixc.passes import states
from mixc.runtime.agree import judge
from tests.agree import draw, normal, run

SPEC = """mixer cut_{name}(K, V) {{
    in q[K], v[V]
    in k[K] where norm[K](k) <= 1
    in g where g <= 0
    in beta where 0 <= beta <= 2
    state S[K, V]

    S = exp(g) * S
    S = S + beta * k * (v - k @ S)
    out o[V] = q @ S
}}"""


def wrong(name):
    """The names of what the torch backend gives wrong.  A mixer of its own for every cut: programs are kept."""
    mixer = mixc.loads(SPEC.format(name=name))
    x = draw(mixer.declared, B=1, T=70, H=1, sizes=dict(K=4, V=3), dtype=torch.float64, gates=0.1, seed=2)
    start = {"S": normal([1, 1, 4, 3], 3, "S", torch.float64)}
    want, got = (run(mixer, x, initial_state=start, backend=b) for b in ("reference", "torch"))
    return {f.name for f in judge(mixer.declared, got, want, torch.float64) if not f.ok}


def test_uncut_all_gradients_agree():
    assert wrong("nowhere") == set()


@pytest.fixture
def correction(monkeypatch):
    """Put a function in place of how a correction reads the carried state; other reads stay as they are."""
    def put(change):
        solve_writes, carried = states.solve_writes, states.Place.carried

        def solved(state):
            with monkeypatch.context() as m:
                m.setattr(states.Place, "carried", lambda place: change(place, carried))
                return solve_writes(state)
        monkeypatch.setattr(states, "solve_writes", solved)
    return put


def test_the_transition_is_noticed(correction):
    def read(place, carried):
        query, place.query = place.query, make("stop_gradient", place.query)
        found = carried(place)
        place.query = query
        return found
    correction(read)
    assert wrong("transition") == {"dk"}


def test_the_carried_state_is_noticed(correction):
    def read(place, carried):
        (leaf,) = place.group.forms.leaves
        return substitute([carried(place)], {leaf: make("stop_gradient", leaf)})[0]
    correction(read)
    assert {"dS0", "dv"} <= wrong("carried")


def test_the_inverse_is_noticed(monkeypatch):
    rule = derivatives.RULES["solve"]
    monkeypatch.setitem(derivatives.RULES, "solve", lambda n, c: (None, rule(n, c)[1]))
    assert {"dk", "dbeta"} <= wrong("inverse")
