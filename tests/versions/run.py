"""Emitted source of every example under each supported triton: `make test-versions` (minutes; needs the registry once).

    python tests/versions/run.py [--tritons 3.4.0,3.6.0,3.9.0] [--targets sm_80,sm_90,sm_100,gfx942] [--only NAME,…]

Each triton is unpacked beside the others in a cache folder and put in front of the installed one; what a call
would launch, forward and backward, is compiled by it without a GPU.  The newest compiles for all targets, the
others for sm_90.  Exit status 1 if a kernel is refused.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from gpu_cases import emitted  # noqa: E402

import mixc  # noqa: E402
from mixc.runtime.load import shipped  # noqa: E402


def unpacked(version: str, cache: Path) -> Path:
    """The folder of a triton, fetched once by pip."""
    folder = cache / f"triton-{version}"
    if not (folder / "triton").is_dir():
        subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder),
                        f"triton=={version}"], check=True)
    return folder


def under(triton: Path, files: tuple[Path, Path], kernels: Path) -> list[dict[str, object]]:
    """Each kernel and target of a module, compiled by this triton."""
    environment = os.environ | {"PYTHONPATH": str(triton), "TRITON_CACHE_DIR": str(kernels), "TRITON_INTERPRET": "0",
                                "PYTHONWARNINGS": "ignore"}
    done = subprocess.run([sys.executable, str(ROOT / "benchmarks" / "offline.py"), *map(str, files)], text=True,
                          capture_output=True, check=False, env=environment)
    found = [json.loads(s) for s in done.stdout.splitlines()]
    if done.returncode:
        found.append({"kernel": files[0].stem, "target": "-", "error": done.stderr.strip()[-600:]})
    return found


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--tritons", default="3.4.0,3.6.0,3.9.0")
    options.add_argument("--targets", default="sm_90,sm_80,sm_100,gfx942", help="the first one for every triton")
    options.add_argument("--only", default="", metavar="NAME,…", help="these examples")
    options.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "mixc-versions")
    options.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    given = options.parse_args()
    tritons, targets = given.tritons.split(","), given.targets.split(",")
    names = given.only.split(",") if given.only else list(shipped())
    newest = max(tritons, key=lambda v: [int(p) for p in v.split(".")])
    bad = done = 0
    with tempfile.TemporaryDirectory() as tmp, ThreadPoolExecutor(given.jobs) as pool:
        waiting = []
        for version in tritons:
            folder = unpacked(version, given.cache)
            for name in names:
                place, wanted = Path(tmp) / version, targets if version == newest else targets[:1]
                files = emitted(mixc.load(name), place / name, wanted)
                if files is not None:
                    waiting.append((version, name, pool.submit(under, folder, files, place / "kernels")))
        for version, name, job in waiting:
            results = job.result()
            wrong = [r for r in results if "error" in r]
            bad, done = bad + len(wrong), done + len(results)
            print(f"triton {version:6} {name:28} {len(results) - len(wrong):3} kernels accepted"
                  + (f", {len(wrong)} refused" if wrong else ""), flush=True)
            for r in wrong:
                print(f"    {r['kernel']} for {r['target']}: {r['error']}", flush=True)
    print(f"{done - bad} of {done} kernels accepted by triton {', '.join(tritons)}")
    return 1 if bad or not done else 0


if __name__ == "__main__":
    sys.exit(main())
