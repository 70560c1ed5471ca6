"""Finding specs: the shipped ones by name, files by path, text as it is."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from mixc.errors import Diagnostic, InputError, Source, SpecError
from mixc.runtime.mixer import Mixer


def load(spec: str | Path, name: str | None = None) -> Mixer:
    """The mixer of a shipped spec ("gated_delta_rule") or of a file ("my/delta.mix").

    Args:
        spec: the name of a shipped mixer or of its file, or a path.
        name: which mixer of the file; needed where it holds several.
    Raises:
        SpecError: MX401 no such spec; MX402 no such mixer in the file, or which one is unclear; or
            what is wrong with its text.
        FileNotFoundError: a path that is not there.
    """
    if not isinstance(spec, (str, Path)):
        raise InputError("`spec`: expected the name of a shipped mixer or a path, "
                         f"got {type(spec).__name__} {spec!r:.60}")
    if isinstance(spec, Path) or spec.endswith(".mix") or "/" in spec or "\\" in spec:
        path = Path(spec)
        return from_text(path.read_text(encoding="utf-8-sig"), str(spec), name)
    path, found = _shipped(spec)
    return from_text(path.read_text(encoding="utf-8-sig"), str(path), name or found)


def loads(text: str, name: str | None = None) -> Mixer:
    """The mixer of a text; `name` picks one of several.

    Raises:
        SpecError: what is wrong with the text, all at once.
    """
    if not isinstance(text, str):
        raise InputError(f"`text`: expected the text of a spec, got {type(text).__name__} {text!r:.60}")
    return from_text(text, "<string>", name)


def from_text(text: str, filename: str, name: str | None = None) -> Mixer:
    """The mixer `name` (or the only one) of a text that stands in `filename`."""
    from mixc.frontend import parse

    source = Source(filename, text.removeprefix("\ufeff"))
    mixers = {m.name: m for m in parse(source)}
    if name is None and len(mixers) == 1:
        name = next(iter(mixers))
    if name is None or name not in mixers:
        what = f"{filename} has no mixer `{name}`" if name else f"{filename} holds {len(mixers)} mixers"
        listed = ", ".join(mixers) or "none"
        raise SpecError(Diagnostic("MX402", f"{what}; it holds {listed}", help="name one of them: load(path, name)"))
    return Mixer(mixers[name], source)


def shipped() -> dict[str, Path]:
    """The files of the shipped specs by stem: beside the package's code, or in its checkout."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "examples", package.parent / "examples"):
        files = sorted(folder.glob("*.mix"))
        if files:
            return {f.stem: f for f in files}
    return {}


def _shipped(name: str) -> tuple[Path, str | None]:
    """The file that has the mixer, and the mixer's name in it (None: its only one)."""
    files = shipped()
    if name in files:
        inside = _names(files[name])
        return files[name], name if name in inside else None
    everything = {mixer: path for path in files.values() for mixer in _names(path)}
    if name in everything:
        return everything[name], name
    near = difflib.get_close_matches(name, [*files, *everything], 3)
    raise SpecError(Diagnostic("MX401", f"no shipped spec is called `{name}`",
                               help=f"did you mean {', '.join(dict.fromkeys(near))}?" if near else
                               f"there are {', '.join(files)}; a path ends with .mix"))


def _names(path: Path) -> list[str]:
    return re.findall(r"^\s*mixer\s+(\w+)", path.read_text(encoding="utf-8-sig"), re.MULTILINE)
