"""Every example's emitted kernels on a GPU: right against the step in fp64, and how fast.

    python benchmarks/gpu.py --emit DIR               where mixc is: modules and reference results into DIR
    python benchmarks/gpu.py --run DIR --out OUT      where a GPU is (torch, triton; neither mixc nor a network):
                                                      checks and times, table and OUT/gpu.json; under 8 minutes
    python benchmarks/gpu.py --run DIR --out OUT --dry-run    the smallest case interpreted on a CPU, no times

Exit status 1 if anything is further from the reference than its dtype allows, or was not run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = options.add_mutually_exclusive_group(required=True)
    what.add_argument("--emit", type=Path, metavar="DIR")
    what.add_argument("--run", type=Path, metavar="DIR")
    options.add_argument("--out", type=Path, default=Path("out"), help="folder of gpu.json and gpu.txt")
    options.add_argument("--only", metavar="NAME,…", help="these examples")
    options.add_argument("--dry-run", action="store_true", help="with --emit: only what a dry run needs")
    options.add_argument("--jobs", type=int, default=min(12, os.cpu_count() or 1), help="examples checked at a time")
    options.add_argument("--budget", type=float, default=450.0, help="seconds, after which nothing new is begun")
    given = options.parse_args()
    names = given.only.split(",") if given.only else None
    if given.emit:
        from gpu_cases import write

        write(given.emit, names, given.dry_run, lambda name: print(name, file=sys.stderr, flush=True))
        return
    sys.exit(run(given.run, given.out, names, given.dry_run, given.jobs, given.budget))


def run(root: Path, out: Path, names: list[str] | None, dry: bool, jobs: int, budget: float) -> int:
    """Checks side by side, then times one after another. Returns the exit status."""
    start = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    manifest = json.loads((root / "manifest.json").read_text())
    entries = [e for e in manifest["examples"] if names is None or e["name"] in names]
    todo = [e["name"] for e in entries if e["modules"]]
    report: dict[str, Any] = {"machine": machine(dry), "dry_run": dry,
                              "left_out": {e["name"]: e["left_out"] for e in entries if not e["modules"]}}
    report["checks"] = checks(root, out, todo, dry, jobs, start + budget * (10 if dry else 0.7))
    report["times"] = [] if dry else times(root, out, todo, start + budget)
    report["seconds"] = round(time.monotonic() - start, 1)
    (out / "gpu.json").write_text(json.dumps(report, indent=1))
    text = table(report)
    (out / "gpu.txt").write_text(text)
    print(text)
    return 0 if all(c["ok"] for c in report["checks"]) else 1


def machine(dry: bool) -> dict[str, str]:
    """What the figures belong to; read in a process of its own, so that this one holds no GPU memory."""
    code = ("import json, torch, triton, platform as p; c = torch.cuda; "
            "print(json.dumps(dict(python=p.python_version(), torch=torch.__version__, triton=triton.__version__, "
            "device=c.get_device_name() if c.is_available() else 'CPU, interpreted')))")
    found: dict[str, str] = json.loads(subprocess.run([sys.executable, "-c", code], check=True, text=True,
                                                      capture_output=True).stdout)
    if not dry and found["device"].startswith("CPU"):
        sys.exit("no GPU here; --dry-run interprets the smallest case on the CPU")
    return found


def worker(what: str, root: Path, out: Path, dry: bool, names: list[str]) -> subprocess.Popen[bytes]:
    """A process that does `names` and appends a line of JSON an example to `out`; what it says goes beside it."""
    environment = os.environ | ({"TRITON_INTERPRET": "1"} if dry else {})
    log = out.with_suffix(".log").open("ab")
    return subprocess.Popen([sys.executable, str(HERE / "gpu_check.py"), what, str(root), str(out),
                             "cpu" if dry else "cuda", "1" if dry else "0", *names],
                            env=environment, stdout=log, stderr=log)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(s) for s in path.read_text().splitlines() if s] if path.exists() else []


def checks(root: Path, out: Path, names: list[str], dry: bool, jobs: int, deadline: float) -> list[dict[str, Any]]:
    """A process an example, `jobs` at a time: a crash of one (an illegal access) is its own failure only."""
    (out / "checks").mkdir(exist_ok=True)
    paths = {n: out / "checks" / f"{n}.json" for n in names}
    for p in paths.values():
        p.unlink(missing_ok=True)
    waiting, running = list(names), {}
    failed: dict[str, str] = {}
    while waiting or running:
        while waiting and len(running) < jobs and time.monotonic() < deadline:
            name = waiting.pop(0)
            running[name] = worker("check", root, paths[name], dry, [name])
        time.sleep(0.05)
        late = time.monotonic() > deadline
        for name, process in list(running.items()):
            if process.poll() is not None or late:
                if process.poll() is None:
                    process.kill()
                    failed[name] = "out of time"
                elif process.returncode:
                    failed[name] = f"its process ended with {process.returncode}: see checks/{name}.log"
                del running[name]
                print(f"checked {name}", file=sys.stderr, flush=True)
        if late:
            failed |= dict.fromkeys(waiting, "not begun: out of time")
            waiting = []
    found = []
    for name in names:
        one = lines(paths[name])
        found.append(one[0] if one and name not in failed else
                     {"name": name, "ok": False, "rows": [], "text": failed.get(name, "no result")})
    return found


def times(root: Path, out: Path, names: list[str], deadline: float) -> list[dict[str, Any]]:
    """One process times all; if it dies it is started again behind the example that killed it."""
    path = out / "times.json"
    path.unlink(missing_ok=True)
    left = list(names)
    while left and time.monotonic() < deadline:
        process = worker("time", root, path, False, left)
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        if process.poll() is None:
            process.kill()
            break
        done = {r["name"] for r in lines(path)}
        rest = [n for n in left if n not in done]
        left = rest[1:] if process.returncode else rest
        if not process.returncode:
            break
    return lines(path)


# ---------------------------------------------------------------- what people read
def table(report: dict[str, Any]) -> str:
    rows = [f"{' '.join(f'{k} {v}' for k, v in report['machine'].items())}; {report['seconds']} s", "",
            f"{'example':28} {'checked':>7} {'worst value':>34} {'error':>8} {'bound':>8}"]
    for c in report["checks"]:
        worst = max(c["rows"], key=lambda r: r["error"] / max(r["bound"], 1e-30), default=None)
        if worst is None:
            rows.append(f"{c['name']:28} {'FAILED':>7} {c.get('text', '')}")
            continue
        verdict = str(len(c["rows"])) if c["ok"] else "FAILED"
        label = f"{worst['what']}, {worst['case']}, {worst['dtype']}"
        rows.append(f"{c['name']:28} {verdict:>7} {label:>34} {worst['error']:8.1e} {worst['bound']:8.1e}"
                    + (f"  {worst['text']}" if "text" in worst else ""))
    rows += [f"{name:28} no kernels: {why}" for name, why in report["left_out"].items()]
    if report["times"]:
        rows += ["", f"{'bf16, B=8 T=2048 H=16 or as JSON says':28} {'D':>4} {'':18} {'us':>8} {'GB/s of least':>14} "
                 f"{'peer us':>9} {'x peer':>7}  peer"]
    for t in report["times"]:
        if "raised" in t:
            rows.append(f"{t['name']:28} {t['size']:>4} {t['raised']}")
            continue
        peers = {label.rsplit(" ", 1)[0] for label in t["us"]} - {"mixc"}
        for what in ("forward", "forward+backward"):
            us = t["us"][f"mixc {what}"]
            line = f"{t['name']:28} {t['size']:>4} {what:18} {us:8.1f} {t['compulsory_bytes'][what] / us / 1e3:14.0f}"
            for peer in peers:
                other = t["us"][f"{peer} {what}"]
                line += f" {other:9.1f} {us / other:7.2f}  {peer}"
            rows.append(line)
    bad = [c["name"] for c in report["checks"] if not c["ok"]]
    rows += ["", f"{len(report['checks']) - len(bad)} of {len(report['checks'])} examples with kernels are right"
             + (f"; not: {', '.join(bad)}" if bad else "")]
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    main()
