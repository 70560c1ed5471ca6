"""Expressions to nodes: names, operators and functions of the language, each checked where it stands.

A value that could not be formed is POISON: what uses it says nothing more, so independent errors are
reported together and none twice.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from mixc.errors import Span
from mixc.spec.syntax import Attribute, Binary, Call, Compare, Expr, Index, Name, Num, Slice, Unary
from mixc.ir.node import Node, make, number, postorder

if TYPE_CHECKING:
    from mixc.spec.check import Elaborator

POISON = None
Value = Node | None

UNARY = ("exp log log1p expm1 sqrt rsqrt square abs sign sin cos tanh sigmoid logsigmoid softplus relu silu gelu elu "
         "real imag conj stop_gradient").split()
REAL_ONLY = set("maximum minimum logaddexp clamp log1p rsqrt logsigmoid softplus relu silu gelu elu".split())
OTHERS = {"maximum": 2, "minimum": 2, "logaddexp": 2, "clamp": 3, "where": 3}
REDUCTIONS = ("sum", "mean", "max", "min", "norm", "softmax")
FUNCTIONS = {*UNARY, *OTHERS, *REDUCTIONS, "lag", "grad", "index"}
CONSTANTS = {"inf": math.inf, "pi": math.pi}
_ARITHMETIC = {"+": "add", "-": "sub", "*": "mul", "/": "div"}


class Expressions:
    """Turns syntax into nodes under the names of an Elaborator."""

    def __init__(self, scope: Elaborator):
        self.scope = scope
        self.error: Callable[..., None] = scope.error

    def __call__(self, e: Expr) -> Value:
        return getattr(self, f"_{type(e).__name__.lower()}")(e)  # type: ignore[no-any-return]

    def real(self, e: Expr) -> Value:
        """A number (a condition counts as 1 or 0)."""
        x = self(e)
        return make("to_number", x, span=e.span) if x is not None and x.kind == "bool" else x

    # ------------------------------------------------------------ leaves
    def _num(self, e: Num) -> Value:
        return number(e.value)

    def _name(self, e: Name) -> Value:
        found = self.scope.lookup(e)
        if found is not None:
            return found
        if e.id in self.scope.poisoned:
            return POISON
        if e.id in FUNCTIONS:
            self.error("MX204", f"`{e.id}` is a function and needs its arguments", e.span)
        elif e.id in self.scope.out_names:
            self.error("MX205", f"`{e.id}` is an out and cannot be read", e.span,
                       f"give the value a name first: `{e.id}_ = ...`, then `out {e.id} = {e.id}_`")
        else:
            near = difflib.get_close_matches(e.id, [*self.scope.names(), *FUNCTIONS, *CONSTANTS], 1)
            self.error("MX201", f"`{e.id}` is not defined", e.span, f"did you mean `{near[0]}`?" if near else
                       "declare it with `in`, `param`, `const` or `state`, or assign it above this line")
        return POISON

    def _slice(self, e: Slice) -> Value:
        self.error("MX104", "slices are not in the language", e.span,
                   "dims have names: write the whole value, or `x[n]` in a `for n in N`")
        return POISON

    def _attribute(self, e: Attribute) -> Value:
        if isinstance(e.base, Name) and e.base.id in ("torch", "np", "math", "F", "nn"):
            self.error("MX105", f"`{e.base.id}.{e.name}` is no function of the language", e.span,
                       f"write `{e.name}(x)`" if e.name in FUNCTIONS else "the functions are listed in the language reference")
        elif e.name in ("T", "mT", "H"):
            self.error("MX106", "there is no transpose: dims have names", e.span,
                       "write `q @ S`: it sums over the dims that both have, in either order")
        else:
            self.error("MX107", f"`.{e.name}` is no attribute of a value", e.span,
                       f"write `{e.name}[K](x)`" if e.name in REDUCTIONS else f"write `{e.name}(x)`")
        return POISON

    # ------------------------------------------------------------ operators
    def _unary(self, e: Unary) -> Value:
        x = self(e.x)
        if x is None:
            return POISON
        if e.op == "not":
            return self._condition(x, e.x) and make("not", x, span=e.span)
        x = make("to_number", x) if x.kind == "bool" else x
        if x.op == "number" and e.op == "-":
            return number(-x.attr("value"))
        return x if e.op == "+" else make("neg", x, span=e.span)

    def _condition(self, x: Node, e: Expr) -> Value:
        if x.kind != "bool":
            self.error("MX206", "a condition was expected, this is a number", e.span, "compare it: `x > 0`")
            return POISON
        return x

    def _binary(self, e: Binary) -> Value:
        a, b = self(e.a), self(e.b)
        if a is None or b is None:
            return POISON
        if e.op in ("and", "or"):
            if self._condition(a, e.a) is None or self._condition(b, e.b) is None:
                return POISON
            return make(e.op, a, b, span=e.span)
        a, b = (make("to_number", x) if x.kind == "bool" else x for x in (a, b))
        if e.op in _ARITHMETIC:
            return make(_ARITHMETIC[e.op], a, b, span=e.span)
        if e.op == "@":
            return self._contraction(e, a, b)
        if e.op == "**":
            return self._power(e, a, b)
        for x, at in ((a, e.a), (b, e.b)):
            if any(n.op in ("in", "param", "state", "lag", "window") for n in postorder([x])):
                self.error("MX207", f"`{e.op}` works on pos, index, loop indices and numbers only", at.span)
                return POISON
        return make("mod" if e.op == "%" else "floordiv", a, b, span=e.span)

    def _contraction(self, e: Binary, a: Node, b: Node) -> Value:
        shared = [d for d in a.dims if d in b.dims]
        if not shared:
            words = [self.scope.words(x) for x in (e.a, e.b)]
            self.error("MX203", f"`{self.scope.text(e.span)}` shares no dim: {words[0]} is [{', '.join(a.dims)}], "
                       f"{words[1]} is [{', '.join(b.dims)}]", e.span, self.scope.suggest_dims(e, a, b))
            return POISON
        out = tuple(d for d in (*a.dims, *b.dims) if d not in shared)
        return make("contract", a, b, span=e.span, out=out)

    def _power(self, e: Binary, a: Node, b: Node) -> Value:
        n = self.scope.whole(b)
        if n is not None:
            return make("ipow", a, span=e.span, n=n)
        if a.kind == "complex" or b.kind == "complex":
            self.error("MX208", "a complex value takes an integer exponent only", e.span)
            return POISON
        return make("pow", a, b, span=e.span)

    def _compare(self, e: Compare) -> Value:
        items = [self.real(x) for x in e.items]
        out: Value = None
        for op, a, b in zip(e.ops, items, items[1:], strict=False):
            if a is None or b is None:
                return POISON
            if "complex" in (a.kind, b.kind) and op not in ("==", "!="):
                self.error("MX209", "complex values have no order", e.span, "compare `abs(x)` or `real(x)`")
                return POISON
            if op in (">", ">="):
                a, b = b, a
            name = {"<": "lt", ">": "lt", "<=": "le", ">=": "le", "==": "eq", "!=": "ne"}[op]
            node = make(name, a, b, span=e.span)
            out = node if out is None else make("and", out, node, span=e.span)
        return out

    # ------------------------------------------------------------ x[...]
    def _index(self, e: Index) -> Value:
        if isinstance(e.base, Name) and e.base.id in FUNCTIONS and self.scope.lookup(e.base) is None:
            if e.base.id == "index":
                return self._index_of(e)
            self.error("MX204", f"`{e.base.id}[...]` needs its argument: `{e.base.id}[K](x)`", e.span)
            return POISON
        if any(isinstance(x, Slice) for x in e.entries):
            return self._slice(next(x for x in e.entries if isinstance(x, Slice)))
        x = self(e.base)
        if x is None:
            return POISON
        loops = [x for x in e.entries if isinstance(x, Name) and x.id in self.scope.loops]
        names = [x for x in e.entries if x not in loops]
        for entry in loops:
            assert isinstance(entry, Name)
            dim, i = self.scope.loops[entry.id]
            if dim not in x.dims:
                self.error("MX210", f"{self.scope.words(e.base)} has no dim {dim} to pick `{entry.id}` from", entry.span)
                return POISON
            x = make("pick", x, span=e.span, dim=dim, i=i)
        return self._renamed(e, x, names) if names else x

    def _renamed(self, e: Index, x: Node, names: list[Expr]) -> Value:
        if not all(isinstance(n, Name) and n.id in self.scope.dims for n in names):
            bad = next(n for n in names if not (isinstance(n, Name) and n.id in self.scope.dims))
            self.error("MX211", f"`{self.scope.text(bad.span)}` is no dim and no loop index", bad.span,
                       "entries of `x[...]` are loop indices, or new names for all its dims")
            return POISON
        have = self.scope.declared_order(x)
        new = [n.id for n in names if isinstance(n, Name)]
        if len(new) != len(have):
            self.error("MX212", f"{self.scope.words(e.base)} is [{', '.join(have)}]: {len(have)} names were expected, "
                       f"{len(new)} came", e.span)
            return POISON
        for a, b in zip(have, new, strict=True):
            if self.scope.root(a) != self.scope.root(b):
                self.error("MX213", f"{a} and {b} are not declared of one size", e.span,
                           f"declare it in the header: `{b} = {a}`")
                return POISON
        if len(set(new)) != len(new):
            self.error("MX214", "a dim cannot stand twice", e.span)
            return POISON
        pairs = tuple((a, b) for a, b in zip(have, new, strict=True) if a != b)
        return make("rename", x, span=e.span, to=pairs) if pairs else x

    def _index_of(self, e: Index) -> Value:
        dims = self._dims(e.entries)
        if dims is None:
            return POISON
        if len(dims) != 1:
            self.error("MX215", "`index[K]` takes one dim", e.span)
            return POISON
        return make("index", dims=dims)

    def _dims(self, entries: tuple[Expr, ...]) -> tuple[str, ...] | None:
        for x in entries:
            if not isinstance(x, Name) or x.id not in self.scope.dims:
                self.error("MX216", f"`{self.scope.text(x.span)}` is no dim of this mixer", x.span,
                           f"its dims are {', '.join(self.scope.dims)}")
                return None
        return tuple(x.id for x in entries if isinstance(x, Name))

    # ------------------------------------------------------------ calls
    def _call(self, e: Call) -> Value:
        name, dims = e.fn, None
        if isinstance(name, Index):
            name, entries = name.base, name.entries
            if isinstance(name, Name) and name.id == "grad":
                return self._grad(e, entries)
            dims = self._dims(entries)
            if dims is None:
                return POISON
        if isinstance(name, Attribute):
            return self._attribute(name)
        if not isinstance(name, Name) or name.id not in FUNCTIONS:
            what = self.scope.text(name.span)
            near = difflib.get_close_matches(what, FUNCTIONS, 1)
            self.error("MX217", f"`{what}` is no function of the language", name.span,
                       f"did you mean `{near[0]}`?" if near else None)
            return POISON
        if name.id in REDUCTIONS:
            return self._reduction(e, name.id, dims)
        if name.id == "lag":
            return self._lag(e, dims)
        if dims is not None or name.id in ("grad", "index"):
            self.error("MX218", f"`{name.id}` takes no dims in brackets" if dims is not None else
                       f"write `{name.id}[{'S](loss)' if name.id == 'grad' else 'K]'}`", e.span)
            return POISON
        return self._function(e, name.id)

    def _function(self, e: Call, name: str) -> Value:
        want = OTHERS.get(name, 1)
        if len(e.args) != want:
            self.error("MX219", f"`{name}` takes {want} argument{'s' if want > 1 else ''}, {len(e.args)} came", e.span)
            return POISON
        if name == "where":
            cond = self(e.args[0])
            rest = [self.real(a) for a in e.args[1:]]
            if cond is None or any(x is None for x in rest) or self._condition(cond, e.args[0]) is None:
                return POISON
            return make("where", cond, *(x for x in rest if x is not None), span=e.span)
        args = [self.real(a) for a in e.args]
        if any(x is None for x in args):
            return POISON
        if name in REAL_ONLY and any(x is not None and x.kind == "complex" for x in args):
            self.error("MX220", f"`{name}` has no complex meaning", e.span, "take `real(x)`, `imag(x)` or `abs(x)` first")
            return POISON
        return make(name, *(x for x in args if x is not None), span=e.span)

    def _reduction(self, e: Call, name: str, dims: tuple[str, ...] | None) -> Value:
        if len(e.args) != 1:
            help_line = f"write `{name}imum(a, b)` for the {'larger' if name == 'max' else 'smaller'} of two" \
                if name in ("max", "min") and len(e.args) == 2 else f"`{name}[K](x)` reduces x over its dim K"
            self.error("MX221", f"`{name}` reduces one value over its dims, {len(e.args)} came", e.span, help_line)
            return POISON
        x = self.real(e.args[0])
        if x is None:
            return POISON
        over = x.dims if dims is None else dims
        for d in over:
            if d not in x.dims:
                self.error("MX222", f"{self.scope.words(e.args[0])} has no dim {d}: it is [{', '.join(x.dims)}]", e.span)
                return POISON
        if x.kind == "complex" and name in ("max", "min", "softmax"):
            self.error("MX209", "complex values have no order", e.span, "take `abs(x)` or `real(x)` first")
            return POISON
        if not over:
            return make("abs", x, span=e.span) if name == "norm" else number(1) if name == "softmax" else x
        if name == "mean":
            size: Node = make("size", dim=over[0])
            for d in over[1:]:
                size = size * make("size", dim=d)
            return make("div", make("sum", x, over=over), size, span=e.span)
        return make(name, x, span=e.span, over=over)

    def _lag(self, e: Call, dims: tuple[str, ...] | None) -> Value:
        if len(e.args) != (2 if dims is None else 1):
            self.error("MX223", "write `lag(x, n)`, or `lag[W](x)` for the last W values", e.span)
            return POISON
        x = self(e.args[0])
        if x is None:
            return POISON
        if not isinstance(e.args[0], Name) or e.args[0].id in self.scope.loop_locals:
            self.error("MX224", "`lag` takes the name of an input, or of a local made outside a `for`", e.args[0].span,
                       "give the value a name above this line")
            return POISON
        if any(n.op == "state" for n in postorder([x])):
            self.error("MX225", f"`{e.args[0].id}` reads a state, and `lag` cannot", e.span,
                       "carry the value in a state of its own")
            return POISON
        self.scope.lagged[x] = e.args[0].id
        if dims is not None:
            if len(dims) != 1 or dims[0] in x.dims:
                self.error("MX226", "`lag[W](x)` takes one dim that x lacks", e.span)
                return POISON
            return make("window", x, span=e.span, dim=dims[0], n=self.scope.size_of(dims[0]), name=e.args[0].id)
        count = self(e.args[1])
        n = None if count is None else self.scope.whole(count)
        if n is None or n < 0:
            self.error("MX227", "the distance of a lag is a whole number from 0 on", e.args[1].span)
            return POISON
        return make("lag", x, span=e.span, n=n, name=e.args[0].id)

    def _grad(self, e: Call, entries: tuple[Expr, ...]) -> Value:
        from mixc.ir.derivatives import gradient

        if len(entries) != 1 or not isinstance(entries[0], Name) or entries[0].id not in self.scope.states:
            self.error("MX228", "`grad[S](e)` takes one state", e.span)
            return POISON
        name = entries[0].id
        value = self.real(e.args[0]) if len(e.args) == 1 else POISON
        now = self.scope.lookup(entries[0])
        if value is None or now is None:
            return POISON
        if value.dims:
            self.error("MX229", f"`grad` takes a value without dims, this is [{', '.join(value.dims)}]", e.span,
                       "sum it: `sum(e)`")
            return POISON
        (found,) = gradient([(value, number(1))], [now])
        if found is None:
            line = self.scope.assigned_at.get(name)
            after = f": {name} was assigned on line {line} after e was formed" if line else ""
            self.error("MX230", f"e does not depend on {name} as it is now{after}", e.span)
            return POISON
        return found


def span_of(e: Expr) -> Span:
    return e.span
