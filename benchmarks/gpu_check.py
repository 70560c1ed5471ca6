"""One example's emitted modules checked and timed where only torch and triton are: the worker of `gpu.py --run`."""

from __future__ import annotations

import importlib.util
import json
import math
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

Tensor = torch.Tensor
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

INTERPRETED = 3.0  # Triton's interpreter cuts bf16 off where a GPU rounds: twice the error, all of one sign


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def to(x: Tensor, dtype: torch.dtype, device: str) -> Tensor:
    """x in `dtype` (complex values in at least complex64, counts as they are) on `device`."""
    if not (x.is_complex() or x.is_floating_point()):
        return x.to(device)
    return x.to(device, torch.promote_types(dtype, torch.complex64) if x.is_complex() else dtype)


def rms(x: Tensor) -> float:
    return float(x.abs().double().square().mean().sqrt()) if x.numel() else 0.0


def ratio(got: Tensor, want: Tensor, floor: float = 0.0) -> float:
    """RMS(got - want) / max(RMS(want), floor); inf where the shape differs, or one is finite and the other is not."""
    if got.shape != want.shape:
        return math.inf
    wide = torch.complex128 if want.is_complex() or got.is_complex() else torch.float64
    got, want = got.detach().to("cpu", wide), want.detach().to("cpu", wide)
    finite = torch.isfinite(want)
    if not torch.equal(finite, torch.isfinite(got)):
        return math.inf
    error, size = rms((got - want)[finite]), max(rms(want[finite]), floor)
    return 0.0 if error == 0 else math.inf if size == 0 else error / size


def outs_of(o: Any, names: list[str]) -> dict[str, Tensor]:
    return dict(zip(names, [o] if isinstance(o, Tensor) else list(o), strict=True))


# ---------------------------------------------------------------- small cases, against stored results
def check_case(module: ModuleType, entry: dict[str, Any], case: dict[str, Any], dtype: str, device: str
               ) -> list[dict[str, Any]]:
    """Outs, final states and all gradients of one case, each with its error and bound."""
    inputs = {n: to(x, DTYPES[dtype], device).requires_grad_() for n, x in case["inputs"].items()}
    before = case.get("initial_state")
    start = {n: to(x, torch.float32, device) for n, x in before.items()} if before else None
    smooth = {n: x.requires_grad_() for n, x in (start or {}).items() if n != "pos"}
    ragged = case.get("cu_seqlens")
    options = {} if ragged is None else {"cu_seqlens": ragged.to(device)}
    if case.get("reverse"):
        options["reverse"] = True
    o, state = getattr(module, entry["name"])(*inputs.values(), initial_state=start, output_final_state=True, **options)
    outs = outs_of(o, entry["outs"])
    roots = {n: x for n, x in (outs | state).items() if x.requires_grad}
    leaves = inputs | {f"{n}0": x for n, x in smooth.items()}
    pulled = torch.autograd.grad(list(roots.values()), list(leaves.values()),
                                 [case["cotangents"][f"d{n}"].to(x) for n, x in roots.items()], allow_unused=True)
    found = {"outs": outs, "states": state,
             "grads": {n: torch.zeros_like(x) if g is None else g
                       for (n, x), g in zip(leaves.items(), pulled, strict=True)}}
    rows = []
    for w in case["want"]:
        got = found[w["where"]].get(w["name"])
        error = math.inf if got is None else ratio(got, w["value"], w["floor"])
        label = {"outs": "", "states": "final ", "grads": "d"}[w["where"]] + w["name"]
        rows.append({"what": label, "error": error, "bound": w["bounds"][dtype], "ok": error <= w["bounds"][dtype]})
    return rows


