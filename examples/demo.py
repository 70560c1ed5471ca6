"""`make demo`: from a spec to a trained language model, in under four minutes on two cores.

1. compile a shipped spec, check it against its meaning, write its kernels, time it;
2. train a byte-level language model on the Python standard library's own sources;
3. generate with one `step` a token, and show that this gives what the whole sequence gives.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from byte_lm import Corpus, Model, generate, parallel_equals_steps, train
from matplotlib.figure import Figure
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

import mixc
from mixc.cli.bench import measure
from mixc.runtime.agree import judge, run
from mixc.runtime.draw import draw
from mixc.runtime.load import shipped

say = Console(highlight=False)


def compile_and_check(name: str, out: Path) -> mixc.Mixer:
    path = shipped()[name]
    say.print(Panel(escape(path.read_text().strip()), title=f"examples/{path.name}", expand=False))
    mixer = mixc.load(name)
    for state, form in mixer.form.items():
        say.print(f"{state}: [bold]{form}[/], {mixer.why[state]}")

    tensors = draw(mixer.declared, B=2, T=130, H=2, sizes={"K": 16, "V": 16})
    got, want = run(mixer, tensors, backend="torch"), run(mixer, tensors, wide=True)
    findings = judge(mixer.declared, got, want, torch.float32)
    worst = max(findings, key=lambda f: f.error)
    assert all(f.ok for f in findings), "; ".join(map(str, findings))
    say.print(f"agrees with the fp64 step, forward and backward: worst relative error {worst.error:.1e} ({worst.name})")

    target = out / f"{name}.py"
    target.write_text(mixer.emit(target="h100", shape={"B": 8, "T": 4096, "H": 16, "K": 64, "V": 64}, dtype="bf16"))
    say.print(f"kernels for an H100, forward and backward: [bold]{target}[/]\n")
    return mixer


def time_it(mixer: mixc.Mixer) -> None:
    report = measure(mixer, {"B": 2, "T": 1024, "H": 4}, torch.float32, "cpu", repeat=3)
    table = Table(title="B=2 T=1024 H=4 K=V=64, fp32, " + report["machine"], title_justify="left")
    for column in ("", "eager token loop", "mixc", "times faster"):
        table.add_column(column, justify="left" if not column else "right")
    for r in report["rows"]:
        eager, ours = r["eager_ms"], r["mixc_ms"]
        table.add_row(r["what"], f"{eager:.1f} ms", f"{ours:.1f} ms", f"{eager / ours:.1f}")
    say.print(table)


def picture(curve: list[tuple[int, float]], held_out: list[tuple[int, float]], unigram: float, title: str, path: Path
            ) -> None:
    """The loss of every batch, faint; its running mean; what was held out; the entropy of single bytes."""
    fig = Figure(figsize=(7, 4), layout="constrained")
    ax = fig.subplots()
    steps, losses = zip(*curve, strict=True)
    smooth, mean = [], losses[0]
    for loss in losses:
        mean += 0.1 * (loss - mean)
        smooth.append(mean)
    ax.plot(steps, losses, lw=0.6, alpha=0.35, color="C0")
    ax.plot(steps, smooth, lw=1.5, color="C0", label="training, running mean")
    ax.plot(*zip(*held_out, strict=True), "o-", ms=4, color="C1", label="held out")
    ax.annotate(f"{held_out[-1][1]:.2f}", held_out[-1], textcoords="offset points", xytext=(6, -3), color="C1")
    ax.axhline(unigram, ls="--", lw=1, color="grey")
    ax.annotate(f"unigram entropy {unigram:.2f}", (steps[-1], unigram), textcoords="offset points", xytext=(0, 4),
                color="grey", ha="right")
    ax.set(xlabel="step", ylabel="bits per byte", title=title, ylim=(0, 8.5), xlim=(0, steps[-1] * 1.08))
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.grid(alpha=0.25)
    ax.legend(frameon=False)
    fig.savefig(path, dpi=150)


def as_text(data: torch.Tensor) -> str:
    return bytes(data.tolist()).decode("utf-8", "replace")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    options.add_argument("--spec", default="simple_gla", help="a shipped spec with arguments q, k, v, g")
    options.add_argument("--steps", type=int, default=600)
    options.add_argument("--seconds", type=float, default=100.0, help="for training, about")
    options.add_argument("--out", type=Path, default=Path("out"))
    given = options.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    start = time.perf_counter()

    mixer = compile_and_check(given.spec, given.out)
    time_it(mixer)

    corpus = Corpus.of_standard_library(limit=8_000_000)
    model = Model(mixer, width=128, heads=4, layers=2)
    size = sum(p.numel() for p in model.parameters())
    say.print(f"\ntraining {size:,} parameters on {len(corpus.train):,} bytes of Python's standard library; "
              f"{len(corpus.held_out):,} bytes of other files are held out")
    curve, held_out = train(model, corpus, steps=given.steps, seconds=given.seconds, batch=16, length=256, console=say)
    title = f"{given.spec}: {size:,} parameters, Python's standard library byte by byte"
    picture(curve, held_out, corpus.unigram_bits, title, given.out / "demo_loss.png")
    final = held_out[-1][1]
    say.print(f"held-out loss [bold]{final:.2f}[/] bits a byte; unigram entropy {corpus.unigram_bits:.2f}; "
              f"curve in [bold]{given.out / 'demo_loss.png'}[/]")

    prompt = corpus.held_out[:200]
    text, logits = generate(model, prompt, 120)
    shown = Text(as_text(text[len(prompt) - 80:len(prompt)]), style="dim")
    shown.append(as_text(text[len(prompt):]), style="bold")
    say.print(Panel(shown, title="the end of a held-out prompt, and (bold) what the model makes of it", expand=False))
    error = parallel_equals_steps(model, text, logits)
    say.print(f"logits by prefill and one step a token, and of the whole sequence at once: they differ by {error:.1e}")
    assert error < 1e-3, "decode and parallel form disagree"
    say.print(f"done in {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
