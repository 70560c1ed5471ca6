"""Results on disk: written whole, told apart from anything else, by many processes at once."""

from __future__ import annotations

import json
import multiprocessing
import random
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mixc.autotune import cache
from mixc.cli.cache import app

KEY = {"mixer": "gla", "target": "h100", "dtype": "bf16", "bucket": "long", "versions": {"mixc": "1", "triton": "2"}}

FORK = multiprocessing.get_context("fork")  # torch is there already; a fresh process would spend seconds on it


def write(count: int) -> None:
    for i in range(count):
        key = {"n": i % 7}
        found = cache.get(key)
        if found is not None and (found["n"] != i % 7 or set(found["pad"]) != {"x"}):
            raise SystemExit(3)
        if cache.put(key, {"n": i % 7, "pad": "x" * 20_000}) is None:
            raise SystemExit(4)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MIXC_CACHE_DIR", str(tmp_path))
    return tmp_path


def test_kept_and_found_by_the_whole_key() -> None:
    assert cache.get(KEY) is None
    cache.put(KEY, {"segment": 64})
    assert cache.get(KEY) == {"segment": 64}
    assert cache.get(KEY | {"target": "a100"}) is None
    cache.put(KEY, {"segment": 128})
    assert cache.get(KEY) == {"segment": 128}
    assert len(list(cache.entries())) == 1


def test_the_folder_is_the_platforms_unless_told(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    assert cache.folder() == home
    monkeypatch.delenv("MIXC_CACHE_DIR")
    assert cache.folder().name == "mixc"


@pytest.mark.parametrize("spoil", ["cut", "empty", "changed", "foreign", "bytes", "list", "renamed"])
def test_a_spoilt_file_is_no_result(spoil: str) -> None:
    path = cache.put(KEY, {"segment": 64})
    assert path
    text = path.read_text()
    new = {"cut": text[: len(text) // 2], "empty": "", "changed": text.replace("64", "32"), "foreign": '{"a": 1}',
           "list": "[1]"}.get(spoil)
    if new is not None:
        path.write_text(new)
    elif spoil == "bytes":
        path.write_bytes(b"\xff\xfe\x00")
    else:  # a good file under the name of another key
        other = cache.path_of(KEY | {"target": "a100"})
        path.rename(other)
        assert cache.get(KEY | {"target": "a100"}) is None
    assert cache.get(KEY) is None
    assert [e.wrong != "" for e in cache.entries()] == [True]
    cache.put(KEY, {"segment": 64})
    assert cache.get(KEY) == {"segment": 64}


def test_eight_processes_at_once(home: Path) -> None:
    running = [FORK.Process(target=write, args=(14,)) for _ in range(8)]
    for p in running:
        p.start()
    for p in running:
        p.join(120)
        assert p.exitcode == 0
    assert sorted(e.wrong for e in cache.entries()) == [""] * 7


def test_a_killed_writer_leaves_the_old_or_the_new(home: Path) -> None:
    cache.put({"n": 0}, {"n": 0, "pad": "x"})
    rng = random.Random(0)
    for _ in range(6):
        p = FORK.Process(target=write, args=(100_000,))
        p.start()
        deadline = time.monotonic() + 60
        while len(list((home / "tune").glob("*.json"))) < 7 and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(rng.random() * 0.2)
        p.kill()
        p.join()
        for i in range(7):
            found = cache.get({"n": i})
            assert found is not None and found["n"] == i and set(found["pad"]) == {"x"}
        assert cache.put({"n": 1}, {"n": 1, "pad": "x"})  # the lock of the dead is free
    assert {e.wrong for e in cache.entries()} <= {"", "left behind by a writer that was stopped"}


def test_where_nothing_can_be_written_nothing_is_kept(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    (home / "file").write_text("")
    monkeypatch.setenv("MIXC_CACHE_DIR", str(home / "file"))
    assert cache.put(KEY, {"segment": 64}) is None
    assert cache.get(KEY) is None and cache.clear() == 0


def test_commands(home: Path) -> None:
    run = CliRunner()
    path = cache.put(KEY | {"versions": cache.versions()}, {"segment": 64})
    cache.put(KEY, {"segment": 32})
    assert path
    listed = json.loads(run.invoke(app, ["ls", "--json"]).stdout)
    assert sorted(e["state"] for e in listed["entries"]) == ["good", "of other versions"]
    assert run.invoke(app, ["verify"]).exit_code == 0
    path.with_name("0" * 32 + ".json").write_text("{")
    (home / "tune" / "notes.txt").write_text("mine")
    assert run.invoke(app, ["verify"]).exit_code == 1
    assert json.loads(run.invoke(app, ["clear", "--broken", "--json"]).stdout) == {"removed": 2}
    assert json.loads(run.invoke(app, ["clear", "--json"]).stdout) == {"removed": 1}
    assert (home / "tune" / "notes.txt").exists()
