"""`mixc targets` and `mixc doctor`: GPUs one can compile for, and what is on this machine."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from typing import Annotated, Any

import typer

from mixc import targets as table_of_targets
from mixc.cli import output
from mixc.cli.output import Json, screen

TESTED = {"torch": "2.13.0", "triton": "3.9.0"}
NEEDS = {"torch": (2, 6), "triton": (3, 4)}


def targets(form: Annotated[str | None, typer.Option(metavar="NAME", help="print one as a form to fill in")] = None,
            json_: Json = False) -> None:
    """The limits of GPUs that kernels are made for, and where each number was published."""
    known = table_of_targets.TARGETS.values()
    if form is not None:
        try:
            output.say_json(table_of_targets.form(table_of_targets.find(form)))
        except KeyError as error:
            raise typer.BadParameter(str(error.args[0]), param_hint="--form") from None
        return
    if json_:
        output.say_json({t.name: table_of_targets.form(t) for t in known})
        return
    rows = [(t.name, t.arch, t.sms, t.registers_thread, t.registers_sm // 1024, t.shared_block // 1024,
             t.shared_sm // 1024, t.warps, t.blocks, t.l2 // table_of_targets.MB, t.bandwidth,
             t.peaks["bf16"], t.peaks["tf32"], t.peaks["fp32"]) for t in known]
    output.table(["name", "arch", "SMs", "regs/thread", "Kregs/SM", "KB/block", "KB/SM", "warps", "blocks", "L2 MB",
                  "GB/s", "bf16 TF", "tf32 TF", "fp32 TF"], rows)
    for t in known:
        screen.print(f"\n{t.name}: {t.title}", style="bold", markup=False)
        screen.print(f"  {t.tensor}", markup=False)
        for source in t.sources:
            screen.print(f"  {source}", markup=False)


def doctor(json_: Json = False) -> None:
    """What is on this machine, what mixc can do with it, and what is missing."""
    rows, wrong = _findings()
    if json_:
        output.say_json({"ok": not wrong, "findings": [{"what": a, "found": b, "means": c} for a, b, c in rows]})
    else:
        output.table(["what", "found", "means"], rows)
        for line in wrong:
            screen.print(f"[bold red]{line}[/]")
    if wrong:
        raise typer.Exit(1)


def version(package: str) -> str | None:
    """Of an installed package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _findings() -> tuple[list[tuple[str, str, str]], list[str]]:
    rows = [("python", platform.python_version(), f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"),
            ("mixc", version("mixc") or "not installed", "")]
    wrong = []
    for package, least in NEEDS.items():
        found = version(package)
        if found is None:
            rows.append((package, "missing", {"torch": "nothing runs", "triton": 'only backend="torch"'}[package]))
            if package == "torch":
                wrong.append("torch is not installed")
            continue
        parts = tuple(int(p) for p in found.split("+")[0].split(".")[:2])
        tested = found.split("+")[0] == TESTED[package]
        rows.append((package, found, "the tested version" if tested else f"tested with {TESTED[package]}"))
        if parts < least:
            wrong.append(f"{package} {found} is older than {'.'.join(map(str, least))}")
    rows.append(_gpu() if importlib.util.find_spec("torch") else ("gpu", "?", ""))
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    rows.append(("C++ compiler", compiler or "none", "only backend=\"torch.compile\" needs one"))
    return rows, wrong


def _gpu() -> tuple[str, str, str]:
    import torch

    if not torch.cuda.is_available():
        return ("gpu", "none", "backend=\"torch\" runs here; kernels compile offline and run in the interpreter")
    p: Any = torch.cuda.get_device_properties(0)
    arch = table_of_targets.arch_of(p)
    same = [t.name for t in table_of_targets.TARGETS.values() if t.arch == arch]
    return ("gpu", f"{p.name}, {arch}", f"limits as {', '.join(same)}" if same else "no table of limits for it yet")
