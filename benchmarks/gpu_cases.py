"""What `gpu.py --emit DIR` writes: emitted modules and what they must give, for a machine without mixc.

    DIR/manifest.json     every example: its arguments with their ranges, its modules, or why it has none
    DIR/NAME/*.py         emitted modules by dtype and size; equal texts are one file
    DIR/NAME/cases.pt     inputs that bf16 holds exactly, cotangents, and what the step in fp64 makes of them
    DIR/NAME/loop.py      the step token by token in plain torch, for shapes too large to write down
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import mixc
from mixc.codegen.eager import loop_text
from mixc.errors import SpecError
from mixc.runtime.agree import BOUNDS, FLOOR, Plain, Run, cotangent, ratio, rms, run
from mixc.runtime.draw import dim_sizes, draw, is_gate, limits
from mixc.runtime.load import shipped

Tensor = torch.Tensor
DTYPES, SIZES = ("bf16", "fp32"), (64, 128)
ODD = (33, 20, 7, 5)

# Where every dim having the size asked for would be no use: what people run.
SHAPES: dict[str, dict[str, int]] = {
    "mamba1": dict(H=1, D=1024, N=16), "s4d_real": dict(H=1, D=1024, N=16), "s5": dict(H=1, D=1024, N=64),
    "lru": dict(H=1, D=1024, N=64), "lstm": dict(B=16, T=1024), "slstm": dict(B=16, T=1024),
    "gru": dict(B=16, T=1024), "elman": dict(B=16, T=1024), "short_conv": dict(W=4),
    "gated_deltaproduct": dict(N=2), "deltaproduct": dict(N=2), "gsa": dict(M=64), "abc": dict(M=64),
}
_SMALL = {"D": 64, "N": 16}  # in checks, for what SHAPES makes large


def dims(mixer: mixc.Mixer, size: int, cap: int | None = None) -> dict[str, int]:
    """A size for every dim: `size`, but what the spec fixes or SHAPES says (at most `cap`)."""
    own = {n: s for n, s in SHAPES.get(mixer.__name__, {}).items() if n not in ("B", "T", "H")}
    if cap is not None:
        own = {n: min(s, cap) for n, s in own.items()}
    names = [d.name for d in mixer.declared.dims]
    return dim_sizes(mixer.declared, {n: own.get(n, size) for n in names})


def target_shape(mixer: mixc.Mixer, size: int) -> dict[str, int]:
    """The shape that kernels are timed at: B=8 T=2048 H=16 unless SHAPES says otherwise."""
    own = SHAPES.get(mixer.__name__, {})
    return {n: own.get(n, s) for n, s in (("B", 8), ("T", 2048), ("H", 16))} | dims(mixer, size)


def write(folder: Path, names: list[str] | None, tiny: bool, say: Any) -> None:
    """Everything under `folder`; `tiny`: only the case that an interpreter can run."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for name in names or list(shipped()):
        say(name)
        entries.append(_example(folder / name, mixc.load(name), tiny))
    versions = {"mixc": importlib.metadata.version("mixc"), "torch": torch.__version__}
    manifest = versions | {"tiny": tiny, "examples": entries}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))


def arguments(mixer: mixc.Mixer) -> list[dict[str, Any]]:
    return [{"name": d.name, "role": d.role, "dims": d.dims, "kind": d.kind}
            for d in (*mixer.declared.ins, *mixer.declared.params)]


def emitted(mixer: mixc.Mixer, folder: Path, targets: list[str], dtype: str = "bf16", size: int = 64,
            device: str = "h100") -> tuple[Path, Path] | None:
    """The module of a mixer and the job that makes `offline.py` compile it: at the usual shape, short, and long with
    few heads; None where it has no kernels."""
    shape = target_shape(mixer, size)
    try:
        text = mixer.emit(target=device, shape=shape, dtype=dtype)
    except SpecError:
        return None
    job = {"name": mixer.__name__, "args": arguments(mixer), "dtype": dtype, "targets": targets,
           "states": {d.name: d.dims for d in mixer.declared.states},
           "shapes": [shape | {"B": 2, "H": 2}, shape | {"B": 2, "T": 8, "H": 2}, shape | {"B": 1, "T": 16384, "H": 1}]}
    folder.mkdir(parents=True, exist_ok=True)
    files = folder / f"{mixer.__name__}.py", folder / "job.json"
    files[0].write_text(text)
    files[1].write_text(json.dumps(job))
    return files


