"""YAML -> ArchSpec, and every complaint about it, with line and column.

The language: named stages of rows; a row names a block and its arguments; `define` names partial rows, `defaults`
reach every block that has the argument, `repeat` repeats a row (only the first takes the stride). Nothing here
imports torch: what a block accepts is told by a `BlockInfo`, which `bblab.blocks` reads from the block's file.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from bblab.errors import BblabError, Complaint, Mark, SpecError, near
from bblab.rooms import Rooms

# Bounds that keep a hostile or mistyped file from eating the machine. Chosen by us: four times the largest
# value of any network in the zoo (VanillaNet's 4096 channels, an input of 1024 px, 152 layers).
MAX_FILE_BYTES = 256 * 1024
MAX_DEPTH = 16
MAX_NODES = 20_000
MAX_CHANNELS = 16_384
MAX_SIDE_PX = 4_096
MAX_REPEAT = 256
MAX_ROWS = 2_000
MAX_STRIDE = 32
MAX_ARGUMENT = 65_536
MAX_WINDOW = 255  # of these arguments, in pixels or taps: a 51x51 kernel is the largest published (arXiv:2207.03620)
_WINDOWS = ("kernel", "kernel_size", "dilation", "pad", "padding")
MAX_NAME = 100

TRAINERS = ("nanotrack", "pysot")
LIBRARIES = ("timm", "torchvision")

Arg = None | bool | int | float | str | tuple[Any, ...]
"""A frozen argument: scalars, tuples of arguments, and mappings as ("map", ((key, value), ...))."""


# ---------------------------------------------------------------------------------------------- values


@dataclass(frozen=True, slots=True)
class Param:
    """One argument of a block: its name, its annotation as written, and its default if it has one."""

    name: str
    annotation: str = ""
    default: Any = None
    is_required: bool = False


@dataclass(frozen=True, slots=True)
class BlockInfo:
    """What a spec may say to a block, read from its file without running it."""

    kind: str
    file: Path
    class_name: str
    params: tuple[Param, ...]
    doc: str = ""
    source: str = ""
    origin: str = "built-in"
    has_stride: bool = True
    keeps_channels: bool = False
    is_head: bool = False
    feeds: tuple[tuple[str, str], ...] = ()
    """(argument, role) of a lab's block: what its constructor is given by name. Roles: "in", "out", "stride", and
    "strides" for an argument that is true where the block strides. Empty: `(in_ch, out_ch, stride=...)`."""
    refusal: str = ""
    """Why no row can use this class, and `remedy` what to write instead; empty for a block that can be used."""
    remedy: str = ""

    def param(self, name: str) -> Param | None:
        return next((p for p in self.params if p.name == name), None)


@dataclass(frozen=True, slots=True)
class Row:
    """One block of a stage, with everything resolved. `args` holds only what differs from the block's defaults."""

    kind: str
    out: int | tuple[int, ...]
    stride: int = 1
    args: tuple[tuple[str, Arg], ...] = ()
    mark: Mark | None = field(default=None, compare=False, repr=False)
    key: str = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        text = json.dumps([self.kind, self.out, self.stride, self.args], separators=(",", ":"))
        object.__setattr__(self, "key", text)

    @property
    def kwargs(self) -> dict[str, Any]:
        return {name: thaw(value) for name, value in self.args}


@dataclass(frozen=True, slots=True)
class Stage:
    """Consecutive rows under one name: a tap, a `--set` path and a trainer's key."""

    name: str
    rows: tuple[Row, ...]

    @property
    def stride(self) -> int:
        product = 1
        for row in self.rows:
            product *= row.stride
        return product


@dataclass(frozen=True, slots=True)
class Tracker:
    """Template and search sizes in pixels, and the trainer whose rules apply."""

    template: int = 127
    search: int = 255
    trainer: str | None = None


@dataclass(frozen=True, slots=True)
class ArchSpec:
    """A backbone, declared. `library` names another library's net ("timm:starnet_s1") instead of stages."""

    name: str
    stages: tuple[Stage, ...] = ()
    input: tuple[int, int, int] = (3, 224, 224)
    taps: tuple[str, ...] = ()
    head: Row | None = None
    tracker: Tracker | None = None
    waive: tuple[tuple[str, str], ...] = ()
    about: str = ""
    library: str | None = None
    cut: str | None = None

    @property
    def canonical(self) -> str:
        """What the network is, as text: without its name, its description and its waivers."""

        def row(r: Row | None) -> list[Any] | None:
            return None if r is None else [r.kind, r.out, r.stride, r.args]

        value: dict[str, Any] = {
            "input": self.input,
            "stages": [[s.name, [row(r) for r in s.rows]] for s in self.stages],
            "head": row(self.head),
            "taps": self.taps,
        }
        if self.tracker:
            value["tracker"] = [self.tracker.template, self.tracker.search, self.tracker.trainer]
        if self.library:
            value["library"] = [self.library, self.cut]
        return json.dumps(value, separators=(",", ":"), sort_keys=True)

    @property
    def spec_id(self) -> str:
        return hashlib.sha256(self.canonical.encode()).hexdigest()[:12]

    @property
    def backbone_stages(self) -> tuple[Stage, ...]:
        """The stages that the last tap needs."""
        last = max(i for i, stage in enumerate(self.stages) if stage.name in self.taps)
        return self.stages[: last + 1]

    @property
    def sizes_px(self) -> Tracker:
        """Template and search size; the field's usual 127 and 255 where the spec names none."""
        return self.tracker or Tracker()


