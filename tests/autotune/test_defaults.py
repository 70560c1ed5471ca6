"""Choosing tiles by the model alone: what it counts, and the defaults."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import mixc
from mixc.autotune import tuner
from mixc.autotune.schedule import NEAR, SEGMENTS
from mixc.codegen.config import Tile
from mixc.errors import InputError
from mixc.runtime.load import shipped
from mixc.targets import find
from tests.autotune.schedules import SIZES, schedule, schedules

CONSTANT = """
mixer decayless(K, V) {
    in q[K], k[K], v[V]
    state S[K, V]
    S = S + k * v
    out o[V] = q @ S
}
"""


def test_a_token_loop_by_hand() -> None:
    """LSTM: rows are sequences; weights are held where they fit, backwards in two copies, else read at every token."""
    B, T, H, D = 8, 2048, 16, 64
    s = schedule("lstm", D=D)
    point, model = s.spaces["fwd"].point(Tile(16, (), 4, 1), 64)
    assert model.held and model.estimated.programs.evaluate(point) == H
    rows, weights = B * T * H * D, 4 * H * D * D
    assert model.bytes().evaluate(point) == 2 * (4 * rows + 2 * rows + weights)  # xi xf xz xo, y, c of every token
    assert model.estimated.flops.evaluate(point) == 2 * 16 * T * H * 4 * D * D  # 8 sequences take 16 rows
    assert model.weights().evaluate(point) == 4 * 2 * D * D
    held = {(size, name): schedule("lstm", D=size).spaces[name].point(Tile(16), 64)[1].held
            for size in (64, 128) for name in ("fwd", "bwd")}
    assert held == {(64, "fwd"): True, (64, "bwd"): True, (128, "fwd"): True, (128, "bwd"): False}
    chosen = schedule("lstm", B=256).default()[1]
    assert all(c.programs == H * 256 // c.tile.chunk and c.shared > D * D * 8 for c in chosen.values())
    read = schedule("lstm", D=128).default()[1]["bwd"]
    assert read.binds == "SM bandwidth" and read.seconds > 5 * schedule("lstm", D=64).default()[1]["bwd"].seconds


def test_bytes_and_products_by_hand() -> None:
    """Linear attention without a decay: what a paper would count."""
    B, T, H, K, V, C = 8, 2048, 16, 64, 64, 32
    step = mixc.loads(CONSTANT).declared
    s = tuner.schedule_of(step, find("h100"), SIZES, "bf16")
    space, model = s.spaces["fwd"].spaces[0]
    point = {"C": C, "segment": 128, "BV": V, "warps": 4, "stages": 1}
    assert point.keys() == space.domains.keys()
    rows = B * T * H
    kept = B * H * (T // 128) * K * V
    assert model.bytes().evaluate(point) == 2 * (rows * (2 * K + 2 * V) + kept)
    assert model.estimated.flops.evaluate(point) == 2 * rows * (2 * K * V + C * K + C * V)
    assert model.estimated.programs.evaluate(point) == B * H
    halves = point | {"BV": 32}
    assert model.bytes().evaluate(halves) == model.bytes().evaluate(point)  # distinct ones
    assert model.issued().evaluate(halves) > model.issued().evaluate(point)  # k and q are asked for twice
    assert model.estimated.flops.evaluate(halves) == 2 * rows * (2 * K * V + 2 * C * K + C * V)


@pytest.mark.parametrize("name", sorted(shipped()))
def test_a_default_for_every_example(name: str) -> None:
    for s in [s for size in (32, 256) for s in schedules(name, K=size, V=size)]:
        config, chosen = s.default()
        assert config.segment in SEGMENTS and all(config.segment % t.chunk == 0 for _, t in config.tiles)
        for c in chosen.values():
            assert c.seconds > 0 and c.programs > 0
            assert c.shared <= s.target.shared_block


def test_candidates_come_by_the_models_order() -> None:
    space = schedule().spaces["bwd"]
    ranks = [rank for rank, _, _ in space.best()]
    assert ranks == sorted(ranks) and len(ranks) > 20


def test_few_sequences_want_other_tiles_than_many() -> None:
    """With few programs a V block is a program of its own."""
    many, few = (schedule(B=b, H=h, T=16384).spaces["fwd"] for b, h in ((8, 16), (1, 4)))
    programs = [next(iter(s.best()))[2]().programs for s in (many, few)]
    assert programs[1] > 4


def test_warps_repeat_work_where_narrow_heads_have_no_room() -> None:
    """With 2 warps, which have all work for themselves, 1.3 kB were spilled, with 8 of them 32 bytes. Not where that
    would have programs divide a dim: they would do twice as much."""
    warps, blocks = [], []
    for size in (32, 64):
        s = tuner.schedule_of(mixc.load("titans_linear").declared, find("h100"), SIZES | {"K": size, "V": size}, "bf16")
        tile = s.default()[1]["bwd_along_K"].tile
        warps, blocks = [*warps, tile.warps], [*blocks, dict(tile.blocks)["K"]]
    assert warps == [8, 8] and blocks == [32, 64]


def test_what_should_spill_counts_where_nothing_has_room() -> None:
    """A backward in one launch lacks some hundred registers here, those that hand rows on a few."""
    mixer = mixc.load(str(Path(__file__).parents[1] / "specs" / "signed_delta.mix"))
    s = tuner.schedule_of(mixer.declared, find("h100"), SIZES, "bf16")
    whole, limit = s.spaces["bwd"], s.target.registers_thread
    assert not whole.fits() and not any(s.spaces[n].fits(16) for n in ("fwd_for_K", "bwd_along_K"))
    _, chosen = s.default()
    assert {*chosen} == {"fwd_for_K", "bwd_for_K", "bwd_along_K"}
    assert all(c.registers < limit + 30 for c in chosen.values()) and whole.first.registers > limit + 60
    assert {c.tile.chunk for c in chosen.values()} == {16}


def test_what_lacks_a_few_registers_is_chosen_where_it_is_far_faster() -> None:
    """A backward in one launch fits, in programs that turn over eighths of V; those that hand rows on lack 3 to 32."""
    mixer = mixc.loads("mixer slots(K, V) {\nin q[K], v[V], f[K]\nstate S[K, V]\na = softmax(f)\n"
                       "S = (1 - a) * S + a * v\nout o[V] = softmax(q) @ S\n}")
    s = tuner.schedule_of(mixer.declared, find("h100"), SIZES | {"K": 128, "V": 128}, "bf16")
    chosen = s.default()[1]
    assert {*chosen} == {"fwd_for_K", "bwd_for_K", "bwd_along_K"} and s.spaces["bwd"].fits()
    assert tuner.SPILLED * tuner._sum(chosen, "seconds") < min(s._totals([tuner.FUSED]))[0]


def test_what_lacks_a_few_registers_is_chosen_for_one_that_only_just_fits() -> None:
    """Keys that the step makes short: a backward in one launch fits in programs that turn over quarters of V."""
    mixer = mixc.loads("mixer short(K, V) {\nin q[K], k[K], v[V]\nin g where g <= 0\nin b where 0 <= b <= 1\n"
                       "state S[K, V]\nu = k / (norm[K](k) + 1e-6)\nS = exp(g) * S\nS = S + b * u * (v - u @ S)\n"
                       "out o[V] = q @ S\n}")
    s = tuner.schedule_of(mixer.declared, find("h100"), SIZES | {"K": 128, "V": 128}, "bf16")
    chosen = s.default()[1]
    assert {*chosen} == {"fwd_for_K", "bwd_for_K", "bwd_along_K"} and all(s._space(n).fits() for n in tuner.FUSED)
    assert 2 * tuner._sum(chosen, "seconds") < min(s._totals([tuner.FUSED]))[0]


def test_tuning_tries_what_nearly_keeps_the_estimates() -> None:
    """An estimate says 263 registers where a compile finds 215; the default keeps them."""
    s = schedule("kda", K=128, V=128)
    limit, chunk = s.target.registers_thread, s.default()[0].tiles[0][1].chunk
    first = [make() for _, (_, _, make) in zip(range(12), s._space("bwd_for_K").best(), strict=False)]
    assert any(limit < c.registers <= limit + NEAR and c.tile.chunk == chunk for c in first)
    assert all(c.registers <= limit for c in s.default()[1].values())


def test_of_what_is_as_fast_the_fewest_bytes() -> None:
    """Segments of several lengths are as fast to the model: a longer one keeps fewer states."""
    s = schedule("mamba2")
    _, chosen = s.default()
    least = min(s._totals(s.plans))
    fastest = {n: s.spaces[n].by_segment(least[3])[least[1]][1]() for n in least[2]}
    fewer, slower = (tuner._sum(chosen, what) / tuner._sum(fastest, what) for what in ("bytes", "seconds"))
    assert fewer < 0.98 and slower <= tuner.CLOSE and fewer * slower < 1


def test_launches_of_plans_that_take_too_long_are_not_written() -> None:
    """The gradients in a launch of their own take longer than both directions in one each, and no launch beside them is
    asked for: neither those for states nor those for outs."""
    s = schedule("comba", K=64, V=64)
    assert {*s.default()[1]} == {"fwd_for_K", "bwd_for_K", "bwd_along_K"}
    assert {*s._spaces} == {"fwd", "bwd", "bwd_grads", "fwd_for_K", "bwd_for_K", "bwd_along_K"}


@pytest.mark.parametrize("name", ["comba", "deltaproduct", "gla"])
def test_no_point_takes_less_than_the_least(name: str) -> None:
    s = schedule(name)
    for space in (s._space(n) for n in ("fwd", "bwd")):
        assert 0 < space.least <= min(rank for rank, _ in space.by_segment().values())


@pytest.mark.parametrize("name", ["gated_deltaproduct", "abc", "lightnet", "lstm"])
def test_no_point_that_spills_takes_less_than_the_floor(name: str) -> None:
    """With warps, rows of a chunk and of a segment as they are, the rest as good for each part as may be."""
    s = schedule(name, D=128) if name == "lstm" else schedule(name, K=128, V=128, M=128)
    s.default()
    for launch in s._spaces.values():
        for space, model in launch.spaces:
            floors = launch._floors(space, model)
            for way in launch._spilling(space, model):
                for (C, segment), (seconds, _make) in way().items():
                    assert 0 < floors[C].each[segment] <= seconds
                    assert all(floors[fewer].more <= seconds for fewer in floors if fewer < C)


def test_more_rows_that_spill_far_more_are_not_tried() -> None:
    """Nothing keeps the estimates: 16 rows lack a hundred registers, 32 several."""
    s = schedule("gated_deltaproduct", K=128, V=128)
    s.default()
    launch = s._space("fwd_for_K")
    assert not launch.fits() and {rows for _, _, rows in launch._made} <= {16, 32}
    assert len(launch._loose) == 1 and len(launch.spaces) > 3


def test_a_target_with_no_room_is_refused_in_words() -> None:
    with pytest.raises(InputError, match=r"threads a block"):
        schedule(target=replace(find("h100"), name="tiny", warp=2048)).default()


def test_the_last_of_the_products_with_few_rows_is_wide() -> None:
    """Else every warp forms all of all: 4.3 kB were spilled where 250 registers were estimated."""
    s = schedule("rotary_linear_attention", K=128, V=128, P=128)
    _, model = s._space("bwd").spaces[0]
    few = [n for m, n, _, often, _ in model.counts.products if m[1] == ("C",) and "replays" not in often[1]]
    assert few[-1][1] == ("BV",)
    points = [make() for _, (_, _, make) in zip(range(40), s._space("bwd").best(), strict=False)]
    assert points and all(c.tile.chunk == 16 or c.tile.chunk >= 64 for c in points if dict(c.tile.blocks)["V"] <= 32)


def test_launches_that_fit_but_have_no_segment_in_common() -> None:
    """A part of mLSTM, its forward in two launches and its backward in one: it was the only plan, and had no sizes."""
    shape = {"B": 1, "T": 2048, "H": 4, "K": 128, "V": 128}
    assert "def mlstm_" in mixc.load("mlstm").emit(shape=shape, dtype="fp32")