def _example(folder: Path, mixer: mixc.Mixer, tiny: bool) -> dict[str, Any]:
    name = mixer.__name__
    entry: dict[str, Any] = {"name": name, "folder": folder.name, "form": mixer.form, "modules": {}}
    folder.mkdir(exist_ok=True)
    try:
        for dtype in DTYPES:
            for size in SIZES[:1] if tiny else SIZES:
                text = mixer.emit(target="h100", shape=target_shape(mixer, size), dtype=dtype)
                path = folder / f"{name}_{hashlib.sha256(text.encode()).hexdigest()[:8]}.py"
                path.write_text(text)
                entry["modules"][f"{dtype} {size}"] = path.name
    except SpecError as error:
        return entry | {"left_out": error.diagnostics[0].message}
    sizes = dims(mixer, 64)
    p = mixer.declared
    ranges = {d.name: {"gate": is_gate(d), "limits": asdict(limits(d, sizes, {c.name: 0.0 for c in p.consts}))}
              for d in (*p.ins, *p.params)}
    entry["args"] = [a | ranges[a["name"]] for a in arguments(mixer)]
    entry["outs"], entry["states"] = [d.name for d in p.outs], [d.name for d in p.states]
    entry["state_dims"] = [d.dims for d in p.states]
    entry["shapes"] = {str(s): target_shape(mixer, s) for s in SIZES}
    torch.save([_case(mixer, **case) for case in _cases(mixer, tiny)], folder / "cases.pt")
    entry["loop"] = _loop(folder / "loop.py", mixer, entry["shapes"]["64"])
    return entry


def _cases(mixer: mixc.Mixer, tiny: bool) -> list[dict[str, Any]]:
    """Small, with a state before; the usual sizes; ragged with empties, grouped heads, reversed, odd sizes."""
    kept = {n: s for n, s in dims(mixer, 64).items() if n in mixer.unrolled}
    uneven = dim_sizes(mixer.declared, kept, (20, 7, 33, 4))  # some of one tile's least size, some of more
    small = dict(title="tiny", size=64, dims=uneven, B=2, T=21, H=2, before=True)
    if tiny:
        return [small]
    odd = dim_sizes(mixer.declared, kept, ODD)
    ragged = dict(title="ragged", size=64, dims=odd, B=1, T=133, H=4, grouped=True, reverse=True,
                  cu_seqlens=[0, 0, 17, 18, 82, 82, 133])
    return [small, dict(title="D=64", size=64, dims=dims(mixer, 64, 64), B=2, T=130, H=2, before=True), ragged,
            dict(title="D=128", size=128, dims=dims(mixer, 128, 128), B=1, T=70, H=2)]


def _case(mixer: mixc.Mixer, *, title: str, size: int, dims: dict[str, int], B: int, T: int, H: int,
          before: bool = False, grouped: bool = False, reverse: bool = False, cu_seqlens: list[int] | None = None
          ) -> dict[str, Any]:
    """Inputs and, from the step in fp64, outs, final states and gradients with the bound of each."""
    groups = {mixer.declared.ins[0].name: H // 2} if grouped else None
    given = draw(mixer.declared, B=B, T=T, H=H, sizes=dims, groups=groups, dtype=torch.bfloat16)
    given = {n: x.to(torch.complex64 if x.is_complex() else torch.float32) for n, x in given.items()}
    options: dict[str, Any] = {"reverse": reverse}
    if cu_seqlens is not None:
        options["cu_seqlens"] = torch.tensor(cu_seqlens)
    if before:
        first = draw(mixer.declared, B=B, T=7, H=H, sizes=dims, seed=1)
        options["initial_state"] = {n: x.detach() for n, x in run(mixer, first, grads=False).states.items()}
    want = run(mixer, given, wide=True, **options)
    loop = run(Plain(mixer), given, **options)
    ends = {f"d{n}": cotangent(x, 0, f"d{n}") for n, x in (want.outs | want.states).items()}
    return {"title": title, "size": size, "shape": {"B": B, "T": T, "H": H, **dims}, "inputs": given, **options,
            "cotangents": {n: _narrow(x) for n, x in ends.items()}, "want": _judged(mixer, want, loop)}


def _judged(mixer: mixc.Mixer, want: Run, loop: Run) -> list[dict[str, Any]]:
    """By value: what it must be, what its error is divided by at least, and the bounds by dtype."""
    kinds = {d.name: "gate" if is_gate(d) else "grad" for d in (*mixer.declared.ins, *mixer.declared.params)}
    floor = FLOOR * max((rms(g[torch.isfinite(g)]) for g in want.grads.values()), default=0.0)
    found = []
    for where, least in (("outs", 0.0), ("states", 0.0), ("grads", floor)):
        for n, right in getattr(want, where).items():
            kind = "out" if where != "grads" else kinds.get(n, "grad")
            plain = 4 * ratio(getattr(loop, where)[n], right, least)
            bounds = {"fp32": max(BOUNDS[torch.float32][kind], plain), "bf16": BOUNDS[torch.bfloat16][kind]}
            found.append({"where": where, "name": n, "value": _narrow(right), "floor": least, "bounds": bounds})
    return found


def _narrow(x: Tensor) -> Tensor:
    return x.detach().to(torch.complex64 if x.is_complex() else torch.float32)


def _loop(path: Path, mixer: mixc.Mixer, shape: dict[str, int]) -> str:
    """The step as a loop in fp64 that needs torch only."""
    sizes = {n: s for n, s in shape.items() if n not in ("B", "T", "H")}
    program, consts = mixer.specialise(sizes, {})
    text, constants, starts = loop_text(program, sizes, consts, torch.float64)
    torch.save({"constants": constants, "starts": starts}, path.with_suffix(".pt"))
    path.write_text("\n".join([f'"""The step of {mixer.__name__}, token by token."""', "import torch",
                               "import torch.nn.functional as F", "", "REAL = torch.float64", "", "", text]))
    return path.name
