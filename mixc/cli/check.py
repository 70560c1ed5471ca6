"""`mixc check`: parse, type, classify; then every backend that can run here against the reference."""

from __future__ import annotations

import importlib.util
from dataclasses import asdict
from typing import Annotated, Any

import typer

from mixc.cli import output
from mixc.cli.output import Files, Json, Pick, ShapeText, screen
from mixc.errors import InputError, SpecError


def check(files: Files, shape: ShapeText = None, mixer: Pick = None,
          dtype: Annotated[str, typer.Option(help="of the inputs: fp32, fp64, bf16, fp16")] = "fp32",
          seed: Annotated[int, typer.Option(help="of the inputs drawn")] = 0, json_: Json = False) -> None:
    """Check specs: text, types, forms; then each backend against the reference, forward and backward."""
    output.prepare_triton()
    sizes, found, bad = output.shape(shape, B=2, T=37, H=2), [], False
    loaded: list[tuple[str, Any]] = []
    for file in files:
        try:
            loaded += [(file, m) for m in output.mixers(file, mixer)]
        except SpecError as error:  # the other files are still checked
            bad = True
            found.append({"file": file, "ok": False, "diagnostics": [output.as_json(d) for d in error.diagnostics]})
            if not json_:
                for d in error.diagnostics:
                    output.diagnostic(d)
    for file, m in loaded:
        report = _compare(m, sizes, output.dtype_of(dtype), seed) | _twin(m)
        bad = bad or not report["ok"]
        found.append({"file": file, **report})
        if not json_:
            _say(m, report)
    if json_:
        output.say_json({"ok": not bad, "mixers": found})
    if bad:
        raise typer.Exit(1)


def _say(m: Any, report: dict[str, Any]) -> None:
    for d in m.notes:
        output.diagnostic(d)
    screen.print(f"[bold]{m.__name__}[/]  " + ("[green]ok[/]" if report["ok"] else "[bold red]backends disagree[/]"))
    if m.form:
        output.table(["state", "form", "why"], [(s, f, m.why[s]) for s, f in m.form.items()])
    rows = [(c["backend"], c["case"], f["name"], f"{f['error']:.1e}", f"{f['bound']:.1e}", "" if f["ok"] else "too far")
            for c in report["cases"] for f in _worst(c["findings"])]
    if rows:
        output.table(["backend", "case", "worst", "error", "bound", ""], rows)
    for name, why in report["left_out"].items():
        screen.print(f"{name}: not compared: {why}", markup=False)
    if "same_as" in report:
        screen.print(f"this is the same function as `{report['same_as']}`, {report['matching']}", markup=False)
    screen.print()


def _twin(m: Any) -> dict[str, str]:
    """The shipped spec that is the same function, and which names of it are which here."""
    from mixc.hashing import shipped_twin

    found = shipped_twin(m)
    return {} if found is None else {"same_as": found[0], "matching": str(found[1])}


def _worst(findings: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All that are too far; else the one nearest to its bound."""
    wrong = [f for f in findings if not f["ok"]]
    return wrong or sorted(findings, key=lambda f: f["error"] / f["bound"])[-1:]


def _compare(m: Any, sizes: dict[str, int], dtype: Any, seed: int) -> dict[str, Any]:
    from mixc.runtime.agree import Plain, judge, run

    report: dict[str, Any] = {"mixer": m.__name__, "form": m.form, "why": m.why, "cases": [], "left_out": {},
                              "diagnostics": [output.as_json(d) for d in m.notes], "ok": True}
    backends = _backends()
    with output.progress(m.__name__, 3 * (1 + len(backends))) as advance:
        for case, tensors, options in _cases(m, sizes, dtype, seed):
            advance(f"{m.__name__}: reference, {case}")
            want = run(m, tensors, wide=True, **options)
            for backend in backends:
                advance(f"{m.__name__}: {backend}, {case}")
                if backend in report["left_out"]:
                    continue
                try:
                    got = run(m, tensors, backend=backend, **options)
                except (SpecError, InputError) as error:  # what this backend does not take, in fp64 say
                    report["left_out"][backend] = (error.diagnostics[0].message if isinstance(error, SpecError)
                                                   else str(error))
                    continue
                findings = judge(m.declared, got, want, dtype, lambda: run(Plain(m), tensors, **options))  # noqa: B023
                report["cases"].append({"backend": backend, "case": case,
                                        "findings": [{**asdict(f), "ok": f.ok} for f in findings]})
                report["ok"] = report["ok"] and all(f.ok for f in findings)
    return report


def _cases(m: Any, sizes: dict[str, int], dtype: Any, seed: int) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Dense; from the state that an earlier text left; ragged with an empty sequence."""
    import torch

    from mixc.runtime.agree import run
    from mixc.runtime.draw import draw

    B, T, H = sizes["B"], sizes["T"], sizes["H"]
    dims = output.dims(m, sizes)
    common = {"H": H, "sizes": dims, "dtype": dtype}
    dense = draw(m.declared, B=B, T=T, seed=seed, **common)
    before = draw(m.declared, B=B, T=5, seed=seed + 1, **common)
    state = run(m, before, grads=False).states
    ragged = draw(m.declared, B=1, T=T, seed=seed + 2, **common)
    ends = torch.tensor([0, T // 3, T // 3, T - 1, T])
    return [("dense", dense, {}), ("from a state", dense, {"initial_state": state or None}),
            ("ragged", ragged, {"cu_seqlens": ends})]


def _backends() -> list[str]:
    return ["torch", *(["triton"] if importlib.util.find_spec("triton") else [])]
