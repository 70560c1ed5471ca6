"""What all commands share: colour and tables for people, plain text for pipes, JSON for programs."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from mixc.errors import Diagnostic, InputError, SpecError

screen = Console(soft_wrap=True, highlight=False)
notes = Console(stderr=True, soft_wrap=True, highlight=False)

File = Annotated[str, typer.Argument(metavar="FILE", help="a .mix file, or the name of a shipped spec")]
Files = Annotated[list[str], typer.Argument(metavar="FILE…", help=".mix files, or names of shipped specs")]
Pick = Annotated[str | None, typer.Option("--mixer", help="which mixer of a file that holds several")]
Json = Annotated[bool, typer.Option("--json", help="print JSON")]
ShapeText = Annotated[str | None, typer.Option("--shape", metavar="B=8,T=4096,…", help="sizes: B, T, H, dims")]


def command(run: Callable[..., None]) -> Callable[..., None]:
    """`run` with errors printed as a user wants them: diagnostics as they are, exit status 1."""
    @functools.wraps(run)
    def wrapped(*args: Any, **options: Any) -> None:
        try:
            run(*args, **options)
        except SpecError as error:
            if options.get("json_"):
                say_json({"ok": False, "diagnostics": [as_json(d) for d in error.diagnostics]})
            else:
                for d in error.diagnostics:
                    diagnostic(d)
            raise typer.Exit(1) from None
        except (InputError, OSError) as error:  # files that cannot be written, too
            notes.print(f"[bold red]error[/]: {escape(str(error))}")
            raise typer.Exit(1) from None
    return wrapped


def diagnostic(d: Diagnostic) -> None:
    """To stderr, the first line in colour, carets too."""
    colour = "red" if d.level == "error" else "cyan"
    for i, line in enumerate(str(d).splitlines()):
        marked = i == 0 or set(line.strip(" |")) == {"^"}
        style = f"bold {colour}" if marked else "green" if line.startswith("help:") else ""
        notes.print(line, style=style, markup=False)
    notes.print()


def as_json(d: Diagnostic) -> dict[str, Any]:
    s = d.span
    where = None if s is None else {"file": s.source.name, "line": s.line, "column": s.column, "end": s.end}
    return {"code": d.code, "level": d.level, "message": d.message, "where": where, "help": d.help}


def say_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str = "") -> None:
    """A table with lines on a terminal, aligned columns in a pipe. The first column is text, numbers stand right."""
    cells = [[str(c) for c in row] for row in rows]
    right = [i > 0 and all(r[i][:1].isdigit() or r[i] in ("", "-") for r in cells) for i in range(len(columns))]
    if screen.is_terminal:
        drawn = Table(*[], title=title or None, title_justify="left", title_style="bold")
        for name, to_right in zip(columns, right, strict=True):
            drawn.add_column(name, justify="right" if to_right else "left")
        for row in cells:
            drawn.add_row(*map(escape, row))
        screen.print(drawn, soft_wrap=False)
        return
    width = [max(len(c) for c in column) for column in zip(columns, *cells, strict=True)]
    if title:
        print(title)
    for row in [list(columns), *cells]:
        print("  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, width, right, strict=True)).rstrip())


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[str], None]]:
    """A bar on a terminal's stderr; call the value with what comes next to advance by one."""
    bar = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                   console=notes, transient=True, disable=not notes.is_terminal)
    with bar:
        task = bar.add_task(what, total=total)

        def advance(label: str) -> None:
            bar.update(task, advance=1, description=label)
        yield advance


def shape(text: str | None, **otherwise: int) -> dict[str, int]:
    """"B=8,T=4096" over the defaults.

    Raises:
        typer.BadParameter: what is no NAME=NUMBER."""
    found = dict[str, int]()
    for item in filter(None, (text or "").replace(" ", "").split(",")):
        name, _, number = item.partition("=")
        if not name.isidentifier() or not number.isdigit():
            raise typer.BadParameter(f"`{item}` is no NAME=SIZE; write B=8,T=4096,H=16,K=128", param_hint="--shape")
        if name in found:
            raise typer.BadParameter(f"`{name}` stands there twice", param_hint="--shape")
        found[name] = int(number)
    return otherwise | found


def dims(m: Any, sizes: dict[str, int]) -> dict[str, int]:
    """What `sizes` says of a mixer's dims.

    Raises:
        typer.BadParameter: what `checks.shape` refuses."""
    from mixc.errors import InputError
    from mixc.runtime import checks

    try:
        found = checks.shape(m.declared, sizes)
    except InputError as error:
        raise typer.BadParameter(str(error), param_hint="--shape") from None
    return {n: size for n, size in found.items() if n not in ("B", "T", "H")}


def dtype_of(name: str, *, kernels: bool = False) -> Any:
    """The dtype of a name; `kernels`: one that tensors of kernels may have.

    Raises:
        typer.BadParameter: no such dtype."""
    import torch

    known = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if kernels:
        del known["fp64"]
    if name not in known:
        raise typer.BadParameter(f"`{name}`: expected one of {', '.join(known)}", param_hint="--dtype")
    return known[name]


def mixers(file: str, name: str | None = None) -> list[Any]:
    """Every mixer of a file or of a shipped spec; only `name` if one is asked for.

    Raises:
        typer.BadParameter: no such file.
        SpecError: what is wrong with it."""
    from pathlib import Path

    from mixc.errors import Source
    from mixc.frontend import parse
    from mixc.runtime.load import load, shipped
    from mixc.runtime.mixer import Mixer

    path = Path(file)
    if not path.is_file():
        if path.suffix == ".mix" or path.name != file:
            raise typer.BadParameter(f"there is no file {file}", param_hint="FILE")
        path = shipped().get(file, path)
        if not path.is_file():
            return [load(file, name)]
    try:
        source = Source(str(path), path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{file}: {error}", param_hint="FILE") from None
    found = parse(source)
    if name is not None:
        found = [m for m in found if m.name == name]
        if not found:
            raise typer.BadParameter(f"{file} has no mixer `{name}`", param_hint="--mixer")
    made = [Mixer(m, source) for m in found]
    for m in made:
        m.noted = True  # commands print notes themselves
    return made


def one_mixer(file: str, name: str | None) -> Any:
    found = mixers(file, name)
    if len(found) > 1:
        names = ", ".join(m.__name__ for m in found)
        raise typer.BadParameter(f"{file} holds {names}: say which", param_hint="--mixer")
    return found[0]


def prepare_triton() -> None:
    """Without a GPU kernels are interpreted; triton reads that when it is imported."""
    import os

    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")