def check_steps(module: ModuleType, entry: dict[str, Any], case: dict[str, Any], device: str) -> list[dict[str, Any]]:
    """Prefill, then two steps, against the last two rows of the whole sequence."""
    run, step = getattr(module, entry["name"]), getattr(module, entry["name"] + "_step")
    roles = {a["name"]: a["role"] for a in entry["args"]}
    inputs = {n: to(x, torch.float32, device) for n, x in case["inputs"].items()}
    T = case["shape"]["T"]

    def rows(pick: Any) -> list[Tensor]:
        return [x[:, pick] if roles[n] == "in" else x for n, x in inputs.items()]
    start = {n: to(x, torch.float32, device) for n, x in (case.get("initial_state") or {}).items()} or None
    with torch.no_grad():
        _, state = run(*rows(slice(0, T - 2)), initial_state=start, output_final_state=True)
        found = []
        for t in (T - 2, T - 1):
            o, state = step(state, *rows(t))
            found.append(outs_of(o, entry["outs"]))
    result = []
    for w in case["want"]:
        if w["where"] == "outs":
            got = torch.stack([f[w["name"]] for f in found], 1)
            error = ratio(got, w["value"][:, T - 2:], rms(w["value"]))
            bound = w["bounds"]["fp32"]
            result.append({"what": w["name"] + " by step", "error": error, "bound": bound, "ok": error <= bound})
    return result


# ---------------------------------------------------------------- the timed shape, against the loop
def drawn(arg: dict[str, Any], shape: dict[str, int], g: torch.Generator, device: str) -> Tensor:
    """Random numbers in the range of an argument, [B, T, H, dims...] or [H, dims...]."""
    lead = [shape["B"], shape["T"]] if arg["role"] == "in" else []
    size = [*lead, shape["H"], *(shape[d] for d in arg["dims"])]
    lim = arg["limits"]
    low, high = lim["low"], lim["high"]
    if arg["kind"] == "complex":
        x = torch.randn(size, generator=g, device=device, dtype=torch.complex64)
        return x / x.abs().clamp_min(1.0) * min((bound for over, bound, _ in lim["norms"] if not over), default=1.0)
    if low > -math.inf and high < math.inf:
        x = low + (high - low) * (0.01 + 0.98 * torch.rand(size, generator=g, device=device))
    else:
        x = torch.randn(size, generator=g, device=device)
        x = low + x.abs() if low > -math.inf else high - x.abs() if high < math.inf else x
        if low == -math.inf and high == math.inf and arg["dims"]:
            x = x / math.sqrt(math.prod(shape[d] for d in arg["dims"]))
    for i, (over, bound, _) in enumerate(lim["norms"]):
        axes = [len(size) - len(arg["dims"]) + arg["dims"].index(d) for d in over]
        factor = 0.99 * bound / torch.linalg.vector_norm(x, dim=axes, keepdim=True)
        x = x * (factor.clamp_max(1.0) if i else factor)  # the others hold too
    return x


def inputs_at(entry: dict[str, Any], shape: dict[str, int], device: str, fp32: tuple[str, ...] = ()
              ) -> dict[str, Tensor]:
    """bf16 inputs that need gradients; those named in `fp32` in fp32."""
    g = torch.Generator(device=device).manual_seed(0)
    found = {}
    for a in entry["args"]:
        x = drawn(a, shape, g, device)
        found[a["name"]] = to(x, torch.float32 if a["name"] in fp32 else torch.bfloat16, device).requires_grad_()
    return found


