"""`mixc cache ls | clear | verify`: what tuning has kept on this machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from mixc.autotune import cache as results
from mixc.cli import output
from mixc.cli.output import Json, screen

app = typer.Typer(help="Tuning results kept on this machine.", no_args_is_help=True)
Broken = Annotated[bool, typer.Option("--broken", help="only what is no result, and what other versions made")]


def _row(e: results.Entry) -> dict[str, Any]:
    state = e.wrong or ("of other versions" if e.stale else "good")
    key = e.key
    return {"mixer": key.get("mixer", "?"), "target": key.get("target", "?"), "dtype": key.get("dtype", "?"),
            "bucket": key.get("bucket", "?"), "state": state, "path": str(e.path)}


def ls(json_: Json = False) -> None:
    """List what is kept, and where."""
    rows = [_row(e) for e in results.entries()]
    if json_:
        output.say_json({"folder": str(results.folder()), "entries": rows})
        return
    screen.print(f"{results.folder()}: {len(rows)} files", markup=False)
    if rows:
        output.table(["mixer", "target", "dtype", "bucket", "state"], [[r[k] for k in list(r)[:5]] for r in rows])


def clear(broken: Broken = False, json_: Json = False) -> None:
    """Remove what is kept."""
    removed = results.clear(broken)
    if json_:
        output.say_json({"removed": removed})
    else:
        screen.print(f"removed {removed} files from {results.folder()}", markup=False)


def verify(json_: Json = False) -> None:
    """Look at every file: exit 1 if one is no whole result (it counts as none; `clear --broken` removes it)."""
    rows = [_row(e) for e in results.entries()]
    wrong = [r for r in rows if r["state"] not in ("good", "of other versions")]
    if json_:
        output.say_json({"ok": not wrong, "entries": rows})
    else:
        for r in wrong:
            screen.print(f"{r['path']}: {r['state']}", style="red", markup=False)
        screen.print(f"{len(rows) - len(wrong)} of {len(rows)} files are good")
    if wrong:
        raise typer.Exit(1)


_COMMANDS: dict[str, Callable[..., None]] = {"ls": ls, "clear": clear, "verify": verify}
for name, run in _COMMANDS.items():
    app.command(name)(output.command(run))