def freeze(value: Any) -> Arg:
    """A hashable copy of plain YAML data."""
    if isinstance(value, Mapping):
        return ("map", tuple(sorted((str(k), freeze(v)) for k, v in value.items())))
    if isinstance(value, (list, tuple)):
        return tuple(freeze(v) for v in value)
    return value


def thaw(value: Arg) -> Any:
    """The plain data behind `freeze`."""
    if isinstance(value, (list, tuple)):
        if len(value) == 2 and value[0] == "map":
            return {k: thaw(v) for k, v in value[1]}
        return [thaw(v) for v in value]
    return value


# ---------------------------------------------------------------------------------------------- reading YAML

Kind = Literal["map", "list", "scalar"]


@dataclass(slots=True)
class Node:
    """A piece of the document with its place. A map's value is {key: (key's mark, node)}."""

    kind: Kind
    value: Any
    mark: Mark

    def plain(self) -> Any:
        if self.kind == "map":
            return {key: node.plain() for key, (_, node) in self.value.items()}
        if self.kind == "list":
            return [node.plain() for node in self.value]
        return self.value

    def shown(self) -> str:
        text = json.dumps(self.plain(), default=str)
        return text if len(text) <= 60 else text[:57] + "..."


def read_yaml(text: str, file: str) -> Node:
    """Parse one YAML document into nodes with places.

    Raises SpecError for syntax errors, aliases, tags, doubled keys and documents that are too large: nothing is
    constructed from tags and nothing is expanded, so a hostile file costs no more than its own length.
    """
    import yaml

    if len(text) > MAX_FILE_BYTES:
        where = Mark(file, 1, 1)
        raise SpecError([Complaint(where, f"{len(text):,} characters; a spec has at most {MAX_FILE_BYTES:,}")])
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

    def place(mark: Any) -> Mark:
        return Mark(file, mark.line + 1, mark.column + 1)

    try:
        _refuse_hostile(yaml.parse(text, Loader=loader), yaml, place)
        tree = yaml.compose(text, Loader=loader)
    except yaml.MarkedYAMLError as error:
        # libyaml reads a kilobyte ahead and has a depth limit of its own (1,000 since 0.2.6): what this language
        # refuses may stand before what stopped it. Its Python twin reads that again, as far as the first refusal.
        with contextlib.suppress(yaml.YAMLError):
            _refuse_hostile(yaml.parse(text, Loader=yaml.SafeLoader), yaml, place)
        mark = place(error.problem_mark) if error.problem_mark else Mark(file, 1, 1)
        said = " ".join(filter(None, (error.context, error.problem)))
        line = text.splitlines()[mark.line - 1 : mark.line]
        is_tab = bool(line) and line[0][mark.column - 1 : mark.column] == "\t"
        hint = "YAML takes no tabs: indent with spaces" if is_tab else "check indentation, brackets and colons"
        raise SpecError([Complaint(mark, f"not YAML: {said}", hint)]) from None
    except (yaml.YAMLError, UnicodeEncodeError) as error:
        said = str(error).splitlines()[0]
        raise SpecError([Complaint(Mark(file, 1, 1), f"not YAML: {said}", "is this a text file in UTF-8?")]) from None
    if tree is None:
        raise SpecError([Complaint(Mark(file, 1, 1), "the file is empty", "`bblab new NAME --like SPEC` writes one")])
    complaints: list[Complaint] = []
    node = _convert(tree, place, complaints)
    if complaints:
        raise SpecError(complaints)
    return node


def _refuse_hostile(events: Iterable[Any], yaml: Any, place: Callable[[Any], Mark]) -> None:
    depth = nodes = documents = 0
    for event in events:
        mark = place(event.start_mark)
        if isinstance(event, yaml.AliasEvent):
            hint = "write shared rows under `define:` and name them with `block:`"
            raise SpecError([Complaint(mark, f"the alias *{event.anchor} is not part of the spec language", hint)])
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise SpecError([Complaint(mark, "a second document; a spec is one", "remove the line ---")])
        if isinstance(event, yaml.NodeEvent):
            nodes += 1
            if event.anchor is not None:
                hint = "write shared rows under `define:` and name them with `block:`"
                raise SpecError([Complaint(mark, f"the anchor &{event.anchor} is not part of the spec language", hint)])
            if getattr(event, "tag", None) not in (None, "!"):
                hint = "a spec is plain data: remove the tag"
                raise SpecError([Complaint(mark, f"the tag {event.tag} is not part of the spec language", hint)])
            if nodes > MAX_NODES:
                raise SpecError([Complaint(mark, f"more than {MAX_NODES:,} values in one spec")])
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise SpecError([Complaint(mark, f"nested deeper than {MAX_DEPTH} levels")])
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _convert(tree: Any, place: Callable[[Any], Mark], complaints: list[Complaint]) -> Node:
    mark = place(tree.start_mark)
    if tree.id == "sequence":
        return Node("list", [_convert(item, place, complaints) for item in tree.value], mark)
    if tree.id == "scalar":
        return Node("scalar", _scalar(tree), mark)
    found: dict[str, tuple[Mark, Node]] = {}
    for key, value in tree.value:
        where = place(key.start_mark)
        if key.id != "scalar":
            complaints.append(Complaint(where, "a key must be a plain word"))
            continue
        if key.value in found:
            first = found[key.value][0].line
            hint = f"keep one of them; the other stands in line {first}"
            complaints.append(Complaint(where, f"the key {key.value!r} stands twice in one map", hint))
        found[key.value] = (where, _convert(value, place, complaints))
    return Node("map", found, mark)


