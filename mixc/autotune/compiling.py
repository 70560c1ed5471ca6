"""Many kernels compiled at once for a GPU that need not be here, each with a time limit.

Workers are processes of this module: they import triton once, take a job a line, and give back a report a line. One
that is late is ended and another takes its place, so a kernel that takes minutes costs its limit and no more.
"""

from __future__ import annotations

import json
import os
import queue
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mixc.codegen.offline import Job, Report


class Failed(Exception):
    """Why a kernel was not compiled, in a line."""


class _Worker:
    """A process that compiles; started when first needed."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None

    def run(self, job: Job, limit: float) -> Report:
        """The report of one job.

        Raises:
            Failed: it does not compile, or took longer than `limit` seconds (the start of the process not counted)."""
        process = self.process or self._start()
        assert process.stdin and process.stdout
        try:
            process.stdin.write(json.dumps(asdict(job)) + "\n")
            process.stdin.flush()
            ready, _, _ = select.select([process.stdout], [], [], limit)
            line = process.stdout.readline() if ready else ""
        except OSError:
            ready, line = [process.stdout], ""
        if not line:
            self.stop()
            raise Failed("the compiler stopped" if ready else f"took longer than {limit:.0f} s")
        found = json.loads(line)
        if "error" in found:
            raise Failed(found["error"])
        return Report(**found)

    def _start(self) -> subprocess.Popen[str]:
        env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        root = str(Path(__file__).parents[2])
        env["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [env.get("PYTHONPATH")])])
        self.process = subprocess.Popen([sys.executable, "-m", "mixc.autotune.compiling"], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env)
        assert self.process.stdout
        self.process.stdout.readline()  # it says when it is ready
        return self.process

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def compile_all(jobs: Sequence[Job], workers: int, limit: float,
                advance: Callable[[str], None] = lambda label: None,
                until: float = float("inf")) -> Iterator[tuple[int, Report | Failed]]:
    """(number of the job, its report or why there is none), as they come; none is begun after `until`
    (by time.monotonic), and one that runs then is ended."""
    todo: queue.SimpleQueue[int] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[int, Report | Failed]] = queue.SimpleQueue()
    for i in range(len(jobs)):
        todo.put(i)

    def work() -> None:
        worker = _Worker()
        try:
            while True:
                i = todo.get_nowait()
                left = min(limit, until - time.monotonic())
                try:
                    if left <= 0:
                        raise Failed("no time was left")
                    done.put((i, worker.run(jobs[i], left)))
                except Failed as failed:
                    done.put((i, failed))
                except Exception as error:  # a worker that cannot start is no reason to wait for ever
                    done.put((i, Failed(f"{type(error).__name__}: {error}")))
        except queue.Empty:
            pass
        finally:
            worker.stop()

    for _ in range(min(workers, len(jobs))):
        threading.Thread(target=work, daemon=True).start()
    for _ in jobs:
        found = done.get()
        advance(f"{jobs[found[0]].kernel} {jobs[found[0]].label}")
        yield found


def _serve() -> None:
    """Take jobs from stdin until it ends."""
    answer = os.fdopen(os.dup(1), "w")  # what a compiler prints must not mix with reports
    os.dup2(2, 1)
    from mixc.codegen.offline import compile_job, load_path

    modules: dict[str, Any] = {}
    import triton  # noqa: F401

    answer.write("ready\n")
    answer.flush()
    for line in sys.stdin:
        job = Job(**json.loads(line))
        try:
            if job.path not in modules:
                modules[job.path] = load_path(Path(job.path))
            found: dict[str, Any] = asdict(compile_job(modules[job.path], job))
        except Exception as error:
            last = (str(error).strip().splitlines() or [""])[-1]
            found = {"error": f"{type(error).__name__}: {last}"[:300]}
        answer.write(json.dumps(found) + "\n")
        answer.flush()


if __name__ == "__main__":
    _serve()
