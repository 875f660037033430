"""Weight files: read safely, fitted to a module's keys, written whole or not at all.

safetensors, or a torch checkpoint read with `weights_only=True`; nothing here runs code from a file.
"""

from __future__ import annotations

import errno
import hashlib
import os
import pickle
import warnings
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bblab.errors import BblabError, RunError
from bblab.weights.verifying import verify, verify_content

State = dict[str, Tensor]
Shapes = Mapping[str, tuple[int, ...]]

FORMAT = "bblab-weights-1"
HEAD = "head."
"""Where a spec's classifier is in a state dict."""
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state_dict", "module", "net")
"""Keys under which trainers keep the weights, the best first. timm's `state_dict_ema` is the average that its
evaluation uses; mmengine's `state_dict` is the average already, its `ema_state_dict` the raw weights."""

CONVERT = (
    "where you trust the file, convert it in the environment that wrote it: "
    "python -c \"import torch; c = torch.load('IN.pth', map_location='cpu', weights_only=False); "
    "s = c.get('state_dict', c) if isinstance(c, dict) else c.state_dict(); "
    "torch.save({k: v for k, v in s.items() if torch.is_tensor(v)}, 'OUT.pth')\""
)


@dataclass(frozen=True, slots=True)
class WeightFile:
    """What a file held. `wrapper`: the key that the weights stood under. `metadata`: only safetensors has it."""

    path: Path
    state: State
    metadata: Mapping[str, str]
    sha256: str
    wrapper: str = ""
    others: tuple[str, ...] = ()

    @property
    def is_ours(self) -> bool:
        return self.metadata.get("format") == FORMAT


# ---------------------------------------------------------------------------------------------- reading


def load(path: Path | str) -> tuple[State, dict[str, str]]:
    """The tensors and the metadata of a weight file. Raises BblabError with a remedy for whatever it is not."""
    found = read(path)
    return found.state, dict(found.metadata)


def read(path: Path | str) -> WeightFile:
    """Read a weight file, unwrapped. Raises BblabError: missing, truncated, a foreign pickle, no tensors."""
    path = Path(path).expanduser()
    try:
        if path.is_dir():
            raise BblabError(f"{path} is a folder", hint="name a .safetensors, .pth or .pt file in it")
        with path.open("rb") as file:
            start = file.read(16)
            digest = hashlib.sha256(start)
            while piece := file.read(1 << 20):
                digest.update(piece)
    except FileNotFoundError:
        raise BblabError(
            f"no file {path}", hint="check the path; another library's net is timm:NAME or torchvision:NAME"
        ) from None
    except OSError as error:
        raise BblabError(f"{path}: {error.strerror}", hint="check the path and its permissions") from None
    if not start:
        raise BblabError(f"{path} is empty", hint="copy or download it again")
    verify(path, digest.hexdigest())
    if path.suffix == ".safetensors" or start[8:9] == b"{":
        state, metadata = _read_safetensors(path)
        verify_content(path, state, metadata)
        return WeightFile(path, state, metadata, digest.hexdigest())
    if start[:2] != b"PK" and start[:1] != b"\x80":
        raise BblabError(
            f"{path} is neither a safetensors file nor a torch checkpoint (it begins with {start[:8]!r})",
            hint="give the .safetensors, .pth or .pt file itself, not an archive or a web page around it",
        )
    state, wrapper, others = _unwrap(unpickled(path), path)
    return WeightFile(path, state, {}, digest.hexdigest(), wrapper, others)


def _read_safetensors(path: Path) -> tuple[State, dict[str, str]]:
    import safetensors

    try:
        with safetensors.safe_open(path, framework="pt") as file:
            # clone: the file may be written over while its pages are mapped
            return {key: file.get_tensor(key).clone() for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise BblabError(
            f"{path} is no whole safetensors file: {error}",
            hint="it was cut off or is something else: copy or download it again",
        ) from None
    except OSError as error:
        raise BblabError(f"{path} cannot be read: {error}", hint="check the file and its permissions") from None


def unpickled(path: Path) -> Any:
    """Content of a torch checkpoint: tensors, plain data and numpy's numbers, and nothing that could run code.

    Trackers' trainers keep the optimizer's learning rate as a numpy.float64. Raises BblabError for anything else.
    """
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(numpy_numbers()):
            warnings.simplefilter("ignore")  # torch's doubts about a pickle that is then read, or refused in words
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        said = str(error)
        foreign = said.partition("GLOBAL ")[2].split(" ")[0].rstrip(".") if "GLOBAL " in said else ""
        if foreign or "Unsupported" in said or "WeightsUnpickler" in said:
            what = f"it holds {foreign}" if foreign else "it holds more than tensors and plain data"
            raise BblabError(f"{path} is refused: {what}, and loading that could run code", hint=CONVERT) from None
        raise BblabError(f"{path} cannot be read: {said.splitlines()[0]}", hint="copy or download it again") from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError) as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        hint = "copy or download it again"
        if "TorchScript" in str(error):
            hint = "a TorchScript archive: torch.save(torch.jit.load(IN).state_dict(), OUT) where you trust it"
        raise BblabError(f"{path} is no whole torch checkpoint: {said}", hint=hint) from None