def _scalar(tree: Any) -> Any:
    """YAML 1.1 scalars without its surprises: no octal 010, no 1:30 as 90, no dates; 1e-3 is a number."""
    text, tag = tree.value, tree.tag.rpartition(":")[2]
    if tree.style in ("'", '"', "|", ">"):
        return text
    if tag == "bool":
        return text.lower() in ("true", "yes", "on")
    if tag == "null":
        return None
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            pass
    return text


# ---------------------------------------------------------------------------------------------- arguments


def check_type(annotation: str, value: Any) -> str:
    """What is expected, if `value` does not fit the annotation of a block's argument; "" if it fits.

    Knows int, float, bool, str, None, Literal, list, tuple, dict and unions of them; anything else passes, because
    the block itself will look at it.
    """
    import ast

    if not annotation:
        return ""
    try:
        tree = ast.parse(annotation, mode="eval").body
    except SyntaxError:
        return ""
    wanted: list[str] = []
    return "" if _fits(tree, value, wanted) else " or ".join(dict.fromkeys(wanted))


def _fits(tree: Any, value: Any, wanted: list[str]) -> bool:
    import ast

    if isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.BitOr):
        left, right = _fits(tree.left, value, wanted), _fits(tree.right, value, wanted)
        return left or right
    if isinstance(tree, ast.Constant) and tree.value is None:
        wanted.append("nothing (null)")
        return value is None
    if isinstance(tree, ast.Subscript) and isinstance(tree.value, ast.Name):
        outer = tree.value.id
        if outer == "Literal":
            choice = [n.value for n in ast.walk(tree.slice) if isinstance(n, ast.Constant)]
            wanted.extend(repr(c) for c in choice)
            return value in choice and not isinstance(value, bool)
        if outer in ("list", "tuple", "Sequence"):
            wanted.append(f"a list ({ast.unparse(tree)})")
            if not isinstance(value, (list, tuple)):
                return False
            inner = tree.slice.elts[0] if isinstance(tree.slice, ast.Tuple) else tree.slice
            return all(_fits(inner, v, []) for v in value)
        if outer in ("dict", "Mapping"):
            wanted.append("a map")
            return isinstance(value, Mapping)
        return True
    if isinstance(tree, ast.Name):
        types: dict[str, tuple[tuple[type, ...], str]] = {
            "int": ((int,), "a whole number"),
            "float": ((int, float), "a number"),
            "str": ((str,), "a word"),
            "dict": ((Mapping,), "a map"),
            "list": ((list, tuple), "a list"),
        }
        if tree.id == "bool":
            wanted.append("true or false")
            return isinstance(value, bool)
        if tree.id in types:
            allowed, words = types[tree.id]
            wanted.append(words)
            return isinstance(value, allowed) and not isinstance(value, bool)
    return True


# ---------------------------------------------------------------------------------------------- the parser

_TOP_KEYS = ("name", "about", "input", "tracker", "defaults", "define", "stages", "head", "taps", "waive")
_ROW_KEYS = ("block", "out", "stride", "repeat")
# What nn.ModuleDict has itself: a stage of this name could not be stored. Held against torch by a test.
_MODULE_WORDS = frozenset(
    """T_destination add_module apply bfloat16 buffers call_super_init children clear compile cpu cuda double
    dump_patches eval extra_repr float forward get_buffer get_extra_state get_parameter get_submodule half ipu items
    keys load_state_dict modules mtia named_buffers named_children named_modules named_parameters parameters pop
    register_backward_hook register_buffer register_forward_hook register_forward_pre_hook register_full_backward_hook
    register_full_backward_pre_hook register_load_state_dict_post_hook register_load_state_dict_pre_hook
    register_module register_parameter register_state_dict_post_hook register_state_dict_pre_hook requires_grad_
    set_extra_state set_submodule share_memory state_dict to to_empty train training type update values xpu
    zero_grad""".split()
)


