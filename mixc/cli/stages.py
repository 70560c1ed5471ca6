"""`mixc show`: a spec as text after each stage of the compiler."""

from __future__ import annotations

import difflib
import itertools
from typing import Annotated, Any

import typer

from mixc.cli import output
from mixc.cli.output import File, Json, Pick, screen

After = Annotated[str | None, typer.Option("--after", metavar="PASS", help="only the program after this pass")]
All = Annotated[bool, typer.Option("--all", help="the program after every pass")]
Diff = Annotated[bool, typer.Option("--diff", help="what every pass changed")]


def show(file: File, mixer: Pick = None, after: After = None, all_: All = False, diff: Diff = False,
         json_: Json = False) -> None:
    """Show compiler stages as text. Without an option: the last one."""
    m = output.one_mixer(file, mixer)
    texts = stages(m.declared)
    if after is not None and after not in texts:
        known = ["step", *(name for name, _ in _pipeline())]
        why = f"there is no pass `{after}`; there are {', '.join(known)}"
        if after in known:
            why = f"`{after}` is not reached: {m.notes[0].message if m.notes else m.form}"
        raise typer.BadParameter(why, param_hint="--after")
    chosen = texts if all_ or diff else {n: t for n, t in texts.items() if n == (after or list(texts)[-1])}
    if json_:
        output.say_json(chosen)
    elif diff:
        _differences(texts)
    else:
        for name, text in chosen.items():
            if len(chosen) > 1:
                screen.rule(name) if screen.is_terminal else print(f"# ---- {name}")
            print(text)


def stages(step: Any) -> dict[str, str]:
    """The text after every pass that this program can take, by name; "step" comes first."""
    from mixc.ir.text import print_program

    program, found = step, {"step": print_program(step)}
    for name, run in _pipeline():
        if program.level == "stages" and any(g.form == "sequential" for g in program.groups):
            break  # it runs as it is, token by token
        program = run(program)
        found[name] = print_program(program)
        if program.parts:
            return found | _of_parts(found[name], name, [stages(p) for p in program.parts])
    return found


def _of_parts(whole: str, name: str, parts: list[dict[str, str]]) -> dict[str, str]:
    """Those of programs that run one after another; after the pass that made them, behind the whole."""
    later = dict.fromkeys(n for p in parts for n in p if n not in ("step", name))
    return {name: "\n".join([whole, *(p[name] for p in parts)])} | {
        n: "\n".join(p[n] for p in parts if n in p) for n in later}


def _pipeline() -> Any:
    from mixc.passes import PIPELINE

    return PIPELINE


def _differences(texts: dict[str, str]) -> None:
    names = list(texts)
    for before, after in itertools.pairwise(names):
        lines = difflib.unified_diff(texts[before].splitlines(), texts[after].splitlines(), before, after, lineterm="")
        for line in lines:
            style = {"+": "green", "-": "red", "@": "cyan"}.get(line[:1], "")
            screen.print(line, style=style, markup=False)