def numpy_numbers() -> list[Any]:
    """What a pickled numpy number names: its constructor (under both names that numpy gave it) and its type.

    Types that could hold objects are not among them, nor are arrays.
    """
    import numpy as np

    made: Any = np.float64(0).__reduce__()[0]  # numpy's own `scalar`
    numbers = (np.bool_, np.integer, np.floating, np.complexfloating)
    kinds = {type(np.dtype(t)) for t in np.sctypeDict.values() if issubclass(t, numbers)}
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    return [*((made, name) for name in names), np.dtype, *sorted(kinds, key=str)]


def _unwrap(value: Any, path: Path) -> tuple[State, str, tuple[str, ...]]:
    trail: list[str] = []
    others: list[str] = []
    for _ in range(4):
        if not isinstance(value, Mapping):
            break
        inside = [key for key in WRAPPERS if _holds_weights(value.get(key))]
        if not inside:
            break
        trail.append(inside[0])
        others += inside[1:]
        value = value[inside[0]]
    state = _tensors(value) if isinstance(value, Mapping) else {}
    if not state:
        keys = ", ".join(map(str, list(value)[:8])) if isinstance(value, Mapping) else type(value).__name__
        raise BblabError(
            f"{path} holds no weights (found: {keys})",
            hint=f"expected a state dict, or one under {', '.join(WRAPPERS)}",
        )
    return state, ".".join(trail), tuple(others)


def _tensors(value: Mapping[Any, Any]) -> State:
    return {k: v for k, v in value.items() if isinstance(k, str) and isinstance(v, Tensor)}


def _holds_weights(value: Any) -> bool:
    if not isinstance(value, Mapping):
        return False
    return bool(_tensors(value)) or any(_holds_weights(value.get(key)) for key in WRAPPERS)


def spec_of(metadata: Mapping[str, str], path: Path) -> str:
    """The canonical spec that a bblab file was written for."""
    text = metadata.get("spec", "")
    if not text:
        raise BblabError(f"{path} does not say which spec it was written for", hint="say so with --as SPEC")
    return text


# ---------------------------------------------------------------------------------------------- fitting keys


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(t.shape) for name, t in module.state_dict().items()}


def fit_keys(state: Mapping[str, Tensor], wanted: Shapes) -> tuple[State, str]:
    """The part of `state` whose keys are those of `wanted` behind one common prefix (`module.`, `backbone.`, ...).

    Returns the tensors under the wanted keys, and the prefix. Shapes are not looked at.
    """
    hits: dict[str, int] = {"": 0}
    known = set(wanted)
    for key in state:
        parts = key.split(".")
        for i in range(len(parts)):
            if ".".join(parts[i:]) in known:
                prefix = ".".join(parts[:i]) + "." * (i > 0)
                hits[prefix] = hits.get(prefix, 0) + 1
    best = max(hits, key=lambda p: (hits[p], -len(p)))
    return {k: state[best + k] for k in wanted if best + k in state}, best


def problems(state: Mapping[str, Tensor], wanted: Shapes, *, optional: Iterable[str] = ()) -> list[str]:
    """Why `state` cannot be loaded into a module of these shapes: absent keys and wrong shapes, in words."""
    free = tuple(optional)
    found = []
    for key, shape in wanted.items():
        if key not in state:
            if not key.endswith("num_batches_tracked") and not (free and key.startswith(free)):
                found.append(f"{key} {_shape(shape)}: not in the file")
        elif tuple(state[key].shape) != shape:
            found.append(f"{key}: {_shape(shape)} here, {_shape(state[key].shape)} in the file")
    return found