class _Parser:
    """Walks the nodes once, collecting complaints instead of stopping at the first."""

    def __init__(self, kinds: Mapping[str, BlockInfo]) -> None:
        self.kinds = kinds
        self.complaints: list[Complaint] = []
        self.defaults: dict[str, Node] = {}
        self.define: dict[str, dict[str, tuple[Mark, Node]]] = {}
        self.defaults_used: set[str] = set()
        self.defines_used: set[str] = set()
        self.has_unknown_block = False
        self.channels: int | tuple[int, ...] = 3
        self.num_rows = 0
        self.sound: ArchSpec | None = None

    def complain(self, mark: Mark | None, message: str, hint: str = "") -> None:
        complaint = Complaint(mark, message, hint)
        if complaint not in self.complaints:  # a wrong default is met by every row
            self.complaints.append(complaint)

    # -- pieces

    def map_of(self, node: Node, what: str) -> dict[str, tuple[Mark, Node]]:
        if node.kind != "map":
            self.complain(node.mark, f"{what} must be a map, read {node.shown()}")
            return {}
        return node.value

    def whole(self, node: Node, what: str, low: int, high: int, instead: int) -> int:
        value = node.value if node.kind == "scalar" else None
        if isinstance(value, bool) or not isinstance(value, int):
            self.complain(node.mark, f"{what} must be a whole number, read {node.shown()}")
            return instead
        if not low <= value <= high:
            self.complain(node.mark, f"{what} must be from {low} to {high:,}, read {value}")
            return instead
        return value

    def word(self, node: Node, what: str) -> str:
        if node.kind != "scalar" or not isinstance(node.value, str) or not node.value.strip():
            self.complain(node.mark, f"{what} must be a word, read {node.shown()}")
            return ""
        return node.value

    # -- the document

    def document(self, root: Node, name: str) -> ArchSpec | None:
        top = self.map_of(root, "a spec")
        for key, (mark, _) in top.items():
            if key not in _TOP_KEYS:
                self.complain(mark, f"no key {key!r} at the top of a spec", near(key, _TOP_KEYS))

        def get(key: str) -> Node | None:
            node = top[key][1] if key in top else None
            is_nothing = node is not None and node.kind == "scalar" and node.value is None
            return None if is_nothing and key not in ("name", "input", "stages") else node  # `head:` is as if left out

        given = self.name(get("name"), name)
        about = get("about").plain() if get("about") else ""  # type: ignore[union-attr]
        shape = self.input(get("input"))
        self.channels = shape[0]
        self.read_define(get("define"))
        if node := get("defaults"):
            self.defaults = {key: value for key, (_, value) in self.map_of(node, "defaults").items()}
        stages = self.stages(get("stages"), root.mark) if top else ()
        head = self.head(get("head"))
        self.unused_defines()
        for key in self.defaults.keys() - self.defaults_used if stages else ():
            known = {p.name for info in self.kinds.values() for p in info.params}
            if key in known and self.has_unknown_block:
                continue  # the block that was misspelled may have it
            hint = near(key, known) if key not in known else "no block of this spec has it: remove it"
            self.complain(self.defaults[key].mark, f"defaults: no block here has an argument {key!r}", hint)
        taps = self.taps(get("taps"), [s.name for s in stages]) if stages else ()
        tracker = self.tracker(get("tracker"))
        waive = self.waive(get("waive"))
        if self.complaints or not stages:
            self.sound = self.before_the_first_mistake(stages, shape, given)
            return None
        return ArchSpec(given, stages, shape, taps, head, tracker, waive, str(about or ""))

    def before_the_first_mistake(
        self, stages: tuple[Stage, ...], shape: tuple[int, int, int], name: str
    ) -> ArchSpec | None:
        """The rows that stand before the first complaint, as a net: what can be looked at already."""
        places = [(c.mark.line, c.mark.column) for c in self.complaints if c.mark is not None]
        if not places or len(places) < len(self.complaints):
            return None
        kept = []
        for stage in stages:
            rows = tuple(r for r in stage.rows if r.mark is not None and (r.mark.line, r.mark.column) < min(places))
            if rows:
                kept.append(Stage(stage.name, rows))
            if len(rows) < len(stage.rows):
                break
        return ArchSpec(name, tuple(kept), shape, (kept[-1].name,)) if kept else None

    def name(self, node: Node | None, stem: str) -> str:
        if node is None:
            return stem
        given = self.word(node, "name")
        if not given.isprintable() or len(given) > MAX_NAME or "/" in given or "\\" in given:
            hint = f"a line of at most {MAX_NAME} characters without / and \\; usually the file's stem"
            self.complain(node.mark, f"the name {given[:MAX_NAME]!r} is not usable", hint)
        return given

    def input(self, node: Node | None) -> tuple[int, int, int]:
        if node is None:
            return (3, 224, 224)
        if node.kind != "list" or len(node.value) != 3:
            self.complain(node.mark, f"input must be [channels, height, width], read {node.shown()}")
            return (3, 224, 224)
        c, h, w = node.value
        return (
            self.whole(c, "input channels", 1, MAX_CHANNELS, 3),
            self.whole(h, "input height", 1, MAX_SIDE_PX, 224),
            self.whole(w, "input width", 1, MAX_SIDE_PX, 224),
        )

    def read_define(self, node: Node | None) -> None:
        if node is None:
            return
        entries = self.map_of(node, "define")
        for name, (mark, value) in entries.items():
            if name in self.kinds:
                self.complain(mark, f"define: {name!r} is already a block", "give the partial row a name of its own")
                continue
            row = self.map_of(value, f"define {name}")
            self.define[name] = row
            block = row.get("block")
            if block is None:
                if value.kind == "map":
                    self.complain(mark, f"define {name}: `block` is missing", "say which block it configures")
            elif self.word(block[1], f"define {name}: block") in entries:
                hint = "name a block here and repeat the arguments"
                self.complain(block[1].mark, f"define {name}: `define` is one level deep", hint)
            elif isinstance(block[1].value, str) and block[1].value not in self.kinds:
                self.unknown_block(block[1], f"define {name}", usable(self.kinds))

    def unknown_block(self, node: Node, where: str, choice: set[str]) -> None:
        self.has_unknown_block = True
        self.complain(node.mark, f"{where}: no block {node.value!r}", near(node.value, choice))

    def unused_defines(self) -> None:
        """A partial row that no stage uses may still be misspelled."""
        for name, entries in self.define.items():
            info = self.kinds.get(str(entries["block"][1].value)) if "block" in entries else None
            if info is None or name in self.defines_used:
                continue
            names = [p.name for p in info.params]
            for key, (mark, _) in entries.items():
                if key not in names and key not in _ROW_KEYS:
                    hint = near(key, [*names, *_ROW_KEYS])
                    self.complain(mark, f"define {name}: {info.kind} has no argument {key!r}", hint)

    def stages(self, node: Node | None, mark: Mark) -> tuple[Stage, ...]:
        if node is None:
            self.complain(mark, "`stages` is missing", "stages: {stem: {block: conv, out: 32, stride: 2}, ...}")
            return ()
        found: list[Stage] = []
        entries = self.map_of(node, "stages")
        if node.kind == "map" and not entries:
            self.complain(node.mark, "stages is empty", "stages: {stem: {block: conv, out: 32, stride: 2}, ...}")
        for name, (where, value) in entries.items():
            if not name.isidentifier() or name.startswith("_"):
                hint = "a stage's name becomes an attribute: letters, digits and _"
                self.complain(where, f"stage name {name!r} is not usable", hint)
            elif name in _TOP_KEYS or name in _MODULE_WORDS:
                meaning = "a key of the spec (--set means that one)" if name in _TOP_KEYS else "a word of nn.Module"
                self.complain(where, f"stage name {name!r} is not usable: it is {meaning}", "for instance stage1 or s8")
            rows: list[Row] = []
            items = value.value if value.kind == "list" else [value]
            if not items:
                self.complain(where, f"stage {name} has no rows")
            for item in items:
                rows.extend(self.row(item, f"stage {name}"))
            found.append(Stage(name, tuple(rows)))
        return tuple(found)

    def row(self, node: Node, where: str, *, is_head: bool = False) -> list[Row]:
        own = self.map_of(node, f"{where}: a row")
        if not own:
            self.has_unknown_block = True
            if node.kind == "map":
                self.complain(node.mark, f"{where}: the row is empty", "{block: conv, out: 32, stride: 2}")
            return []
        if "block" not in own:
            self.has_unknown_block = True
            self.complain(node.mark, f"{where}: `block` is missing", near("", usable(self.kinds)))
            return []
        block_node = own["block"][1]
        kind = self.word(block_node, f"{where}: block")
        if not kind:
            self.has_unknown_block = True
            return []
        entries, defined = own, ""
        if kind in self.define:
            defined = kind
            self.defines_used.add(kind)
            entries = {**self.define[kind], **{k: v for k, v in own.items() if k != "block"}}
            kind = str(entries["block"][1].value) if "block" in entries else ""
        info = self.kinds.get(kind)
        repeat = self._number(entries, "repeat", where, 1, MAX_REPEAT, 1)
        out = self._out(entries, where, info, is_head)
        if info is None:
            if not defined:  # else the mistake was told at the define
                self.unknown_block(
                    block_node,
                    where,
                    {k for k in usable(self.kinds) if self.kinds[k].is_head == is_head} | set(self.define),
                )
            self.has_unknown_block = True
            self.channels = out
            return []
        if info.refusal:
            self.complain(block_node.mark, f"{where}: {kind} {info.refusal}", info.remedy)
            self.has_unknown_block = True
            self.channels = out
            return []
        if info.is_head and not is_head:
            self.complain(block_node.mark, f"{where}: {kind} is a head", "write it under `head:`, behind the stages")
            return []
        stride = self._number(entries, "stride", where, 1, MAX_STRIDE, 1)
        if stride != 1 and not info.has_stride:
            self.complain(entries["stride"][1].mark, f"{where}: {kind} has no stride", "remove it or use another block")
        sources = {key: where if key in own else f"define {defined}" for key in entries}
        args = self._args(entries, info, where, sources)
        self.num_rows += repeat
        if self.num_rows > MAX_ROWS:
            if self.num_rows - repeat <= MAX_ROWS:
                self.complain(node.mark, f"more than {MAX_ROWS:,} blocks in one spec")
            return []
        if not is_head:
            self.channels = out
        first = Row(kind, out, stride, args, node.mark)
        return [first, *([replace(first, stride=1)] * (repeat - 1))]

    def _number(self, entries: dict[str, Any], key: str, where: str, low: int, high: int, default: int) -> int:
        if key not in entries:
            return default
        return self.whole(entries[key][1], f"{where}: {key}", low, high, default)

    def _out(self, entries: dict[str, Any], where: str, info: BlockInfo | None, is_head: bool) -> Any:
        if "out" not in entries:
            return 1000 if is_head else self.channels
        node: Node = entries["out"][1]
        if node.kind == "list" and is_head:
            self.complain(node.mark, f"{where}: out must be one number, the classes; read {node.shown()}")
            return 1000
        if node.kind == "list":
            if not node.value:
                self.complain(node.mark, f"{where}: out is an empty list")
                return self.channels
            return tuple(self.whole(n, f"{where}: out", 1, MAX_CHANNELS, 8) for n in node.value)
        value = self.whole(node, f"{where}: out", 1, MAX_CHANNELS, 8)
        if info is not None and info.keeps_channels and value != self.channels:
            hint = "leave `out` away, or put a conv beside it"
            self.complain(node.mark, f"{where}: {info.kind} keeps its {self.channels} channels, out says {value}", hint)
        return value

    def _args(
        self, entries: dict[str, tuple[Mark, Node]], info: BlockInfo, where: str, sources: Mapping[str, str]
    ) -> tuple[tuple[str, Arg], ...]:
        given: dict[str, Node] = {}
        names = [p.name for p in info.params]
        for key, (mark, node) in entries.items():
            if key in _ROW_KEYS:
                continue
            if key not in names:
                hint = near(key, [*names, *_ROW_KEYS])
                self.complain(mark, f"{sources[key]}: {info.kind} has no argument {key!r}", hint)
            else:
                given[key] = node
        for key, node in self.defaults.items():
            if key in names:
                self.defaults_used.add(key)
                given.setdefault(key, node)
        kept: list[tuple[str, Arg]] = []
        for param in info.params:
            if param.name not in given:
                if param.is_required:
                    expected = f" ({param.annotation})" if param.annotation else ""
                    hint = f"write it in the row: {{block: {info.kind}, {param.name}: ...}}"
                    self.complain(entries["block"][0], f"{where}: {info.kind} needs {param.name!r}{expected}", hint)
                continue
            node = given[param.name]
            source = sources.get(param.name, "defaults")
            value = node.plain()
            if wanted := check_type(param.annotation, value):
                self.complain(node.mark, f"{source}: {param.name} must be {wanted}, read {node.shown()}")
                continue
            if too_big := _absurd(value, MAX_WINDOW if param.name in _WINDOWS else MAX_ARGUMENT):
                self.complain(node.mark, f"{source}: {param.name} is out of all bounds: {too_big}")
                continue
            value, default = _as_meant(value, param), _as_meant(param.default, param)
            if param.is_required or freeze(value) != freeze(default) or type(value) is not type(default):
                kept.append((param.name, freeze(value)))
        return tuple(sorted(kept))

    def head(self, node: Node | None) -> Row | None:
        if node is None:
            return None
        rows = self.row(node, "head", is_head=True)
        if len(rows) > 1:
            self.complain(node.mark, "head: repeat makes no sense here", "remove it")
        if rows and not self.kinds[rows[0].kind].is_head:
            heads = [k for k, info in self.kinds.items() if info.is_head]
            self.complain(node.mark, f"head: {rows[0].kind} is no head", near(rows[0].kind, heads))
        return rows[0] if rows else None

    def taps(self, node: Node | None, names: list[str]) -> tuple[str, ...]:
        if node is None:
            return tuple(names[-1:])
        items = node.value if node.kind == "list" else [node]
        if not items:
            self.complain(node.mark, "taps is empty", "leave it away: the last stage is the default")
        for item in items:
            if item.kind != "scalar":
                self.complain(item.mark, f"taps must be names of stages, read {item.shown()}", near("", names))
            elif item.value not in names:
                self.complain(item.mark, f"taps: no stage {item.shown()}", near(item.value, names))
        chosen = {item.value for item in items if item.kind == "scalar"}
        return tuple(n for n in names if n in chosen)

    def tracker(self, node: Node | None) -> Tracker | None:
        if node is None:
            return None
        entries = self.map_of(node, "tracker")
        for key, (mark, _) in entries.items():
            if key not in ("template", "search", "for"):
                self.complain(mark, f"tracker: no key {key!r}", near(key, ("template", "search", "for")))
        template = self._number(entries, "template", "tracker", 1, MAX_SIDE_PX, 127)
        search = self._number(entries, "search", "tracker", 1, MAX_SIDE_PX, 255)
        if search < template:
            said = f"tracker: search {search} px is smaller than template {template} px"
            self.complain(node.mark, said, "swap them?")
        trainer = None
        if "for" in entries:
            trainer = self.word(entries["for"][1], "tracker: for") or None
            if trainer and trainer not in TRAINERS:
                self.complain(entries["for"][1].mark, f"tracker: no trainer {trainer!r}", near(trainer, TRAINERS))
        return Tracker(template, search, trainer)

    def waive(self, node: Node | None) -> tuple[tuple[str, str], ...]:
        if node is None:
            return ()
        found = []
        for rule, (mark, value) in self.map_of(node, "waive").items():
            reason = value.value if value.kind == "scalar" else None
            if not isinstance(reason, str) or not reason.strip():
                self.complain(mark, f"waive {rule}: give the reason", f'{rule}: "why it is right here"')
            else:
                found.append((rule, reason))
        return tuple(sorted(found))