def check_long(module: ModuleType, entry: dict[str, Any], folder: Path, shape: dict[str, int], device: str,
               dtype: str) -> list[dict[str, Any]]:
    """A large shape, first and last sequence and head, against the loop in fp64 on the same device."""
    loop, stored = load(folder / entry["loop"]), torch.load(folder / "loop.pt", map_location=device)
    for n, x in stored["constants"].items():
        setattr(loop, n, x)
    x = inputs_at(entry, shape, device, tuple(a["name"] for a in entry["args"]) if dtype == "fp32" else ())
    roles = {a["name"]: a["role"] for a in entry["args"]}
    o, _ = getattr(module, entry["name"])(*x.values())
    outs = outs_of(o, entry["outs"])
    ends = {n: torch.randn_like(y) for n, y in outs.items()}
    torch.autograd.backward(list(outs.values()), list(ends.values()))
    worst: dict[str, float] = {}
    for b, h in ((0, 0), (shape["B"] - 1, shape["H"] - 1)):
        part = {n: t[b:b + 1, :, h:h + 1] if roles[n] == "in" else t[None, h:h + 1] for n, t in x.items()}
        exact = {n: to(t.detach(), torch.float64, device).requires_grad_() for n, t in part.items()}
        states = [s.expand(1, 1, *(shape[d] for d in dims)) for s, dims in zip(stored["starts"].values(),
                                                                               entry["state_dims"], strict=True)]
        want = dict(zip(entry["outs"], loop.loop(*exact.values(), *states), strict=True))
        torch.autograd.backward(list(want.values()), [ends[n][b:b + 1, :, h:h + 1].to(y) for n, y in want.items()])
        floor = 1e-4 * max(rms(t.grad) for t in exact.values() if t.grad is not None)
        pairs = [(n, outs[n][b:b + 1, :, h:h + 1], y, 0.0) for n, y in want.items()]
        pairs += [(f"d{n}", x[n].grad[b:b + 1, :, h:h + 1], t.grad, floor) for n, t in exact.items()
                  if roles[n] == "in" and t.grad is not None]
        for n, got, right, least in pairs:
            worst[n] = max(worst.get(n, 0.0), ratio(got, right, least))
    gates = {f"d{a['name']}" for a in entry["args"] if a["gate"]}
    bound = {n: 0.005 if n in outs else 0.02 if n in gates else 0.008 for n in worst}
    if dtype == "fp32":
        bound = dict.fromkeys(worst, 1e-4)  # no plain loop in fp32 is run here to say what rounding costs
    return [{"what": n, "error": e, "bound": bound[n], "ok": e <= bound[n]} for n, e in worst.items()]


# ---------------------------------------------------------------- all checks of one example
def check(root: Path, entry: dict[str, Any], device: str, tiny: bool) -> dict[str, Any]:
    """Every case in every dtype; what raises is a failed row and the next one still runs."""
    folder = root / entry["folder"]
    modules = {key: load(folder / file) for key, file in entry["modules"].items()}
    rows: list[dict[str, Any]] = []

    def record(title: str, dtype: str, run: Callable[[], list[dict[str, Any]]]) -> None:
        start = time.perf_counter()
        try:
            found = run()
        except Exception as error:
            traceback.print_exc()
            text = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:300]
            found = [{"what": "raised", "error": math.inf, "bound": 0.0, "ok": False, "text": text}]
        seconds = time.perf_counter() - start
        if tiny and dtype == "bf16":
            wide = [INTERPRETED * r["bound"] for r in found]
            found = [r | {"bound": b, "ok": r["error"] <= b} for r, b in zip(found, wide, strict=True)]
        rows.extend({"case": title, "dtype": dtype, "seconds": round(seconds, 2), **r} for r in found)

    for case in torch.load(folder / "cases.pt"):
        if tiny and case["title"] != "tiny":
            continue
        for dtype in ("fp32", "bf16"):
            module = modules[f"{dtype} {case['size']}"]
            record(case["title"], dtype, lambda: check_case(module, entry, case, dtype, device))  # noqa: B023
        if case.get("initial_state") is not None:
            record(case["title"], "fp32", lambda: check_steps(modules[f"fp32 {case['size']}"], entry, case, device))  # noqa: B023
    shape = entry["shapes"]["64"] if not tiny else entry["shapes"]["64"] | {"B": 1, "T": 33, "H": 1}
    dtype = "fp32" if tiny else "bf16"
    record("T={T} B={B} H={H}".format(**shape), dtype,
           lambda: check_long(modules[f"{dtype} 64"], entry, folder, shape, device, dtype))
    if device == "cuda":  # so that the timings, which run alone, find every kernel compiled
        for size in entry["shapes"]:
            record(f"D={size} as timed", "bf16", lambda: warm(modules[f"bf16 {size}"], entry, size))  # noqa: B023
    return {"name": entry["name"], "ok": all(r["ok"] for r in rows), "rows": rows}


def warm(module: ModuleType, entry: dict[str, Any], size: str) -> list[dict[str, Any]]:
    for run in programs(module, entry, entry["shapes"][size])[1].values():
        run()
    torch.cuda.synchronize()
    return []


