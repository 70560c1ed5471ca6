"""The tile sizes of a fused recurrent kernel, found by integer constraints: FlashRNN's model on our solver.

An LSTM's recurrent matrix [gates * D, D] is cut into tiles and spread over the warps and blocks of a GPU, held in
registers and shared memory for all time steps (Pöppel, Beck & Hochreiter 2024, FlashRNN, arXiv 2412.07752, section 4).
Variables and constraints are those of its fused kernel, written in our words; its own engine needs 11 to 44 s for it.

    python examples/flashrnn_tiles.py
"""

from __future__ import annotations

import time

from mixc.autotune.space import Space, Term, divides, product
from mixc.targets import Target, find

Order = list[tuple[str, str]]


def model(target: Target, *, heads: int = 12, D: int = 64, batch: int = 16, gates: int = 4) -> tuple[Space, Order]:
    """Variables, constraints and the lexicographic objective, forward and backward, for 16-bit weights.

    Args:
        D: units a head. batch: sequences, a multiple of 8."""
    space = Space()
    sizes = {"forward": (D, gates * D, gates), "backward": (gates * D, D, 1)}
    for name, (summed, out, padded) in sizes.items():
        _direction(space, name, target, heads, D, batch, gates, summed, out, padded)
    order: Order = []
    for variable, want in _OBJECTIVE:  # the backward's variable comes before the forward's
        order += [(f"backward.{variable}", want), (f"forward.{variable}", want)]
    return space, order


_OBJECTIVE = [("tile_sum", "max"), ("tile_batch", "max"), ("tile_out", "max"), ("heads", "max"), ("cuts_out", "max"),
              ("cuts_sum", "min"), ("blocks_batch", "max"), ("loops_batch", "max"), ("loops_out", "min"),
              ("warps_sum", "max"), ("warps_batch", "max"), ("cached", "max")]


def _direction(space: Space, name: str, target: Target, H: int, D: int, B: int, gates: int, summed: int, out: int,
               padded: int) -> None:
    """One direction: a product that sums over `summed` values and gives `out`.

    Each warp has tiles of tile_out x tile_sum weights; tiles are repeated over warps (warps_*), over turns of a loop
    (loops_*) and over blocks (cuts_*, blocks_batch, heads)."""
    half, word, pad = 2, 4, 8  # bytes of a weight and of a sum; padding of a row against bank conflicts

    def var(what: str, values: list[int] | None = None) -> Term:
        return space.variable(f"{name}.{what}", values, low=1)

    tile_batch, tile_out, tile_sum = var("tile_batch", [8, 16, 32]), var("tile_out", [8, 16, 32]), var("tile_sum", [16])
    heads, cuts_out, cuts_sum, blocks_batch = var("heads"), var("cuts_out"), var("cuts_sum"), var("blocks_batch")
    loops_batch, loops_out = var("loops_batch"), var("loops_out")
    warps_sum, warps_batch, cached = var("warps_sum"), var("warps_batch"), var("cached")
    warps, blocks, batch_tiles = var("warps"), var("blocks"), var("batch_tiles")
    in_registers, weights, sums, a_head = var("in_registers"), var("weights"), var("sums"), var("a_head")
    require = space.require

    require(tile_batch * tile_out == 256, f"{name}: a tensor-core tile has 16 x 16 results")
    require(loops_batch <= 4, f"{name}: the sums of a warp stay in registers")
    require(batch_tiles == blocks_batch * warps_batch * loops_batch, f"{name}: tiles of the batch")
    require(warps_sum * warps_batch * out == product([warps, cuts_out, loops_out, tile_out]),
            f"{name}: the warps cover all results")
    require(divides(product([cuts_sum, warps_sum, tile_sum]), summed), f"{name}: whole tiles along the sum")
    require(divides(product([loops_out, cuts_out, tile_out]), out), f"{name}: whole tiles along the results")
    require(warps * 32 <= 256, f"{name}: threads a block, a quarter of what is allowed")
    require(divides(batch_tiles * tile_batch, B), f"{name}: whole tiles along the batch")
    require(blocks <= target.sms, f"{name}: all blocks run at once")
    require(blocks == product([cuts_out, cuts_sum, blocks_batch, heads]), f"{name}: blocks of the grid")
    require(divides(heads, H), f"{name}: whole groups of heads")
    require(product([tile_sum, tile_out, cached, warps]) == in_registers * warps_batch,
            f"{name}: weights that a block keeps in registers")
    require(product([cuts_sum, cached, warps_sum, tile_sum]) <= summed, f"{name}: no weight is kept twice")
    require(in_registers + product([warps, tile_batch, tile_out, loops_batch, word // half])
            + product([warps, tile_batch, tile_sum]) <= 2 * target.registers_sm,
            f"{name}: registers of an SM, in halves")
    require(half * gates * blocks_batch * D ** 2 + half * D * padded * pad * blocks_batch + 64
            == weights + half * in_registers * blocks_batch * cuts_out * cuts_sum,
            f"{name}: weights that are not in registers are in shared memory")
    tiles = word * warps_sum * cuts_sum * batch_tiles * tile_batch
    require(tiles * out + tiles * cuts_out * pad == sums, f"{name}: partial sums in shared memory")
    require(weights + sums == a_head, f"{name}: shared memory of a head")
    require(heads * a_head <= min(target.shared_block - 1024, 227000) * blocks, f"{name}: shared memory of all blocks")


def main() -> None:
    target = find("h100")
    space, order = model(target)
    start = time.perf_counter()
    found = space.lexicographic(order, limit=100_000)
    point = space.first(found)
    seconds = time.perf_counter() - start
    print(f"{len(space.domains)} variables, {len(space.constraints)} constraints: {seconds * 1e3:.0f} ms, "
          f"{found.work} nodes")
    for variable, _ in _OBJECTIVE:
        forward, backward = (point[f"{way}.{variable}"] for way in ("forward", "backward"))
        print(f"  {variable:<14} forward {forward:>4}   backward {backward:>4}")


if __name__ == "__main__":
    main()
