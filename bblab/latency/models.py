"""Converted models, remembered by content, each checked once against torch.

A model file has a sidecar (`.json`) with its hash, its error against torch and what made it. A file that does not
match its sidecar is converted again. The folder is safe to delete.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bblab.errors import BblabError, RunError
from bblab.latency.runtimes import Runtime
from bblab.latency.values import Candidate
from bblab.rooms import cache_dir

if TYPE_CHECKING:
    from torch import Tensor, nn

MAX_REL_ERROR = 1e-3  # float32 conversions measured here stay below 4e-5; more means another net
CHECK_SEED = 20_240_229  # any fixed number


class CannotConvert(RunError):
    """A net that a runtime cannot take, or takes for another net: `label` says which. Others may do."""

    def __init__(self, label: str, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.label = label


@dataclass(frozen=True, slots=True)
class Model:
    """A converted model on this machine."""

    path: Path
    sha256: str
    bytes: int
    rel_error: float


def converted(candidate: Candidate, runtime: Runtime) -> Model:
    """The candidate's model file, converted now or remembered.

    Raises CannotConvert if the runtime refuses it or disagrees with torch, RunError where the disk is full.
    """
    path = cached_path(candidate, runtime)
    remembered = _remembered(path)
    if remembered is not None:
        return remembered
    temporary = path.with_name(f"{path.stem}.{os.getpid()}.tmp{runtime.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            rel_error = _convert(candidate, runtime, temporary)
            model = Model(path, _sha256(temporary), temporary.stat().st_size, rel_error)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        _write_sidecar(model, candidate, runtime)
    except OSError as error:
        if is_full(error):
            raise _no_space(candidate.label, runtime) from error
        raise
    return model


def is_remembered(candidate: Candidate, runtime: Runtime) -> bool:
    return _sidecar(cached_path(candidate, runtime)).is_file()


def cached_path(candidate: Candidate, runtime: Runtime) -> Path:
    parts = (candidate.key, candidate.form, candidate.input, runtime.name, runtime.version(), runtime.settings())
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
    return cache_dir() / "models" / (digest + runtime.suffix)


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _remembered(path: Path) -> Model | None:
    try:
        record = json.loads(_sidecar(path).read_text(encoding="utf-8"))
        if record["sha256"] != _sha256(path):
            return None
        return Model(path, record["sha256"], record["bytes"], record["rel_error"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # absent, cut off or of another version: convert again


def _write_sidecar(model: Model, candidate: Candidate, runtime: Runtime) -> None:
    record: dict[str, Any] = {
        "sha256": model.sha256,
        "bytes": model.bytes,
        "rel_error": model.rel_error,
        "key": candidate.key,
        "spec": candidate.spec,
        "form": candidate.form,
        "input": candidate.input,
        "runtime": runtime.name,
        "runtime_version": runtime.version(),
        "settings": runtime.settings(),
    }
    sidecar = _sidecar(model.path)
    temporary = sidecar.with_name(f"{sidecar.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(record, indent=1), encoding="utf-8")
    temporary.replace(sidecar)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _convert(candidate: Candidate, runtime: Runtime, path: Path) -> float:
    import torch

    shape = (1, *candidate.input)
    module = candidate.make_module().eval()
    try:
        runtime.convert(module, shape, path)
    except Exception as error:
        hint = "a block that the exporter does not know must be written with other operations"
        raise _refusal(candidate.label, runtime, "convert", error, hint) from error
    x = check_image(shape)
    with torch.no_grad():
        truth = [t.float().numpy() for t in flat_outputs(module.cpu(), x)]
    threads = torch.get_num_threads()
    try:
        got = runtime.load(str(path), 1).run(x.numpy())
    except Exception as error:
        hint = "another runtime may take it, or write that operation with others"
        raise _refusal(candidate.label, runtime, "run", error, hint) from error
    finally:
        torch.set_num_threads(threads)  # a runtime made of torch has set its own
    limit = getattr(runtime, "max_rel_error", MAX_REL_ERROR)
    return checked_error(candidate.label, runtime.name, truth, got, limit)


def _refusal(label: str, runtime: Runtime, what: str, error: Exception, hint: str) -> BblabError:
    """What a failure of a runtime is: a full disk, a thing missing on this machine, or one net that it cannot take.

    Exporters raise anything; the first line says what, the cause keeps the rest.
    """
    if is_full(error):
        return _no_space(label, runtime)
    if isinstance(error, BblabError) and not isinstance(error, RunError):
        return error
    if isinstance(error, RunError):
        return CannotConvert(label, f"{label}: {error.message}", hint=error.hint or hint)
    first = (str(error).strip().splitlines() or [""])[0]
    text = f"{label}: {runtime.name} cannot {what} it ({type(error).__name__}: {first[:300]})"
    return CannotConvert(label, text, hint=hint)


def is_full(error: BaseException) -> bool:
    """Whether a disk without space is behind it: exporters and their programs put that into errors of their own."""
    at: BaseException | None = error
    while at is not None:
        if isinstance(at, OSError) and at.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if os.strerror(errno.ENOSPC) in str(at):
            return True
        at = at.__cause__ or at.__context__
    return False


def _no_space(label: str, runtime: Runtime) -> RunError:
    return RunError(
        f"{label}: the disk is full, it could not be converted for {runtime.name}",
        hint=f"free some space in {cache_dir()} and in the folder for temporary files, or set BBLAB_CACHE and TMPDIR",
    )


def check_image(shape: tuple[int, ...]) -> Tensor:
    """A random image with structure at every scale, as a photo has.

    On white noise a net with random weights is ill-conditioned: mobileone_k5_se in float32 was then off itself in
    float64 by 1e-4, on such an image by 2e-5.
    """
    import torch

    generator = torch.Generator().manual_seed(CHECK_SEED)
    height, width = shape[-2:]
    image = torch.zeros(shape)
    step = 1
    while step < max(height, width):
        coarse = torch.randn(*shape[:-2], -(-height // step) + 1, -(-width // step) + 1, generator=generator)
        image += torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear") * step**0.5
        step *= 2
    return image / image.std().clamp_min(1e-6)


def flat_outputs(module: nn.Module, x: Tensor) -> list[Tensor]:
    """A module's outputs as a list, whether it returns one tensor or a nest of tuples, lists and dicts."""
    import torch

    def walk(value: object) -> list[Tensor]:
        if isinstance(value, torch.Tensor):
            return [value]
        if isinstance(value, dict):
            value = list(value.values())
        assert isinstance(value, (tuple, list)), f"a module returned a {type(value).__name__}"
        return [t for v in value for t in walk(v)]

    return walk(module(x))


