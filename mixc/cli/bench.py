"""`mixc bench`: a mixer against the loop over tokens that a person would write, on this machine."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Annotated, Any

import typer

from mixc.cli import output
from mixc.cli.output import File, Json, Pick, ShapeText, screen

Work = Callable[[], None]


def bench(file: File, shape: ShapeText = None, mixer: Pick = None,
          repeat: Annotated[int, typer.Option(min=1, help="rounds, both sides interleaved")] = 5,
          dtype: Annotated[str, typer.Option(help="of the inputs")] = "fp32", json_: Json = False) -> None:
    """Time forward and forward+backward against the eager token loop; minimum and median of interleaved rounds."""
    import torch

    output.prepare_triton()
    m = output.one_mixer(file, mixer)
    sizes = output.shape(shape, B=2, T=2048, H=4)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    report = measure(m, sizes, output.dtype_of(dtype), device, repeat)
    if json_:
        output.say_json(report)
        return
    where = report["machine"]
    for note in m.notes:
        output.diagnostic(note)
    screen.print(f"[bold]{m.__name__}[/]  {report['shape']}  {dtype} on {where}")
    output.table(["", "eager loop, ms", "mixc, ms", "times faster"],
                 [(r["what"], f"{r['eager_ms']:.1f}", f"{r['mixc_ms']:.1f}", f"{r['eager_ms'] / r['mixc_ms']:.1f}")
                  for r in report["rows"]])


def measure(m: Any, sizes: dict[str, int], dtype: Any, device: str, repeat: int) -> dict[str, Any]:
    """Milliseconds of both sides: rows "forward" and "forward + backward"."""
    import torch

    from mixc.codegen.eager import eager_loop
    from mixc.runtime.draw import dim_sizes, draw

    dims = dim_sizes(m.declared, {n: s for n, s in sizes.items() if n not in ("B", "T", "H")}, (64,) * 8)
    B, T, H = sizes["B"], sizes["T"], sizes["H"]
    tensors = draw(m.declared, B=B, T=T, H=H, sizes=dims, dtype=dtype, device=device)
    program, consts = m.specialise(dims, {})
    loop, _ = eager_loop(program, dims, consts, H)
    names = [d.name for d in program.outs]

    def compiled(x: dict[str, Any]) -> dict[str, Any]:
        o, _ = m(**x)
        return {names[0]: o} if isinstance(o, torch.Tensor) else o._asdict()

    cotangents = {n: torch.randn_like(o) for n, o in compiled(tensors).items()}
    sides = {"eager": loop, "mixc": compiled}
    rows = []
    with output.progress(m.__name__, 2 * (repeat + 1)) as advance:
        for what, train in (("forward", False), ("forward + backward", True)):
            times: dict[str, list[float]] = {name: [] for name in sides}
            for i in range(repeat + 1):  # the first round warms up
                advance(f"{m.__name__}: {what}")
                for name, side in sides.items():
                    seconds = _time(side, tensors, cotangents, train, device)
                    if i:
                        times[name].append(seconds * 1e3)
            rows.append({"what": what, **{f"{n}_ms": min(t) for n, t in times.items()},
                         **{f"{n}_median_ms": sorted(t)[len(t) // 2] for n, t in times.items()}})
    threads = f"{torch.get_num_threads()} threads, OMP_WAIT_POLICY={os.environ.get('OMP_WAIT_POLICY', 'unset')}"
    machine = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {threads}"
    return {"mixer": m.__name__, "shape": {"B": B, "T": T, "H": H, **dims}, "machine": machine, "rows": rows}


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
        torch.autograd.backward(list(outs.values()), [cotangents[n].to(o.dtype) for n, o in outs.items()])
    sync()
    return time.perf_counter() - start
