"""A spec as one readable Python module that imports torch and nothing of ours; its weights under that module's keys."""

from __future__ import annotations

import keyword
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bblab
from bblab import blocks
from bblab.errors import BblabError
from bblab.export import sources
from bblab.export.pythons import OLDEST, oldest
from bblab.export.target import Input, Layout
from bblab.spec import ArchSpec, BlockInfo, Row

if TYPE_CHECKING:
    from torch import Tensor

LICENCE = "Apache-2.0, https://www.apache.org/licenses/LICENSE-2.0"
_RESERVED = frozenset({"Backbone", "STAGES", "TAPS"})
_OWN_WORDS = ("in_norm", "used_layers", "held", "stages", "freeze_norms", "features", "backbone")
WIDTH = 120


def check_names(spec: ArchSpec) -> None:
    """Refuse a spec whose stages cannot be attributes of a module of its own. Raises BblabError."""
    if spec.library:
        raise BblabError(
            f"{spec.name} is another library's net: its source cannot be written out",
            hint="declare it as a spec (bblab new), take its weights with bblab import, and export that",
        )
    for stage in spec.stages:
        if keyword.iskeyword(stage.name) or stage.name in _OWN_WORDS:
            raise BblabError(
                f"stage {stage.name}: that name is taken in a module that trainers read",
                hint="rename the stage in the spec, for instance s8 or layer2",
            )


def module_text(
    spec: ArchSpec,
    kinds: Mapping[str, BlockInfo],
    *,
    layout: Layout = "stages",
    feeds: Input = "rgb_imagenet",
    mean: Sequence[float] = (123.675, 116.28, 103.53),
    std: Sequence[float] = (58.395, 57.12, 57.375),
    head_lines: Sequence[str] = (),
    maps: Sequence[tuple[str, int, float | None]] = (),
) -> str:
    """The module's source. `maps`: (stage, channels, total stride) of each stage, for its comments.

    Raises BblabError where a block's source cannot stand alone.
    """
    check_names(spec)
    found = sources.Collection(reserved=_RESERVED)
    own = Path(__file__).parent / "modules.py"
    kit = Path(bblab.__file__).parent / "blockkit.py"
    tapped = found.add(own, "Tapped")
    norm = found.add(own, "InNorm") if feeds == "bgr255" else ""
    found.add(kit, "deploy")
    classes: dict[str, str] = {}
    for stage in spec.backbone_stages:
        for row in stage.rows:
            if row.kind not in classes:
                info = kinds[row.kind]
                classes[row.kind] = found.add(info.file, info.class_name)
    found.imports |= {("torch", "nn", "nn")}
    lines = _docstring(spec, head_lines)
    if layout == "features":
        found.imports.add(("collections", "OrderedDict", "OrderedDict"))
    lines += [*found.import_lines(), ""]
    for path in [*[p for p in found.files() if p != own], own]:
        doc = sources.read(path).doc
        title = "what all blocks share" if path == kit else "taps and input" if path == own else _first_line(doc)
        lines += ["", f"# {'-' * (WIDTH - 3 - len(title))} {title}", ""]
        if path not in (kit, own):
            lines += [f"# {line}".rstrip() for line in textwrap.wrap(_rest(doc), WIDTH - 2)]
            lines += [""] if _rest(doc) else []
        for text in found.texts(path):
            lines += ["", *text.splitlines(), ""]
    title = "the network"
    lines += ["", f"# {'-' * (WIDTH - 3 - len(title))} {title}", ""]
    numbers = {name: (channels, stride) for name, channels, stride in maps}
    stages = [(s.name, _rows(s.rows, classes, kinds)) for s in spec.backbone_stages]
    calls, channels = [], spec.input[0]
    for stage, rows in zip(spec.backbone_stages, stages, strict=True):
        made = []
        for row, name, count in rows[1]:
            made.append(_call(row, name, channels, kinds[row.kind], count))
            channels = row.out  # type: ignore[assignment]
        calls.append((stage.name, made))
    lines += ["", *_class(spec, tapped, norm, mean, std, layout, calls, numbers)]
    text = "\n".join(lines)
    while "\n\n\n\n" in text:
        text = text.replace("\n\n\n\n", "\n\n\n")
    text = text.rstrip() + "\n"
    minor, _ = oldest(text)
    return text.replace(f"Python 3.{OLDEST} or newer", f"Python 3.{minor} or newer", 1)


def _docstring(spec: ArchSpec, head_lines: Sequence[str]) -> list[str]:
    about = textwrap.wrap(f"{spec.name}: {spec.about or 'a backbone declared in bblab.'}", WIDTH - 3)
    about[0] = '"""' + about[0]
    body = [line.replace('"""', "'''").replace("\\", "/") for line in [*about[:1], *about[1:]]]
    body[0] = body[0].replace("'''", '"""', 1)
    return [
        *body,
        "",
        *head_lines,
        f"Written by bblab {bblab.__version__} from spec {spec.spec_id}; needs torch alone, "
        f"Python 3.{OLDEST} or newer.",
        f"The blocks' code is bblab's: {LICENCE}.",
        '"""',
        "",
    ]


def _first_line(doc: str) -> str:
    line = doc.splitlines()[0].rstrip(".") if doc else ""
    return line if len(line) < 90 else line.partition(":")[0]


def _rest(doc: str) -> str:
    return " ".join(" ".join(doc.splitlines()[1:]).split())