def checked_error(label: str, runtime: str, truth: list[Any], got: Any, limit: float = MAX_REL_ERROR) -> float:
    """The largest relative error over the outputs. Raises CannotConvert if non-finite or above the limit."""
    import numpy as np

    if len(truth) != len(got):
        raise CannotConvert(label, f"{label}: torch gives {len(truth)} output(s), {runtime} {len(got)}")
    worst = 0.0
    for place, (a, b) in enumerate(zip(truth, got, strict=True)):
        if a.shape != b.shape:
            raise CannotConvert(label, f"{label}: output {place} is {a.shape} in torch, {b.shape} in {runtime}")
        if not np.isfinite(a).all():
            raise CannotConvert(
                label,
                f"{label}: output {place} is not finite in torch itself",
                hint="calibrate its BN statistics by one forward in training mode, or load weights",
            )
        scale, difference = float(np.abs(a).max(initial=0.0)), float(np.abs(a - b).max(initial=0.0))
        # An output that vanished altogether can only be compared in absolute terms.
        error = difference / scale if scale > 0 else difference
        if not math.isfinite(error) or error > limit:
            raise CannotConvert(
                label,
                f"{label}: output {place} in {runtime} is off torch's by {error:.2g} of its maximum, over {limit:g}",
                hint="its latency would be another net's; look for an operation that the conversion changes",
            )
        worst = max(worst, error)
    return worst
