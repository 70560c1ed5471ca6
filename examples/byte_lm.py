"""A small byte-level language model around any mixer that takes q, k, v and a log decay g."""

from __future__ import annotations

import math
import random
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

import mixc

State = dict[str, Tensor] | None


class MixerLayer(nn.Module):
    """Projections around a mixer; `state` is what the tokens so far left."""

    def __init__(self, mixer: mixc.Mixer, width: int, heads: int):
        super().__init__()
        self.mixer, self.heads = mixer, heads
        self.qkv, self.gate = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, heads)
        self.norm, self.out = nn.RMSNorm(width // heads), nn.Linear(width, width, bias=False)
        nn.init.uniform_(self.gate.bias, 1.0, 5.0)  # decays from 0.73 to 0.99

    def _inputs(self, x: Tensor) -> list[Tensor]:
        q, k, v = (t.unflatten(-1, (self.heads, -1)) for t in self.qkv(x).chunk(3, -1))
        return [q, F.normalize(k, dim=-1), v, F.logsigmoid(self.gate(x))]

    def forward(self, x: Tensor, keep: bool = False) -> tuple[Tensor, State]:
        o, state = self.mixer(*self._inputs(x), output_final_state=keep)
        return self.out(self.norm(o).flatten(-2)), state

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        o, state = self.mixer.step(state, *self._inputs(x))
        return self.out(self.norm(o).flatten(-2)), state


class Block(nn.Module):
    def __init__(self, mixer: mixc.Mixer, width: int, heads: int):
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.mix = MixerLayer(mixer, width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 3 * width), nn.GELU(), nn.Linear(3 * width, width))

    def forward(self, x: Tensor, keep: bool = False) -> tuple[Tensor, State]:
        y, state = self.mix(self.norm1(x), keep)
        x = x + y
        return x + self.mlp(self.norm2(x)), state

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        y, state = self.mix.step(self.norm1(x), state)
        x = x + y
        return x + self.mlp(self.norm2(x)), state


class Model(nn.Module):
    """Logits of the next byte. Every byte is seen with the one before it, so that a gate can tell where words end."""

    def __init__(self, mixer: mixc.Mixer, width: int, heads: int, layers: int):
        super().__init__()
        self.embed, self.previous = nn.Embedding(256, width), nn.Embedding(256, width)
        self.blocks = nn.ModuleList(Block(mixer, width, heads) for _ in range(layers))
        self.norm, self.head = nn.RMSNorm(width), nn.Linear(width, 256, bias=False)

    def forward(self, text: Tensor, keep: bool = False) -> tuple[Tensor, list[State]]:
        """text [B, T] -> logits [B, T, 256], and the state of every block if it is to be kept."""
        x = self.embed(text) + self.previous(F.pad(text, (1, 0))[:, :-1])
        states = []
        for block in self.blocks:
            x, state = block(x, keep)
            states.append(state)
        return self.head(self.norm(x)), states

    def step(self, byte: Tensor, before: Tensor, states: list[State]) -> tuple[Tensor, list[State]]:
        """byte [B] -> logits [B, 256]: one token on."""
        x, new = self.embed(byte) + self.previous(before), []
        for block, state in zip(self.blocks, states, strict=True):
            x, state = block.step(x, state)
            new.append(state)
        return self.head(self.norm(x)), new


@dataclass
class Corpus:
    """Bytes of whole files; no file is in both parts."""

    train: Tensor
    held_out: Tensor

    @classmethod
    def of_standard_library(cls, limit: int, seed: int = 0) -> Corpus:
        folder = Path(sysconfig.get_paths()["stdlib"])
        files = sorted(p for p in folder.rglob("*.py") if "site-packages" not in p.parts and "test" not in p.parts)
        random.Random(seed).shuffle(files)
        texts, size = [], 0
        for p in files:
            texts.append(p.read_bytes())
            size += len(texts[-1])
            if size > limit:
                break
        cut = max(1, len(texts) // 12)
        held, rest = b"".join(texts[:cut]), b"".join(texts[cut:])
        return cls(*(torch.frombuffer(bytearray(t), dtype=torch.uint8).long() for t in (rest, held)))

    @property
    def unigram_bits(self) -> float:
        """Bits a byte on the held-out text by the byte frequencies of the training text."""
        p = (torch.bincount(self.train, minlength=256) + 1).double()
        return float(-(p / p.sum()).log2()[self.held_out].mean())

    def batch(self, size: int, length: int) -> Tensor:
        starts = torch.randint(len(self.train) - length - 1, (size, 1))
        return self.train[starts + torch.arange(length + 1)]


def loss_bits(model: Model, text: Tensor) -> Tensor:
    logits, _ = model(text[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten()) / math.log(2)


@torch.no_grad()
def held_out_bits(model: Model, corpus: Corpus, rows: int = 32, length: int = 512) -> float:
    n = min(rows, len(corpus.held_out) // (length + 1))
    return float(loss_bits(model, corpus.held_out[:n * (length + 1)].view(n, length + 1)))


def train(model: Model, corpus: Corpus, *, steps: int, seconds: float, batch: int, length: int, console: Console
          ) -> tuple[list[tuple[int, float]], list[tuple[int, float]]]:
    """Losses in bits a byte by step: of every training batch, and of the held-out text now and then.

    On a slow machine there are fewer steps than asked for, so that training takes about `seconds`."""
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.05)
    curve, held_out = [], [(0, held_out_bits(model, corpus))]
    begin, step = time.perf_counter(), 0
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("training", total=steps)
        while step < steps:
            step += 1
            if step % 20 == 0:
                pace = (time.perf_counter() - begin) / step
                steps = max(step, min(steps, int(seconds / pace)))
                bar.update(task, total=steps)
            for group in optimizer.param_groups:
                group["lr"] = 4e-3 * min(step / 30, 0.5 + 0.5 * math.cos(math.pi * step / (steps + 1)))
            loss = loss_bits(model, corpus.batch(batch, length))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            curve.append((step, loss.item()))
            if step % 50 == 0 or step == steps:
                held_out.append((step, held_out_bits(model, corpus)))
            bar.update(task, advance=1, description=f"{loss.item():.2f} bits, held out {held_out[-1][1]:.2f}")
    return curve, held_out


@torch.no_grad()
def generate(model: Model, prompt: Tensor, count: int, temperature: float = 0.7) -> tuple[Tensor, Tensor]:
    """The prompt with `count` bytes more, and the logits that every byte from the prompt's last on gave."""
    logits, states = model(prompt[None], keep=True)
    text, found = list(prompt), [logits[0, -1]]
    for _ in range(count):
        byte = torch.multinomial(F.softmax(found[-1] / temperature, -1), 1)
        logits, states = model.step(byte, text[-1][None], states)
        text.append(byte[0])
        found.append(logits[0])
    return torch.stack(text), torch.stack(found)


@torch.no_grad()
def parallel_equals_steps(model: Model, text: Tensor, logits: Tensor) -> float:
    """The largest difference between the logits of steps and those of the whole text at once."""
    whole, _ = model(text[None])
    return float((whole[0, -len(logits):] - logits).abs().max())