def _as_meant(value: Any, param: Param) -> Any:
    """4 and 4.0 are the same net where the argument is a float."""
    words = [word.strip() for word in param.annotation.split("|")]
    is_float = "float" in words and "int" not in words
    return float(value) if is_float and type(value) is int else value


def _absurd(value: Any, limit: int) -> str:
    """The first number in an argument that no network could mean, and the limit."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return ""
    if isinstance(value, Mapping):
        inner = ((v, MAX_WINDOW if k in _WINDOWS else limit) for k, v in value.items())
        return next((bad for v, most in inner if (bad := _absurd(v, most))), "")
    if isinstance(value, (list, tuple)):
        return next((bad for v in value if (bad := _absurd(v, limit))), "")
    return "" if abs(value) <= limit else f"{value} (at most {limit:,})"


# ---------------------------------------------------------------------------------------------- --set


def apply_set(root: Node, edits: Sequence[str]) -> None:
    """Change the document by `PATH=VALUE` edits: `s8.0.kernel=5`, `defaults.act=relu6`, `tracker.search=303`.

    A path starts with a stage's name or a top-level key; a number picks a row of a stage.
    """
    complaints: list[Complaint] = []
    for edit in edits:
        path, equals, text = edit.partition("=")
        where = Mark(f"--set {edit}", 1, 1)
        if not equals or not path.strip():
            complaints.append(Complaint(where, "expected PATH=VALUE", "for instance --set s8.0.kernel=5"))
            continue
        try:
            value = read_yaml(text or "null", f"--set {edit}")
        except SpecError as error:
            column = len(path) + 1  # of the value in what was typed
            places = [c.mark.column if c.mark and c.mark.line == 1 else len(text) for c in error.complaints]
            complaints += [
                replace(c, mark=replace(where, column=column + at))
                for c, at in zip(error.complaints, places, strict=True)
            ]
            continue
        _shift(value, len(path) + 1)
        if problem := _assign(root, path.strip().split("."), value):
            complaints.append(Complaint(where, *problem))
    if complaints:
        raise SpecError(complaints)


def _shift(node: Node, columns: int) -> None:
    node.mark = replace(node.mark, column=node.mark.column + columns)
    if node.kind == "list":
        for item in node.value:
            _shift(item, columns)
    elif node.kind == "map":
        for key, (mark, item) in list(node.value.items()):
            _shift(item, columns)
            node.value[key] = (replace(mark, column=mark.column + columns), item)


def _assign(root: Node, path: list[str], value: Node) -> tuple[str, str] | None:
    if root.kind != "map":
        return "the spec is not a map", ""
    stages_node = root.value["stages"][1] if "stages" in root.value else None
    stages = stages_node.value if stages_node is not None and stages_node.kind == "map" else {}
    if path[0] == "stages" and len(path) > 1 and path[1] in stages:
        path = path[1:]
    is_stage = path[0] in stages
    if not is_stage and path[0] not in _TOP_KEYS:
        return f"no stage or top-level key {path[0]!r}", near(path[0], [*stages, *_TOP_KEYS])
    node = stages_node if is_stage and stages_node is not None else root
    if is_stage and len(path) > 1 and path[1].isdecimal() and stages[path[0]][1].kind == "map":
        if int(path[1]) != 0:
            return f"{'.'.join(path)}: stage {path[0]} has one row, numbered 0", ""
        del path[1]  # a stage written as a single row: s4.0.kernel means s4.kernel
    for step, key in enumerate(path):
        is_last = step == len(path) - 1
        if node.kind == "list":
            if not key.isdecimal() or int(key) >= len(node.value):
                whole = "items" if not is_stage else "rows"
                return f"{'.'.join(path)}: {key!r} is no number of one", f"{whole} are 0 to {len(node.value) - 1}"
            if is_last:
                node.value[int(key)] = value
            else:
                node = node.value[int(key)]
        elif node.kind == "map":
            if is_last:
                node.value[key] = (value.mark, value)
            else:
                if key not in node.value:
                    node.value[key] = (value.mark, _inherited(root, node, key, value.mark))
                node = node.value[key][1]
        else:
            return f"{'.'.join(path)}: {key!r} is inside the plain value {node.shown()}", ""
    return None


def _inherited(root: Node, row: Node, key: str, mark: Mark) -> Node:
    """What `se.ratio` changes in a row that has no `se` of its own: that of its define, of the defaults, or nothing."""

    def inside(node: Node | None, name: object) -> Node | None:
        is_there = node is not None and node.kind == "map" and isinstance(name, str) and name in node.value
        return node.value[name][1] if node is not None and is_there else None

    block = inside(row, "block")
    defined = inside(inside(root, "define"), block.value if block is not None and block.kind == "scalar" else None)
    for place in (defined, inside(root, "defaults") if block is not None else None):
        found = inside(place, key)
        if found is not None:
            return copy.deepcopy(found) if found.kind == "map" else Node("map", {}, mark)
    return Node("map", {}, mark)


# ---------------------------------------------------------------------------------------------- entry points


def parse(
    text: str,
    kinds: Mapping[str, BlockInfo],
    *,
    file: str = "<text>",
    name: str = "unnamed",
    edits: Sequence[str] = (),
) -> ArchSpec:
    """An ArchSpec from YAML text. Raises SpecError with every mistake found, each with file:line:column."""
    root = read_yaml(text, file)
    apply_set(root, edits)
    parser = _Parser(kinds)
    spec = parser.document(root, name)
    if parser.complaints or spec is None:
        raise SpecError(parser.complaints, sound=parser.sound)
    return spec


def read_text(path: Path) -> str:
    """The text of a spec file. Raises BblabError with a remedy for what is missing, a folder, too large or binary."""
    try:
        if path.is_dir():
            raise BblabError(f"{path} is a folder", hint="name a .yaml file in it")
        with path.open("rb") as file:  # a bounded read: a device or a pipe has no size to look at
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            size = f"{path.stat().st_size:,} bytes" if path.is_file() else "endless"
            raise BblabError(f"{path}: {size}; a spec has at most {MAX_FILE_BYTES:,} bytes", hint="is this a spec?")
        return data.decode("utf-8-sig")
    except FileNotFoundError:
        raise BblabError(f"no file {path}", hint="check the path; `bblab specs` lists the built-in names") from None
    except UnicodeDecodeError as error:
        raise BblabError(f"{path}: not UTF-8 text (byte {error.start})", hint="save it as UTF-8") from None
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or error
        raise BblabError(f"{path}: {said}", hint="check the path and its permissions") from None


def resolve(
    reference: str,
    rooms: Rooms,
    kinds: Mapping[str, BlockInfo],
    *,
    edits: Sequence[str] = (),
) -> ArchSpec:
    """A spec from what a person types: a built-in or lab name, a path, `timm:NAME`, and any of them cut (`@s16`)."""
    base, at, cut = reference.rpartition("@")
    if not at or "/" in cut or "\\" in cut or cut.endswith((".yaml", ".yml")):
        base, at, cut = reference, "", ""
    if at and not cut:
        raise BblabError(f"{reference!r} ends with @", hint=f"a cut is {base}@s16 or {base}@STAGE")
    library, colon, _ = base.partition(":")
    is_path = base.endswith((".yaml", ".yml")) or "/" in base or "\\" in base
    if colon and library not in LIBRARIES and not is_path:
        raise BblabError(f"no library {library!r}", hint=near(library, LIBRARIES))
    if library in LIBRARIES and colon:
        if edits:
            raise BblabError(f"--set cannot change {base}: its layers are {library}'s", hint="write a spec instead")
        if not base.partition(":")[2]:
            raise BblabError(f"{base!r} names no network", hint=f"for instance {library}:resnet18")
        return ArchSpec(name=reference, library=base, cut=cut or None)
    if is_path:
        path = expanded(base)
    else:
        known = rooms.files("arch_specs", ".yaml")
        if base not in known:
            hint = (
                near(base, known) + "\n  all: bblab specs; a file has its ending (./my.yaml); timm's nets are timm:NAME"
            )
            raise BblabError(f"no spec {base[:MAX_NAME]!r}", hint=hint)
        path = known[base]
    spec = parse(read_text(path), kinds, file=_shown(path), name=path.stem, edits=edits)
    return cut_at(spec, cut) if at else spec


def usable(kinds: Mapping[str, BlockInfo]) -> set[str]:
    """The kinds that a row may name."""
    return {kind for kind, info in kinds.items() if not info.refusal}


def expanded(path: str | Path) -> Path:
    """The path with ~ as the home folder. Raises BblabError for the home of nobody."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise BblabError(f"{path}: {error}", hint="write the path in full") from None


def _shown(path: Path) -> str:
    """The path as a person would type it: relative to where they stand when that is shorter."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def cut_at(spec: ArchSpec, where: str) -> ArchSpec:
    """The spec up to a stage (`@layer2`) or to the last stage at a stride (`@s16`), without its head."""
    names = [s.name for s in spec.stages]
    total, strides = 1, []
    for stage in spec.stages:
        total *= stage.stride
        strides.append(total)
    if where in names:
        last = names.index(where)
    elif where[:1] == "s" and where[1:].isdecimal():
        matches = [i for i, s in enumerate(strides) if s == int(where[1:])]
        if not matches:
            listing = ", ".join(f"{n} at {s}" for n, s in zip(names, strides, strict=True))
            raise BblabError(f"{spec.name} has no stage at stride {where[1:]}", hint=f"its stages: {listing}")
        last = matches[-1]
    else:
        raise BblabError(f"cannot cut {spec.name} at {where!r}", hint=near(where, [*names, "s8", "s16"]))
    stages = spec.stages[: last + 1]
    return replace(spec, name=f"{spec.name}@{where}", stages=stages, taps=(names[last],), head=None)
