"""A new length compiles nothing, apart from the first use of each of at most three schedules."""

from __future__ import annotations

import inspect
from unittest.mock import patch

import pytest
import torch

import mixc
from mixc.codegen import offline, triton_program
from mixc.runtime import agree, compiled
from mixc.runtime.draw import draw

LENGTHS = range(2, 202, 4)  # fifty of them


@pytest.fixture(autouse=True)
def nothing_is_compiled():
    """What other tests have compiled is not found here."""
    compiled.compiled.known.clear()
    compiled._made.clear()
    triton_program._modules.clear()


def call(mixer, T, backend, **options):
    x = draw(mixer.declared, B=1, T=T, H=1, sizes={d.name: 3 for d in mixer.declared.dims}, seed=T)
    return agree.run(mixer, x, backend=backend, **options)


@pytest.mark.parametrize("name", ["simple_gla", "gated_delta_rule", "gla", "hgrn", "mlstm_stabilised", "mamba1"])
def test_torch(name):
    mixer, made = mixc.load(name), []

    def counted(*args, segment=compiled.segment, **options):
        made.append(args)
        return segment(*args, **options)
    with patch.object(compiled, "segment", counted):
        for T in (1, 64, 199):  # whole chunks, and one that is not, however few rows chunks have
            call(mixer, T, "torch")
        first = len(made)
        for T in LENGTHS:
            call(mixer, T, "torch")
    assert first and len(made) == first


class Launches:
    """Notes what Triton would specialise a kernel on, launch by launch, and runs nothing."""

    def __init__(self):
        self.keys: dict[str, set[tuple]] = {}

    def run(self, kernel, *args, grid, warmup, **named):
        given = dict(zip(kernel.arg_names, args, strict=False)) | named
        kinds, loose = inspect.get_annotations(kernel.fn), kernel.kwargs.get("do_not_specialize", ())
        key = tuple((n, self.of(x, "constexpr" in str(kinds.get(n, "")), n in loose)) for n, x in given.items())
        self.keys.setdefault(kernel.fn.__name__, set()).add(key)

    @staticmethod
    def of(x, fixed, loose):
        if isinstance(x, torch.Tensor):
            return str(x.dtype), x.data_ptr() % 16 == 0
        if fixed or x is None or not isinstance(x, int):
            return x if fixed else type(x).__name__
        return "int" if loose else (x == 1, x % 16 == 0)


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("name", ["simple_gla", "linear_attention_normalised", "hgrn"])
def test_triton(name, ragged):
    from triton.runtime.interpreter import InterpretedFunction

    mixer, seen, texts = mixc.load(name), Launches(), []

    def loaded(text, name, load=offline.load_text):
        texts.append(text)
        return load(text, name)
    with patch.object(InterpretedFunction, "run", lambda kernel, *args, **named: seen.run(kernel, *args, **named)), \
            patch.object(offline, "load_text", loaded):
        for T in (1, *LENGTHS):
            call(mixer, T, "triton", **({"cu_seqlens": torch.tensor([0, T // 2, T])} if ragged else {}))
    assert len(texts) == 1 and seen.keys
    assert all(len(keys) <= 3 for keys in seen.keys.values()), {n: len(k) for n, k in seen.keys.items()}
