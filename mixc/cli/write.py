"""`mixc compile` and `mixc explain`: what the compiler writes for people."""

from __future__ import annotations

import re
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
    """Write the standalone module of each mixer, a script that checks it, and a README; torch and triton suffice."""
    from mixc.cli.beside import module_name

    output.dtype_of(dtype, kernels=True)
    gpu = gpu_of(target)
    sizes = output.shape(shape)
    out.mkdir(parents=True, exist_ok=True)
    written, pages = [], []
    found = output.mixers(file, mixer)
    with output.progress("compile", len(found)) as advance:
        for m in found:
            advance(m.__name__)
            full = complete(m, sizes)
            text: str = m.emit(target=gpu, shape=full, dtype=dtype)
            path = out / f"{module_name(m.__name__)}.py"
            path.write_text(text, encoding="utf-8")
            at = " ".join(f"{n}={s}" for n, s in full.items())
            pages.append(_page(m, {"made for": gpu.title, "at": at, "of": dtype}))
            written.append({"mixer": m.__name__, "path": str(path), "check": _check(m, out, full), "target": gpu.name,
                            "dtype": dtype, "shape": full, "lines": text.count("\n"),
                            "kernels": len(set(re.findall(rf"\b({m.__name__}_\w+)\[\(", text)))})
    (out / "README.md").write_text("\n".join(pages), encoding="utf-8")
    if json_:
        output.say_json(written)
        return
    for w in written:
        screen.print(f"{w['path']}: {w['lines']} lines, {w['kernels']} kernels, for {gpu.title}", markup=False)
        screen.print(f"python {w['check']} checks it where torch and triton are", markup=False)


def _check(m: Any, out: Path, shape: dict[str, int]) -> str:
    """Writes the script that checks the module of that shape, at small sizes."""
    from mixc.cli.beside import check_script
    from mixc.runtime.draw import dim_sizes

    sizes = dim_sizes(m.declared, {n: shape[n] for n in m.unrolled if n in shape}, (12, 10, 3, 4))
    path = out / f"check_{m.__name__}.py"
    step, consts = m.specialise(sizes, {})
    path.write_text(check_script(step, sizes, consts, path.name), encoding="utf-8")
    return str(path)


def _page(m: Any, facts: dict[str, str]) -> str:
    from mixc.cli.beside import readme

    return readme(m.declared, m.__doc__, {s: (form, m.why[s]) for s, form in m.form.items()}, facts)


def gpu_of(name: str) -> targets.Target:
    try:
        return targets.find(name)
    except KeyError as error:
        raise typer.BadParameter(str(error.args[0]), param_hint="--target") from None


def complete(m: Any, sizes: dict[str, int]) -> dict[str, int]:
    """Sizes of the usual training shape for what is not given."""
    found = {"B": 8, "T": 4096, "H": 16}
    sizes = {n: sizes[n] for n in found if n in sizes} | output.dims(m, sizes)
    found |= {d.name: d.size or (2 if d.name in m.unrolled else 64) for d in m.declared.dims if d.alias is None}
    return found | sizes


Page = Annotated[Path | None, typer.Option(metavar="FILE", help="write a page with pictures, for a browser")]


def explain(file: File, mixer: Pick = None, html: Page = None, target: GPU = "h100", shape: ShapeText = None,
            json_: Json = False) -> None:
    """Explain a mixer: its step, its form and why, the equations, the kernels and their costs."""
    gpu, at = gpu_of(target), output.shape(shape)
    if html is not None:
        from mixc.cli.page import page

        m = output.one_mixer(file, mixer)
        sizes = complete(m, at)
        sizes |= {d.name: sizes[d.alias] for d in m.declared.dims if d.alias}
        html.parent.mkdir(parents=True, exist_ok=True)
        html.write_text(page(m, gpu, sizes), encoding="utf-8")
        output.say_json({m.__name__: str(html)}) if json_ else screen.print(f"{m.__name__}: {html}", markup=False)
        return
    texts = {m.__name__: m.explain(gpu, complete(m, at)) for m in output.mixers(file, mixer)}
    if json_:
        output.say_json(texts)
        return
    for text in texts.values():
        if screen.is_terminal:
            from rich.markdown import Markdown

            screen.print(Markdown(text), soft_wrap=False)
        else:
            print(text)
