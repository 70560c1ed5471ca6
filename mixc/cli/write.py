"""`mixc compile` and `mixc explain`: what the compiler writes for people."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mixc import targets
from mixc.cli import output
from mixc.cli.output import File, Json, Pick, ShapeText, screen

Dtype = Annotated[str, typer.Option(help="of the tensors: bf16, fp16, fp32")]


GPU = Annotated[str, typer.Option("--target", help="see `mixc targets`")]
Folder = Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="where the module goes")]


def compile_file(file: File, target: GPU = "h100", shape: ShapeText = None, dtype: Dtype = "bf16", mixer: Pick = None,
                 out: Folder = Path("out"), json_: Json = False) -> None:
    """Write the standalone module of each mixer: kernels, launches, autograd; needs torch and triton only."""
    output.dtype_of(dtype)
    try:
        gpu = targets.find(target)
    except KeyError as error:
        raise typer.BadParameter(str(error.args[0]), param_hint="--target") from None
    sizes = output.shape(shape)
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for m in output.mixers(file, mixer):
        text: str = m.emit(target=gpu.name, shape=_complete(m, sizes), dtype=dtype)
        path = out / f"{m.__name__}.py"
        path.write_text(text, encoding="utf-8")
        written.append({"mixer": m.__name__, "path": str(path), "target": gpu.name, "lines": text.count("\n"),
                        "kernels": text.count("@triton.jit")})
    if json_:
        output.say_json(written)
        return
    for w in written:
        screen.print(f"{w['path']}: {w['lines']} lines, for {gpu.title}", markup=False)


def _complete(m: Any, sizes: dict[str, int]) -> dict[str, int]:
    """Sizes of the usual training shape for what is not given."""
    found = {"B": 8, "T": 4096, "H": 16}
    found |= {d.name: d.size or 64 for d in m.declared.dims if d.alias is None}
    return found | sizes


def explain(file: File, mixer: Pick = None,
            html: Annotated[Path | None, typer.Option(metavar="FILE", help="write a page instead")] = None) -> None:
    """Explain a mixer: its step, its form and why, the equations, the kernels and their costs."""
    texts = [m.explain() for m in output.mixers(file, mixer)]
    if html is not None:
        notes = "the page with pictures is not there yet; without --html the same is printed as markdown"
        raise typer.BadParameter(notes, param_hint="--html")
    for text in texts:
        if screen.is_terminal:
            from rich.markdown import Markdown

            screen.print(Markdown(text), soft_wrap=False)
        else:
            print(text)
