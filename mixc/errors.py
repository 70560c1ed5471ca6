"""The one error type for specs and the one for calls, and how a diagnostic prints."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Source:
    """A text that spans point into: a `.mix` file, a string, or a Python file."""

    name: str
    text: str

    @property
    def lines(self) -> list[str]:
        """As a parser counts them: a form feed or a line separator of Unicode begins none."""
        return [line.removesuffix("\r") for line in self.text.removesuffix("\n").split("\n")]

    def line(self, number: int) -> str:
        lines = self.lines
        return lines[number - 1] if 0 < number <= len(lines) else ""


@dataclass(frozen=True, slots=True)
class Span:
    """Line and columns (from 1; `end` is one past the last) in a source."""

    source: Source = field(repr=False)
    line: int
    column: int
    end: int

    def __str__(self) -> str:
        return f"{self.source.name}:{self.line}:{self.column}"


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One finding: `code` (MXnnn), `message`, where, and what to do about it."""

    code: str
    message: str
    span: Span | None = None
    help: str | None = None
    level: str = "error"  # or "note"

    def __str__(self) -> str:
        lines = [f"{self.level}[{self.code}]: {self.message}"]
        if self.span is not None:
            number = str(self.span.line)
            pad = " " * len(number)
            text = self.span.source.line(self.span.line).replace("\t", " ")
            carets = "^" * max(1, self.span.end - self.span.column)
            lines += [
                f"{pad} --> {self.span}",
                f"{pad}  |",
                f"{number}  | {text}".rstrip(),
                f"{pad}  | {' ' * (self.span.column - 1)}{carets}",
            ]
        if self.help:
            lines.append(f"help: {self.help}")
        return "\n".join(lines)


class SpecError(ValueError):
    """What is wrong with a spec, or what cannot be done with it: every diagnostic at once."""

    def __init__(self, diagnostics: list[Diagnostic] | Diagnostic):
        self.diagnostics = [diagnostics] if isinstance(diagnostics, Diagnostic) else list(diagnostics)
        super().__init__("\n\n".join(map(str, self.diagnostics)))

    def __reduce__(self):  # type: ignore[no-untyped-def]
        return SpecError, (self.diagnostics,)


class InputError(ValueError):
    """A call with a tensor or option that the spec cannot take; names the argument."""