def _rows(
    rows: Iterable[Row], classes: Mapping[str, str], kinds: Mapping[str, BlockInfo]
) -> list[tuple[Row, str, int]]:
    """Rows with how many equal ones follow each other; a row that changes channels or stride stands alone."""
    found: list[tuple[Row, str, int]] = []
    channels: Any = None
    for row in rows:
        if found and found[-1][0] == row and channels == row.out:
            same, name, count = found[-1]
            first_changes = same.stride != 1 or len(found) == 1 or found[-2][0].out != same.out
            if count == 1 and first_changes:
                found.append((row, name, 1))
            else:
                found[-1] = (same, name, count + 1)
        else:
            found.append((row, classes[row.kind], 1))
        channels = row.out
    return found


def _call(row: Row, name: str, in_ch: Any, info: BlockInfo, count: int) -> str:
    def shown(channels: Any) -> str:
        return repr(list(channels)) if isinstance(channels, tuple) else repr(channels)

    positional, named = blocks.fed(row, in_ch, info)
    if row.stride == 1 and info.origin == "built-in":
        named.pop("stride", None)
    given = [*map(shown, positional), *(f"{key}={shown(value)}" for key, value in named.items())]
    given += [f"{key}={_literal(value)}" for key, value in row.kwargs.items()]
    call = f"{name}({', '.join(given)})"
    return call if count == 1 else f"*({call} for _ in range({count}))"


def _literal(value: Any) -> str:
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_literal(k)}: {_literal(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return repr(value)


def _class(
    spec: ArchSpec,
    tapped: str,
    norm: str,
    mean: Sequence[float],
    std: Sequence[float],
    layout: Layout,
    calls: Sequence[tuple[str, Sequence[str]]],
    numbers: Mapping[str, tuple[int, float | None]],
) -> list[str]:
    names = [name for name, _ in calls]
    taps = [name for name in names if name in spec.taps]
    given = "BGR, 0 to 255" if norm else "RGB, ImageNet's mean and deviation taken out"
    shapes = [
        f"    {name}: B, {numbers[name][0]}, H/{numbers[name][1]:g}, W/{numbers[name][1]:g}"
        for name in taps
        if name in numbers and numbers[name][1]
    ]
    lines = [
        f"STAGES = {_tuple(names)}",
        f"TAPS = {_tuple(taps)}",
        "",
        "",
        f"class Backbone({tapped}):",
        f'    """B, {spec.input[0]}, H, W ({given}) -> the map of each of `used_layers`.',
        *([""] if shapes else []),
        *shapes,
        '    """',
        "",
        "    def __init__(self, used_layers=TAPS):",
        "        super().__init__(TAPS if used_layers is None else used_layers, STAGES)",
    ]
    if norm:
        usual = (tuple(mean), tuple(std)) == ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
        inside = "" if usual else f"{tuple(mean)}, {tuple(std)}"
        lines.append(f"        self.in_norm = {norm}({inside})")
    if layout == "features":
        lines.append("        stages = OrderedDict()")
        for name, made in calls:
            lines += _sequential(f'        stages["{name}"] = nn.Sequential', made, numbers.get(name))
        lines.append("        self.features = nn.Sequential(stages)")
        walk = "self.features.named_children()"
    else:
        for name, made in calls:
            lines += _sequential(f"        self.{name} = nn.Sequential", made, numbers.get(name))
        walk = "((name, getattr(self, name)) for name in STAGES)"
    return [*lines, "", "    def stages(self):", f"        return {walk}"]


def _sequential(start: str, made: Sequence[str], number: tuple[int, float | None] | None) -> list[str]:
    note = f"  # {number[0]} channels, stride {number[1]:g}" if number and number[1] else ""
    flat = f"{start}({', '.join(made)})"
    if len(flat) + len(note) <= WIDTH:
        return [flat + note]
    indent = " " * (len(start) - len(start.lstrip()))
    rows = [line for call in made for line in _wrapped(call, f"{indent}    ")]
    return [f"{start}({note}", *rows, f"{indent})"]


def _wrapped(call: str, indent: str) -> list[str]:
    if len(indent) + len(call) + 1 <= WIDTH:
        return [f"{indent}{call},"]
    if call.startswith("*("):
        inner, _, times = call[2:-1].rpartition(" for _ in ")
        lines = _wrapped(inner, f"{indent}    ")
        return [f"{indent}*(", *lines[:-1], lines[-1].rstrip(","), f"{indent}    for _ in {times}", f"{indent}),"]
    deeper = indent + "    "
    return textwrap.wrap(call + ",", WIDTH, initial_indent=indent, subsequent_indent=deeper, break_long_words=False)


def _tuple(names: Sequence[str]) -> str:
    return "(" + ", ".join(f'"{n}"' for n in names) + ("," if len(names) == 1 else "") + ")"


# ---------------------------------------------------------------------------------------------- weights


def module_state(spec: ArchSpec, state: Mapping[str, Tensor], layout: Layout, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of the stages that the taps need, under the module's own keys (behind `prefix`)."""
    lead = "features." if layout == "features" else ""
    kept = {s.name for s in spec.backbone_stages}
    made = {}
    for key, tensor in state.items():
        parts = key.split(".")
        if parts[0] == "stages" and parts[1] in kept:
            made[f"{prefix}{lead}{'.'.join(parts[1:])}"] = tensor
    return made


def load(text: str, name: str = "generated") -> Any:
    """The module that a text is, run in a namespace of its own."""
    import types

    module = types.ModuleType(name)
    exec(compile(text, f"{name}.py", "exec"), module.__dict__)
    return module
