"""`mixc bench`: a mixer against the loop over tokens that a person would write, on this machine."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from mixc.cli import output
from mixc.cli.output import File, Json, Pick, ShapeText, screen

Work = Callable[[], None]
Picture = Annotated[Path | None, typer.Option(metavar="FILE", help="draw times over T: a .png, .svg or .pdf")]


def bench(file: File, shape: ShapeText = None, mixer: Pick = None,
          repeat: Annotated[int, typer.Option(min=1, help="rounds, both sides interleaved")] = 5,
          dtype: Annotated[str, typer.Option(help="of the inputs")] = "fp32", picture: Picture = None,
          json_: Json = False) -> None:
    """Time forward and forward+backward against the eager token loop; minimum and median of interleaved rounds."""
    import torch

    if picture is not None and importlib.util.find_spec("matplotlib") is None:
        raise typer.BadParameter("pictures need matplotlib: pip install matplotlib", param_hint="--picture")
    if picture is not None and picture.suffix not in (".png", ".svg", ".pdf"):
        raise typer.BadParameter(f"`{picture}` must end with .png, .svg or .pdf", param_hint="--picture")
    output.prepare_triton()
    m = output.one_mixer(file, mixer)
    sizes = output.shape(shape, B=2, T=2048, H=4)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    report = measure(m, sizes, output.dtype_of(dtype), device, repeat)
    if picture is not None:
        report["over_T"] = [measure(m, sizes | {"T": T}, output.dtype_of(dtype), device, max(1, repeat // 2))
                            for T in _lengths(sizes["T"])[:-1]] + [dict(report)]
        draw_over_T(report, picture)
    if json_:
        output.say_json(report)
        return
    where = report["machine"]
    for note in m.notes:
        output.diagnostic(note)
    sizes_text = " ".join(f"{n}={size}" for n, size in report["shape"].items())
    screen.print(f"[bold]{m.__name__}[/]  {sizes_text}  {dtype}  {where}")
    output.table(["", "eager loop, ms", "mixc, ms", "times faster"],
                 [(r["what"], f"{r['eager_ms']:.1f}", f"{r['mixc_ms']:.1f}", f"{r['eager_ms'] / r['mixc_ms']:.1f}")
                  for r in report["rows"]])
    if picture is not None:
        screen.print(f"times over T: {picture}", markup=False)
    if report["disturbed"]:
        screen.print("something else was busy here: times are not to be trusted; run it again", style="yellow")


def _lengths(T: int) -> list[int]:
    """T and shorter ones, a factor of two apart, the shortest first."""
    return sorted({max(1, T >> i) for i in range(5)})


def draw_over_T(report: dict[str, Any], path: Path) -> None:
    """Milliseconds over T of both sides, both axes logarithmic; written as the ending of `path` says."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    lengths = [r["shape"]["T"] for r in report["over_T"]]
    for i, ax in enumerate(axes):
        for side, label in (("eager", "eager loop"), ("mixc", "mixc")):
            ms = [r["rows"][i][f"{side}_ms"] for r in report["over_T"]]
            ax.plot(lengths, ms, "o-", label=label)
            ax.annotate(f"{ms[-1]:.{int(ms[-1] < 10)}f} ms", (lengths[-1], ms[-1]), textcoords="offset points",
                        xytext=(6, -3))
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        ax.set(xlabel="T", title=report["rows"][i]["what"], xticks=lengths, xticklabels=map(str, lengths))
        ax.set_xlim(right=lengths[-1] * 2)  # room for the numbers
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("ms")
    axes[0].legend()
    shape = " ".join(f"{n}={s}" for n, s in report["shape"].items() if n != "T")
    figure.suptitle(f"{report['mixer']}, {shape}, {report['machine']}", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def measure(m: Any, sizes: dict[str, int], dtype: Any, device: str, repeat: int) -> dict[str, Any]:
    """Milliseconds of both sides: rows "forward" and "forward + backward".

    The loop's many small operations may be faster on one thread than on all: its better time counts."""
    import torch

    from mixc.codegen.eager import eager_loop
    from mixc.runtime.draw import dim_sizes, draw

    dims = dim_sizes(m.declared, output.dims(m, sizes), (64,) * 8)
    B, T, H = sizes["B"], sizes["T"], sizes["H"]
    tensors = draw(m.declared, B=B, T=T, H=H, sizes=dims, dtype=dtype, device=device)
    program, consts = m.specialise(dims, {})
    loop, _ = eager_loop(program, dims, consts, H)
    names = [d.name for d in program.outs]

    def compiled(x: dict[str, Any]) -> dict[str, Any]:
        o, _ = m(**x)
        return {names[0]: o} if isinstance(o, torch.Tensor) else o._asdict()

    cotangents = {n: torch.randn_like(o) for n, o in compiled(tensors).items()}
    threads = torch.get_num_threads()
    sides = {"eager": (loop, threads), "eager on one thread": (loop, 1), "mixc": (compiled, threads)}
    rows: list[dict[str, Any]] = []
    disturbed = False
    with output.progress(m.__name__, 2 * (repeat + 1)) as advance:
        for what, train in (("forward", False), ("forward + backward", True)):
            times: dict[str, list[float]] = {name: [] for name in sides}
            for i in range(repeat + 1):  # the first round warms up
                advance(f"{m.__name__}: {what}")
                for name, (side, count) in sides.items():
                    torch.set_num_threads(count)
                    seconds = _time(side, tensors, cotangents, train, device)
                    if i:
                        times[name].append(seconds * 1e3)
            torch.set_num_threads(threads)
            best = {name: min(t) for name, t in times.items()}
            middle = {name: sorted(t)[len(t) // 2] for name, t in times.items()}
            eager = min(("eager", "eager on one thread"), key=best.__getitem__)
            disturbed = disturbed or any(middle[n] > 2 * best[n] for n in (eager, "mixc"))
            rows.append({"what": what, "eager_ms": best[eager], "mixc_ms": best["mixc"],
                         "eager_median_ms": middle[eager], "mixc_median_ms": middle["mixc"]})
    disturbed = disturbed or any(rows[0][f"{side}_ms"] > rows[1][f"{side}_ms"] for side in ("eager", "mixc"))
    policy = f"OMP_WAIT_POLICY={os.environ.get('OMP_WAIT_POLICY', 'unset')}"
    machine = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {threads} threads, {policy}"
    return {"mixer": m.__name__, "shape": {"B": B, "T": T, "H": H, **dims}, "machine": machine, "rows": rows,
            "disturbed": disturbed}


def _time(side: Callable[..., Any], tensors: dict[str, Any], cotangents: dict[str, Any], train: bool,
          device: str) -> float:
    import torch

    x = {n: t.detach().requires_grad_(train) for n, t in tensors.items()}
    sync: Work = torch.cuda.synchronize if device == "cuda" else lambda: None
    sync()
    start = time.perf_counter()
    with torch.set_grad_enabled(train):
        outs = side(x)
    if train:
        known = {n: o for n, o in outs.items() if o.requires_grad}  # not a condition
        if known:
            torch.autograd.backward(list(known.values()), [cotangents[n].to(o.dtype) for n, o in known.items()])
    sync()
    return time.perf_counter() - start
