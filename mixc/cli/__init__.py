"""The command line: `mixc check | show | compile | explain | bench | tune | targets | cache | doctor`.

Exit 0 on success, 1 on an error or when a backend disagrees, 2 on wrong usage.
"""

import sys
from collections.abc import Callable
from typing import Annotated

import typer

from mixc.cli import cache
from mixc.cli.bench import bench
from mixc.cli.check import check
from mixc.cli.machine import doctor, targets, version
from mixc.cli.output import command
from mixc.cli.stages import show
from mixc.cli.tune import tune
from mixc.cli.write import compile_file, explain

app = typer.Typer(name="mixc", help="A compiler for sequence mixers.", no_args_is_help=True, add_completion=False,
                  pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]},
                  rich_markup_mode="rich" if sys.stdout.isatty() else None)

_COMMANDS: dict[str, Callable[..., None]] = {
    "check": check, "explain": explain, "show": show, "compile": compile_file, "bench": bench, "targets": targets,
    "tune": tune, "doctor": doctor,
}
app.add_typer(cache.app, name="cache")


def _version(asked: bool) -> None:
    if asked:
        print(f"mixc {version('mixc')}")
        raise typer.Exit()


@app.callback()
def _options(shown: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True,
                                                 help="print the version")] = False) -> None:
    """A compiler for sequence mixers."""


for name, run in _COMMANDS.items():
    app.command(name)(command(run))
