"""Short names for node constructors, so that rules and derivations read as formulas."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mixc.ir.node import COL, ROW, Node, as_node, is_number, make, number


def exp(x: Node) -> Node:
    return make("exp", x)


def contract(a: Node, b: Node, out: Iterable[str]) -> Node:
    """Product of a and b, summed over every dim not in `out`; an outer product sums nothing.

    A dim that only one of them has and `out` lacks is summed first.  Operands are ordered so
    that the left one brings the first dim of `out`: a product of matrices then reads row by row.
    """
    out = tuple(out)
    a = total(a, [d for d in a.dims if d not in out and d not in b.dims])
    b = total(b, [d for d in b.dims if d not in out and d not in a.dims])
    if not (set(a.dims) & set(b.dims)) - set(out):
        return reorder(a * b, out)
    if out and out[0] not in a.dims:
        a, b = b, a
    return make("contract", a, b, out=out)


def reorder(x: Node, dims: tuple[str, ...]) -> Node:
    """x itself: dims have names, and their order is the emitter's business."""
    assert set(x.dims) == set(dims), (x, dims)
    return x


def total(x: Node, over: Iterable[str]) -> Node:
    """Sum over dims (none: x); the sum of a product over a shared dim is left as it stands."""
    over = tuple(over)
    return make("sum", x, over=over) if over else x


def rename(x: Node, **to: str) -> Node:
    """rename(x, K="M"); dims that x lacks are ignored, and so are names that stay."""
    pairs = tuple((a, b) for a, b in to.items() if a in x.dims and a != b)
    return make("rename", x, to=pairs) if pairs else x


def renamed_at_once(x: Node, to: Mapping[str, str]) -> Node:
    """x under other names; what is a tensor under a rename already is under one still."""
    old, x = (dict(x.attr("to")), x.args[0]) if x.op == "rename" else (dict[str, str](), x)
    pairs = tuple((d, new) for d in x.dims if (new := to.get(old.get(d, d), old.get(d, d))) != d)
    return make("rename", x, to=pairs) if pairs else x


def at_col(x: Node) -> Node:
    """A row's value under the name of the writing row."""
    return rename(x, **{ROW: COL})


def sides(system: Node) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The dims of a triangular system's rows, and of its columns: of tokens, and of what each has several of."""
    ranks = system.attr("rows", ())
    return (ROW, *(t for t, *_ in ranks)), (COL, *(s for _, s, _ in ranks))


def at_cols(x: Node, system: Node) -> Node:
    """A value of a system's rows under the names of its columns."""
    return rename(x, **dict(zip(*sides(system), strict=True)))


def expand(x: Node, dims: Iterable[str]) -> Node:
    new = tuple(d for d in dims if d not in x.dims)
    return make("expand", x, dims=new) if new else x


def repeated(x: Node | None, dims: Iterable[str]) -> Node:
    """x with these dims too; None stands for 1."""
    return expand(number(1) if x is None else x, dims)


def cumsum(x: Node, *, reverse: bool = False, exclusive: bool = False) -> Node:
    return make("cumsum", x, reverse=reverse, exclusive=exclusive)


def cumprod(x: Node, *, reverse: bool = False, exclusive: bool = False) -> Node:
    return make("cumprod", x, reverse=reverse, exclusive=exclusive)


def where(cond: Node, a: Node | float, b: Node | float) -> Node:
    return make("where", cond, as_node(a), as_node(b))


def product(factors: Iterable[Node]) -> Node | None:
    """The product of factors, those with fewest dims first (cheap ones meet early); None for none."""
    out: Node | None = None
    for f in sorted(factors, key=lambda f: len(f.dims)):
        if not is_number(f, 1.0):
            out = f if out is None else out * f
    return out


def plus(a: Node, b: Node) -> Node:
    """The sum, a 0 left out."""
    return b if is_number(a, 0.0) else a if is_number(b, 0.0) else a + b


def times(a: Node, b: Node) -> Node:
    """The product, a 1 left out and a 0 all there is."""
    if is_number(a, 0.0) or is_number(b, 0.0):
        return number(0)
    return b if is_number(a, 1.0) else a if is_number(b, 1.0) else a * b


def maybe_mul(a: Node | None, b: Node | None) -> Node | None:
    """Product where None stands for 1."""
    return b if a is None else a if b is None else a * b


def maybe_add(a: Node | None, b: Node | None) -> Node | None:
    """Sum where None stands for 0."""
    return b if a is None else a if b is None else a + b


__all__ = ["COL", "ROW", "as_node", "at_col", "contract", "cumprod", "cumsum", "exp", "expand", "is_number",
           "make", "maybe_add", "maybe_mul", "number", "plus", "product", "rename", "times", "total", "where"]
