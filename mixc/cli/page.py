"""`mixc explain --html`: a mixer as one page that needs no network. Mathematics in MathML, pictures in SVG."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape
from itertools import groupby
from typing import Any

from mixc.autotune.closed import closed_forms, state_traffic, told
from mixc.autotune.token_cost import token_cost
from mixc.autotune.tuner import schedules_of
from mixc.cli.pictures import over_T, roofline
from mixc.codegen.apart import parts_at
from mixc.codegen.derivation import WORDS, Section, in_order, kernel_lines, of_run, of_step
from mixc.codegen.latex import aligned
from mixc.codegen.mathml import equations, name, written
from mixc.codegen.triton_program import whole_shape
from mixc.ir.program import Program
from mixc.passes.classify import classify, parts_of
from mixc.targets import Target

STYLE = """
:root{color-scheme:light dark;--line:#8886;--soft:#8881}
body{font:16px/1.55 system-ui,sans-serif;max-width:60rem;margin:0 auto;padding:1rem}
h1{font-size:1.6rem;margin-bottom:0}h2{font-size:1.2rem;margin-top:2.2rem;border-bottom:1px solid var(--line)}
pre,.math,.table{overflow-x:auto;background:var(--soft);padding:.6rem .8rem;border-radius:6px}
pre{font:13px/1.45 ui-monospace,monospace}code{font:.9em ui-monospace,monospace;overflow-wrap:anywhere}
math{font-family:"STIX Two Math","Latin Modern Math","Cambria Math",math;font-size:1.08rem}
.math math{display:block math;text-align:left;margin:.55rem 0;width:max-content}
table{border-collapse:collapse}td,th{padding:.2rem .7rem;text-align:left;vertical-align:top}
tr+tr td{border-top:1px solid var(--line)}
svg{width:100%;height:auto;max-width:44rem;font:12px system-ui,sans-serif;fill:currentColor}
.frame{fill:none;stroke:var(--line)}.grid{stroke:var(--line);stroke-width:.5}
.legend span{margin-right:1.2rem;display:inline-block}
.legend i{display:inline-block;width:.8em;height:.8em;margin-right:.4em}
details{margin:.6rem 0}summary{cursor:pointer}.note{opacity:.75;font-size:.92rem}
"""
NOTATION = ("Dims have names, and products go by name: what only one factor has is repeated along the other. "
            "A prime is what the next chunk (token) receives, a bar the derivative of the loss by a value. In a chunk "
            "row t reads and row s wrote; 𝟙 is 1 where its condition holds and 0 elsewhere. A superscript in brackets "
            "numbers values that are used more than once.")


def page(m: Any, target: Target, sizes: dict[str, int]) -> str:
    """HTML of one mixer. `sizes`: B, T, H and every dim, for the figures."""
    step: Program = m.declared
    parts = [f"<h1>{escape(m.__name__)}</h1>", f"<p>{escape(step.doc.strip())}</p>",
             f"<p class='note'>{escape(repr(m))}</p>", _section("The spec", f"<pre>{escape(m.text.strip())}</pre>"),
             f"<p class='note'>{NOTATION}</p>", *map(_told, of_step(step)),
             _listed([_prose(n.help) for n in m.notes if n.help])]
    emitted = m.as_emitted(sizes)
    programs = parts_at(emitted, target, whole_shape(emitted, sizes), "bf16")
    if len(programs) > 1 and not classify(step).parts:
        parts.append(_told(Section("What runs in which order", in_order(programs))))
    for p in programs:
        parts += [_told(Section(f"Part `{p.name}`", program=p))] if len(programs) > 1 else []
        parts += [*(_told(s) for s in of_run(p) if s.title != WORDS), *_kernels(p, target, sizes)]
    parts.append(_section("Time over T", _pictures(step, target, sizes)))
    body = "\n".join(parts)
    return ("<!doctype html>\n<html lang='en'><head><meta charset='utf-8'><meta name='viewport' "
            f"content='width=device-width,initial-scale=1'><title>{escape(m.__name__)}</title><style>{STYLE}</style></head>"
            f"<body>{body}</body></html>\n")


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def _math(lines: Iterable[str]) -> str:
    made = list(lines)
    source = f"<details><summary>LaTeX</summary><pre>{escape(aligned(made))}</pre></details>"
    return f"<div class='math'>{''.join(made)}</div>{source}"


def _listed(lines: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{line}</li>" for line in lines) + "</ul>"


def _told(s: Section) -> str:
    """A section of `explain`, its formulas as mathematics."""
    words = [(_listed if item else "<br>".join)(_prose(x.removeprefix("- ")) for x in lines)
             for item, lines in groupby(filter(None, s.words), lambda x: x.startswith("- "))]
    lines = [(f"<msub><mtext>{escape(kind)}</mtext>{name(state)}</msub>", value) for kind, state, value in s.terms]
    formulas = [] if s.program is None else written(s.program, lines) if lines else equations(s.program, s.adjoint)
    return _section(s.title, "".join(words) + (_math(formulas) if formulas else ""))


def _prose(text: str) -> str:
    """Words with code between backticks, and with stress."""
    return re.sub(r"\*\*(\w+)\*\*", r"<b>\1</b>", re.sub("`(.*?)`", r"<code>\1</code>", escape(text)))


def _kernels(step: Program, target: Target, sizes: dict[str, int]) -> list[str]:
    made = kernel_lines(step)
    if not made:
        return [_section("Kernels", "<p>None of its own step: it runs as a program of torch operations.</p>")]
    shown = [f"<details><summary><code>{k}</code></summary><pre>{escape(x)}</pre></details>"
             for k, (_, x) in made.items()]
    if not _modelled(step):
        return [_section("Kernels", "".join(shown))]
    forms = closed_forms(step, target)
    at = ", ".join(f"{n} = {s}" for n, s in sizes.items())
    text = [escape(line.strip(" -")).replace("**", "^").replace("`", "") for line in told(forms, step, sizes, target)]
    traffic = max((state_traffic(step, sizes, target, 32, f.split) for f in forms), default=0.0)
    more = f"<p>Its state does not stay on chip: {traffic / 1e6:.0f} MB of it a pass.</p>" if traffic else ""
    return [_section("Kernels", "".join(shown)),
            _section("Bytes and FLOPs", f"<p class='note'>16-bit tensors, a state kept every L rows; figures at {at}, "
                     f"C = 32, L = 64.</p>{_listed(text)}{more}")]


def _modelled(step: Program) -> bool:
    from mixc.codegen.triton_program import kernels

    return not any(kernels(p).by_rule for p in parts_of(step))


def _pictures(step: Program, target: Target, sizes: dict[str, int]) -> str:
    one = token_cost(step, sizes)
    lengths = [2 ** i for i in range(4, max(5, sizes["T"].bit_length() + 3))]
    B, H = sizes["B"], sizes["H"]
    lines: dict[str, list[tuple[float, float]]] = {
             "kernels, forward": [], "kernels, forward and backward": [],
             "decode, a launch a token": [(T, T * one.step_seconds(target, B, H)) for T in lengths],
             "eager loop, forward": [(T, T * one.eager_seconds(target, B, H)) for T in lengths]}
    points = []
    if kernel_lines(step) and _modelled(step):
        for T in sorted({*lengths, sizes["T"]}):
            schedules = schedules_of(step, target, sizes | {"T": T}, "bf16")
            made = [(s.module.name, n, c) for s in schedules for n, c in s.default()[1].items()]
            lines["kernels, forward"].append((T, sum(c.seconds for _, n, c in made if n.startswith("fwd"))))
            lines["kernels, forward and backward"].append((T, sum(c.seconds for *_, c in made)))
            if sizes["T"] == T:
                points = [(f"{part}, " * (len(schedules) > 1) + n.replace("fwd", "forward").replace(
                    "bwd", "backward").replace("_", ", "), c.flops / c.bytes, c.flops / c.seconds)
                    for part, n, c in made if c.flops]
    lines = {n: p for n, p in lines.items() if p}
    n = one.flops * B * H
    points += [("decode", one.flops / one.step_bytes, n / one.step_seconds(target, B, H)),
               ("eager loop", one.flops / one.eager_bytes, n / one.eager_seconds(target, B, H))]
    said = (f"<p class='note'>Modelled for {escape(target.title)}, not measured: kernels by the tuner's model; a "
            f"decode step moves its state in and out; the eager loop does {one.operations} operations a token, each "
            "started from the host. <code>mixc bench</code> measures on this machine.</p>")
    return said + over_T(lines) + "<h3>Under the roofline</h3>" + roofline(points, target)