# ---------------------------------------------------------------- times
def programs(module: ModuleType, entry: dict[str, Any], shape: dict[str, int]
             ) -> tuple[dict[str, Tensor], dict[str, Callable[[], Any]]]:
    """Inputs, and by label what is timed: ours, and the peer's where it can be imported."""
    from peers import PEERS

    peer = PEERS.get(entry["name"])
    x = inputs_at(entry, shape, "cuda", peer.fp32 if peer else ())
    if peer:
        peer.prepare(x)
    sides: dict[str, Callable[[], Any]] = {"mixc": lambda: getattr(module, entry["name"])(*x.values())[0]}
    function = peer.load() if peer else None
    if peer and function is not None:
        sides[peer.name] = lambda: peer.call(function, *x.values())
    runs: dict[str, Callable[[], Any]] = {}
    for label, side in sides.items():
        try:
            first = side()
        except Exception as error:  # another version of the peer, perhaps; ours must run
            if label == "mixc":
                raise
            print(f"{entry['name']}: {label} left out: {type(error).__name__}: {error}", file=sys.stderr)
            continue
        ends = [torch.randn_like(y) for y in ([first] if isinstance(first, Tensor) else first)]
        runs |= {f"{label} forward": _forward(side), f"{label} forward+backward": _both(side, x, ends)}
    return x, runs


def _forward(side: Callable[[], Any]) -> Callable[[], None]:
    def run() -> None:
        with torch.no_grad():
            side()
    return run


def _both(side: Callable[[], Any], x: dict[str, Tensor], ends: list[Tensor]) -> Callable[[], None]:
    def run() -> None:
        o = side()
        torch.autograd.grad([o] if isinstance(o, Tensor) else list(o), list(x.values()), ends, allow_unused=True)
    return run


def times(root: Path, entry: dict[str, Any], size: str, rounds: int = 30) -> dict[str, Any]:
    """Microseconds by label, medians of interleaved runs between CUDA events, the L2 cache flushed before each."""
    module = load(root / entry["folder"] / entry["modules"][f"bf16 {size}"])
    x, runs = programs(module, entry, entry["shapes"][size])
    flush = torch.empty(256 * 2**20, dtype=torch.int8, device="cuda")
    found: dict[str, list[float]] = {label: [] for label in runs}
    for i in range(rounds + 3):
        for label, run in runs.items():
            flush.zero_()
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in "be")
            begin.record()
            run()
            end.record()
            end.synchronize()
            if i >= 3:
                found[label].append(begin.elapsed_time(end) * 1e3)
    inputs = sum(t.numel() * t.element_size() for t in x.values())
    out = getattr(module, entry["name"])(*x.values())[0]
    outs = sum(t.numel() * t.element_size() for t in ([out] if isinstance(out, Tensor) else out))
    return {"name": entry["name"], "size": size, "shape": entry["shapes"][size],
            "compulsory_bytes": {"forward": inputs + outs, "forward+backward": 3 * inputs + 2 * outs},
            "us": {label: statistics.median(t) for label, t in found.items()},
            "fastest_us": {label: min(t) for label, t in found.items()}}


def main() -> None:
    """gpu_check.py check|time DIR OUT DEVICE TINY NAME…: a line of JSON an example, appended to OUT."""
    what, root, out, device, tiny, *names = sys.argv[1:]
    entries = {e["name"]: e for e in json.loads((Path(root) / "manifest.json").read_text())["examples"]}
    with open(out, "a", encoding="utf-8") as file:
        for name in names:
            entry = entries[name]
            if what == "check":
                found = [check(Path(root), entry, device, tiny == "1")]
            else:
                found = []
                for size in entry["shapes"]:
                    try:
                        found.append(times(Path(root), entry, size))
                    except Exception as error:
                        traceback.print_exc()
                        found.append({"name": name, "size": size, "raised": f"{type(error).__name__}: {error}"[:300]})
            for line in found:
                file.write(json.dumps(line) + "\n")
            file.flush()


if __name__ == "__main__":
    main()
