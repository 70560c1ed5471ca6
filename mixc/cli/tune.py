"""`mixc tune`: search the tile sizes of a mixer's kernels for a GPU that need not be here."""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from mixc.cli import output
from mixc.cli.output import File, Json, Pick, ShapeText, screen
from mixc.cli.write import GPU, Dtype, complete, gpu_of
from mixc.targets import Target

CORES = os.cpu_count() or 1


class Cuts(Enum):
    auto, fused, split = "auto", "fused", "split"


Best = Annotated[int, typer.Option(min=1, help="candidates of each launch that are compiled")]
Jobs = Annotated[int, typer.Option("-j", "--jobs", min=1, help="processes that compile")]
Limit = Annotated[float, typer.Option(help="seconds a kernel may take to compile")]
Budget = Annotated[float, typer.Option(help="seconds in all; what is not compiled by then is left out")]
Out = Annotated[Path | None, typer.Option("-o", "--out", metavar="FILE", help="write the config to a file as well")]
Cut = Annotated[Cuts, typer.Option("--schedule", help="launches that walk over a sequence with the state on chip, or "
                                   "one for states and one with a program a segment; auto: what is faster")]
Fresh = Annotated[bool, typer.Option("--fresh", help="search again, whatever is kept")]


def tune(file: File, target: GPU = "h100", shape: ShapeText = None, dtype: Dtype = "bf16", mixer: Pick = None,
         best: Best = 6, jobs: Jobs = CORES, limit: Limit = 30.0, budget: Budget = 55.0,
         schedule: Cut = Cuts.auto, out: Out = None, fresh: Fresh = False, json_: Json = False) -> None:
    """Search tile sizes: candidates by a cost model, the best compiled for the target, the winner kept."""
    from mixc.autotune.tuned import tuned, write
    output.dtype_of(dtype, kernels=True)
    gpu, m = gpu_of(target), output.one_mixer(file, mixer)
    sizes, cut = complete(m, output.shape(shape)), "" if schedule is Cuts.auto else schedule.value
    apart = out is None and not cut  # a file, and a cut, are of one program
    parts, found = _parts(m, gpu, sizes, dtype, apart), []
    alone = parts == [m]
    if out is not None and not alone:
        raise typer.BadParameter(f"{m.__name__} runs in parts, and a file holds the config of one mixer; without "
                                 "`-o` they are kept for calls on this machine", param_hint="--out")
    for part in parts:
        with output.progress(f"tuning {part.__name__}", 2 * best) as advance:
            found.append(tuned(part, gpu, sizes, dtype, cut=cut, fresh=fresh, advance=advance, best=best, workers=jobs,
                               limit=limit, budget=budget))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write(out, found[0][0])
    path = out or (None if found[0][0].stopped else found[0][1]) if alone else None
    line = f'mixc.load("{m.__name__}").emit(target="{target}", dtype="{dtype}", config="{path}")' if path else ""
    if json_:
        said = [made.as_dict() | {"kept": None if made.stopped else str(where), "from_cache": kept}
                for made, where, kept in found]
        output.say_json(said[0] | {"line": line} if alone else said)
        return
    for made, where, kept in found:
        _show(made.as_dict(), gpu.title)
        screen.print("not kept: time was up before all were compiled (--budget gives more, -o a file of these)"
                     if made.stopped else f"{'found' if kept else 'kept in'} {where}", markup=False)
    if line:
        screen.print(line, style="bold", markup=False)


def _parts(m: Any, target: Target, sizes: dict[str, int], dtype: str, apart: bool) -> list[Any]:
    """The mixer, or those of its parts that are tuned; `apart`: also those that may stand apart."""
    from mixc.codegen.apart import parts_at
    from mixc.codegen.triton_program import kernels, whole_shape
    from mixc.passes.classify import parts_of
    from mixc.runtime.parts import mixer_of

    step = m.declared
    parts = parts_at(step, target, whole_shape(step, sizes), dtype) if apart else parts_of(step)
    if len(parts) == 1:
        return [m]
    for p in parts:
        if kernels(p).by_rule:
            output.notes.print(f"{p.name}: a rule gives its sizes, none is tuned", markup=False)
    return [mixer_of(p) for p in parts if not kernels(p).by_rule]


def _show(made: dict[str, Any], title: str) -> None:
    sizes = " ".join(f"{n}={size}" for n, size in made["shape"].items())
    rows = []
    for r in made["launches"]:
        tile = r["tile"]
        blocks = " ".join(_blocks(tile))
        spills = f"spills {r['spill']} B" * bool(r["spill"])
        state = ", ".join(filter(None, ("chosen" * r["chosen"], r["failed"], spills)))
        rows.append((r["launch"], tile["chunk"], blocks or "-", tile["warps"], tile["stages"], r["segment"],
                     f"{r['bytes'] / 1e6:.0f}", f"{r['times']:.2f}", f"{r['registers']:.0f}",
                     f"{r['shared'] / 1024:.0f}", r["occupancy"], f"{r['microseconds']:.0f}", r["binds"], state))
    columns = ["launch", "C", "blocks", "warps", "stages", "segment", "MB", "x", "regs", "KB", "occ.", "model us",
               "binds", ""]
    output.table(columns, rows, f"{made['mixer']} on {title}: {sizes} {made['dtype']}")
    chose = ("no GPU was here to time them" if not made["timed"] else "none gave what it should here"
             if all(r["failed"] for r in made["timed"]) else "")
    model = f"; {chose}: the model chose among those that compile well" if chose else ""
    compiled = sum(r["failed"] != "no time was left" for r in made["launches"])
    screen.print(f"{compiled} candidates compiled in {made['seconds']:.0f} s{model}", markup=False)
    _show_timed(made)
    for r in (r for r in made["launches"] if r["chosen"] and r["spill"]):
        output.notes.print(f"{r['launch']}: all candidates spill, the chosen one {r['spill']} bytes; a smaller head, "
                           "or ranges that say more (`where norm[K](k) <= 1`), leave more room", markup=False)


def _show_timed(made: dict[str, Any]) -> None:
    """Configs that ran, the fastest first; of each launch what is not as in the chosen one."""
    own = made["config"]["tiles"]
    rows = []
    for r in sorted(made["timed"], key=lambda r: r["microseconds"] or float("inf")):
        tiles = r["config"]["tiles"]
        other = [f"{name} {_tile(tile)}" for name, tile in tiles.items() if tile != own.get(name)]
        took = f"{r['microseconds']:.0f}" if r["microseconds"] else "-"
        chosen = "chosen" * (r["config"] == made["config"])
        rows.append((took, r["config"]["segment"], chosen or ", ".join(other) or "the same tiles", r["failed"]))
    if rows:
        output.table(["us", "segment", "instead", ""], rows, "timed here, forward and backward")


def _tile(tile: dict[str, Any]) -> str:
    return " ".join([f"C={tile['chunk']}", *_blocks(tile), f"warps={tile['warps']}", f"stages={tile['stages']}"])


def _blocks(tile: dict[str, Any]) -> list[str]:
    return [f"{d}={b}" + (f" x {tile['turns']}" if d == tile.get("turned") else "") for d, b in tile["blocks"].items()]