def other_head(state: Mapping[str, Tensor], wanted: Shapes) -> str:
    """How the head of `state` differs from that of `wanted`, in words; "" where it fits, or `state` has none."""
    given = {k: tuple(v.shape) for k, v in state.items() if k.startswith(HEAD)}
    asked = {k: v for k, v in wanted.items() if k.startswith(HEAD)}
    if not given or all(asked.get(k) == shape for k, shape in given.items()):
        return ""
    if not asked:
        return "the spec has no head"
    others = [k for k, shape in given.items() if asked.get(k) != shape]
    counts = {(given[k][0], asked[k][0]) for k in others if k in asked and len(given[k]) == len(asked[k]) > 0}
    if len(counts) == 1 and all(k in asked for k in others):
        there, here = counts.pop()
        if there != here:
            return f"{there} classes in the file, {here} here"
    name = others[0]
    return f"{name}: {_shape(asked[name]) if name in asked else 'not'} here, {_shape(given[name])} in the file"


def without_head(state: Mapping[str, Tensor]) -> State:
    return {k: v for k, v in state.items() if not k.startswith(HEAD)}


def groups(keys: Iterable[str]) -> str:
    """Tensors by the module that they belong to: "neck (6), ban_head (64)"."""
    counts: dict[str, int] = {}
    for key in keys:
        name = key.removeprefix("module.").partition(".")[0]
        counts[name] = counts.get(name, 0) + 1
    shown = [f"{name} ({count})" for name, count in counts.items()]
    return ", ".join(shown[:8]) + (f" and {len(shown) - 8} more" if len(shown) > 8 else "")


def _shape(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape)) or "one number"


def clean(state: Mapping[str, Tensor], where: str) -> tuple[State, list[str]]:
    """Float32 copies (counters keep their type) and what was converted. Raises BblabError for NaN and infinities."""
    notes: list[str] = []
    made: State = {}
    dtypes: dict[str, int] = {}
    bad: list[str] = []
    for key, t in state.items():
        if t.is_floating_point():
            if t.dtype != torch.float32:
                dtypes[str(t.dtype)[6:]] = dtypes.get(str(t.dtype)[6:], 0) + 1
            t = t.detach().to("cpu", torch.float32)
            if not torch.isfinite(t).all():
                bad.append(key)
        elif t.is_quantized or t.is_complex() or t.layout != torch.strided:
            raise BblabError(f"{where}: {key} is {t.dtype}, {t.layout}", hint="give plain float weights")
        made[key] = t.detach().to("cpu").clone(memory_format=torch.contiguous_format)
    if bad:
        listing = ", ".join(bad[:5]) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
        raise BblabError(
            f"{where}: not finite: {listing}", hint="that training diverged (or overflowed float32): take an older one"
        )
    notes += [f"{count} {dtype} tensors converted to float32" for dtype, count in dtypes.items()]
    return made, notes


# ---------------------------------------------------------------------------------------------- writing


def content_hash(state: Mapping[str, Tensor], spec_id: str = "") -> str:
    """sha256 over names, types, shapes and values, and the spec they are for: equal weights of two specs differ."""
    digest = hashlib.sha256(spec_id.encode())
    for key in sorted(state):
        t = state[key].detach().cpu().contiguous()
        digest.update(f"{key}|{t.dtype}|{tuple(t.shape)}|".encode())
        digest.update(t.flatten().view(torch.uint8).numpy().tobytes() if t.numel() else b"")
    return digest.hexdigest()


def save(weights: nn.Module | Mapping[str, Tensor], path: Path | str, metadata: Mapping[str, str]) -> Path:
    """Write a safetensors file by way of a temporary one beside it; nothing is left behind when that fails.

    Raises BblabError where another file of this name is, RunError where it cannot be written.
    """
    import safetensors.torch

    path = Path(path).expanduser()
    state = weights.state_dict() if isinstance(weights, nn.Module) else dict(weights)
    state = {k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in state.items()}
    content = content_hash(state, metadata.get("spec_id", ""))
    check_target(path, content)
    data = safetensors.torch.save(state, {**metadata, "format": FORMAT, "content_sha256": content})
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        hint = f"make room for {len(data) / 1e6:.0f} MB" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        raise RunError(
            f"{path} cannot be written: {error.strerror}",
            hint=hint or "name a file in a folder you can write to with --out FILE, or a lab with --lab DIR",
        ) from None
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
    return path


def check_target(path: Path, content: str) -> None:
    """Refuse to write over a file that holds other weights, or anything else."""
    if path.is_dir():
        raise BblabError(f"{path} is a folder", hint="give --out a file name that ends in .safetensors")
    if not path.exists():
        return
    with suppress(BblabError):
        if load(path)[1].get("content_sha256") == content:
            return
    raise BblabError(f"{path} exists already", hint="choose another name, or remove that file first")
