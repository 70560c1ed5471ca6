"""Tuning results on disk: one readable file a result, written whole or not at all.

The folder is MIXC_CACHE_DIR or the platform's cache folder. A file's name is a digest of its key, which the file
holds too, beside a digest of its content: what is truncated, foreign or stale is told from a result, taken
for none and said so by `mixc cache verify`. Writers take a lock (filelock) and replace a file in one step, so a
process that is killed leaves the old file or the new one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

FORM = "mixc tuning result 2"
LEFT, FOREIGN = "left behind by a writer that was stopped", "foreign"
Key = Mapping[str, Any]


def folder() -> Path:
    """Where results lie; nothing is created by asking."""
    given = os.environ.get("MIXC_CACHE_DIR")
    if given:
        return Path(given)
    from platformdirs import user_cache_path

    return user_cache_path("mixc", appauthor=False)


@cache
def versions() -> dict[str, str]:
    """Of what a result depends on. mixc's is its number and a digest of the sources that make kernels."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for part in ("passes", "codegen", "autotune", "ir"):
        for path in sorted((root / part).rglob("*.py")):
            digest.update(path.name.encode() + path.read_bytes())
    found = {"mixc": f"{_version('mixc')}+{digest.hexdigest()[:12]}", "triton": _version("triton")}
    return found


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def path_of(key: Key) -> Path:
    return folder() / "tune" / f"{digest(dict(key))[:32]}.json"


def get(key: Key) -> dict[str, Any] | None:
    """The result of a key, or None: there is none, or no whole one."""
    entry, _ = _read(path_of(key))
    return entry["value"] if entry is not None and entry["key"] == json.loads(json.dumps(dict(key))) else None


def put(key: Key, value: dict[str, Any]) -> Path | None:
    """Keep a result; where the folder cannot be written nothing is kept (None)."""
    from filelock import FileLock, Timeout

    path = path_of(key)
    body = {"key": dict(key), "value": value}
    # not sorted: dims are matched by their places
    text = json.dumps({"form": FORM, "digest": digest(body), **body}, indent=1)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.parent / ".lock", timeout=20):
            _replace(path, text)
    except (OSError, Timeout):
        return None
    return path


@contextlib.contextmanager
def alone(key: Key, seconds: float) -> Iterator[None]:
    """While one process makes the result of a key others wait, at most so long (without locks not at all)."""
    from filelock import FileLock

    path = folder() / "making" / f"{digest(dict(key))[:32]}.lock"
    lock = FileLock(path, timeout=seconds)
    with contextlib.suppress(OSError):  # Timeout is one
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _replace(path: Path, text: str) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".new-", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def _read(path: Path) -> tuple[dict[str, Any] | None, str]:
    """The entry of a file, or None and what is wrong with it."""
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        return None, str(error.strerror or error)
    except ValueError:
        return None, "no whole JSON: cut off, or another program's"
    if not isinstance(entry, dict) or entry.get("form") != FORM or not {"key", "value", "digest"} <= entry.keys():
        return None, "no tuning result"
    if not isinstance(entry["key"], dict) or not isinstance(entry["value"], dict):
        return None, "no tuning result"
    if entry["digest"] != digest({"key": entry["key"], "value": entry["value"]}):
        return None, "changed after it was written"
    if path != path.parent / f"{digest(entry['key'])[:32]}.json":
        return None, "the name belongs to another key"
    return entry, ""


@dataclass(frozen=True)
class Entry:
    """A file of the cache; `wrong` says why it counts as none, "" if it does count."""

    path: Path
    key: dict[str, Any]
    value: dict[str, Any]
    wrong: str

    @property
    def stale(self) -> bool:
        """Made by other versions than those here."""
        return not self.wrong and self.key.get("versions") != versions()


def entries() -> Iterator[Entry]:
    """Every file, whole or not, in order of names; leftovers of killed writers too."""
    home = folder() / "tune"
    if not home.is_dir():
        return
    for path in sorted(home.iterdir()):
        if path.name == ".lock":
            continue
        if path.suffix != ".json":
            yield Entry(path, {}, {}, LEFT if path.suffix == ".tmp" else FOREIGN)
            continue
        entry, wrong = _read(path)
        yield Entry(path, entry["key"] if entry else {}, entry["value"] if entry else {}, wrong)


def clear(only_broken: bool = False) -> int:
    """Remove results (or only what is none); the number of files removed. Other programs' files stay."""
    from filelock import FileLock

    home, removed = folder() / "tune", 0
    if not home.is_dir():
        return 0
    with FileLock(home / ".lock", timeout=20):
        for e in list(entries()):
            if e.wrong == FOREIGN or (only_broken and not (e.wrong or e.stale)):
                continue
            with contextlib.suppress(FileNotFoundError):
                e.path.unlink()
                removed += 1
    return removed
