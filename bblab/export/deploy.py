"""The deploy form as files for the device: ONNX, ncnn or TorchScript, each checked on photos.

What a file is checked against is the train form in eval mode, with the weights in hand: the net that was trained.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import math
import subprocess
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

import bblab
from bblab.errors import BblabError, RunError
from bblab.export import fitting, photos
from bblab.export.carrying import Carried
from bblab.export.folder import MANIFEST, export_id, provenance_lines
from bblab.export.modules import InNorm
from bblab.installing import how_to_install
from bblab.latency.models import MAX_REL_ERROR
from bblab.spec import ArchSpec, BlockInfo

if TYPE_CHECKING:
    import numpy as np

FORMAT = "bblab-deploy-1"
Normalise = Literal["inside", "outside"]
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
CHECKED_BY = {"onnx": "ort", "ncnn": "ncnn"}
"""The runtime that checks a format."""


class OnDevice(nn.Module):
    """The fused net as the device runs it, with the input norm in front where that was asked for."""

    def __init__(self, net: nn.Module, norm: nn.Module | None) -> None:
        super().__init__()
        self.norm = norm
        self.net = net

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        found = self.net(x if self.norm is None else self.norm(x))
        return tuple(found)


@dataclass(frozen=True, slots=True)
class Size:
    """An input that a model is for: its role and side in pixels."""

    role: str
    px: int


@dataclass(frozen=True, slots=True)
class Model:
    """A converted model: its files by name, the sizes it is for, and its error per tap against the train form in torch.

    `conversion_errors`: against the deploy form in torch, hence what the conversion alone adds. `rounding`: in words,
    where it alone puts the deploy form more than 1e-3 off.
    """

    files: Mapping[str, bytes]
    sizes: tuple[Size, ...]
    is_dynamic: bool
    errors: Mapping[str, float]
    maps: Mapping[str, Mapping[str, Sequence[int]]]
    facts: Mapping[str, Any] = field(default_factory=dict)
    conversion_errors: Mapping[str, float] = field(default_factory=dict)
    rounding: str = ""


@dataclass(frozen=True, slots=True)
class Deployed:
    """All that was converted, and the files of the folder."""

    files: Mapping[str, bytes]
    manifest: Mapping[str, Any]
    warnings: tuple[str, ...]


def tap_names(spec: ArchSpec, count: int) -> list[str]:
    """The taps' stages as names of outputs; several maps of one stage are numbered."""
    names = list(spec.taps) if spec.taps and not spec.library else ["map"]
    if len(names) == count:
        return names
    return [f"{names[min(i, len(names) - 1)]}_{i}" for i in range(count)]


@dataclass(frozen=True, slots=True)
class Forms:
    """A net with its weights as it was trained and as the device runs it, both with the input norm where asked for.

    `notes`: what stays unfused. `judge` compares the two on inputs (by side): it returns how far they are apart, in
    words, where rounding alone passes the limit, nothing where they agree, and raises RunError where the deploy form is
    another function.
    """

    train: OnDevice
    deploy: OnDevice
    notes: tuple[str, ...]
    judge: Callable[[Mapping[int, Tensor]], str]


def forms(spec: ArchSpec, kinds: Mapping[str, BlockInfo], carried: Carried, normalise: Normalise) -> Forms:
    """Both forms of a net with its weights."""
    from bblab import build

    norm = None
    if normalise == "inside":
        norm = InNorm(carried.provenance.get("mean") or MEAN, carried.provenance.get("std") or STD)
    train = copy.deepcopy(carried.module).eval()
    made = build.deployed(carried.module, spec, kinds)

    def judge(inputs: Mapping[int, Tensor]) -> str:
        images = [x if norm is None else norm(x) for every in inputs.values() for x in every.split(1)]
        apart = build.compared_with(train, spec, kinds, images, made)
        if apart.is_another_function:
            raise RunError(
                f"{spec.name}: with these weights the deploy form computes another function than the train form: "
                f"off by {apart.words()}" + (f"; look at {', '.join(apart.where)}" if apart.where else ""),
                hint="nothing was written; mend the fuse method of that block (bblab check shows the difference), or "
                "take the method out: norms behind convolutions are folded without it",
            )
        is_note = apart.is_rounding and apart.in_float32 > MAX_REL_ERROR
        return f"the deploy form is off the train form by rounding alone: {apart.words()}" if is_note else ""

    notes = tuple(f"not fused: {where}: {why}" for where, why, _ in made.unfused)
    return Forms(OnDevice(train, norm).eval(), OnDevice(made.module, norm).eval(), notes, judge)


def form_notes(spec: ArchSpec, kinds: Mapping[str, BlockInfo], carried: Carried, found: fitting.Maps) -> list[str]:
    """What a person should know of a net's deploy form with these weights, before a trainer gets it.

    Raises RunError where the deploy form is another function than the train form.
    """
    shown = photos.shipped()[:2]
    sides = (found.template_px, found.search_px)
    net = forms(spec, kinds, carried, "outside")
    rounding = net.judge({px: feed(photos.crops(shown, px), "outside", carried.provenance) for px in sides})
    return [*net.notes, *([rounding] if rounding else [])]


def feed(crops: np.ndarray, normalise: Normalise, provenance: Mapping[str, Any]) -> Tensor:
    """Photos (N, H, W, 3, RGB, uint8) as the model takes them: N, 3, H, W."""
    rgb = torch.from_numpy(crops).permute(0, 3, 1, 2).float()
    if normalise == "inside":
        return rgb.flip(1).contiguous()
    mean = torch.tensor(provenance.get("mean") or MEAN).view(1, 3, 1, 1)
    std = torch.tensor(provenance.get("std") or STD).view(1, 3, 1, 1)
    return (rgb - mean) / std


# ---------------------------------------------------------------------------------------------- converting


def to_onnx(module: nn.Module, px: int, channels: int, names: Sequence[str], *, dynamic: bool, path: Path) -> None:
    """The eval-mode module as an ONNX file with named input and outputs."""
    from bblab.latency.runtimes.ort import OPSET

    axes: dict[str, dict[int, str]] = {"input": {2: "height", 3: "width"}}
    axes |= {name: {2: f"{name}_height", 3: f"{name}_width"} for name in names}
    log = logging.getLogger("torch.onnx")
    level = log.level
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch 2.13 announces the end of this exporter, and every traced `if`
        log.setLevel(logging.ERROR)
        try:
            torch.onnx.export(
                module,
                (torch.zeros(1, channels, px, px),),
                str(path),
                opset_version=OPSET,
                dynamo=False,
                do_constant_folding=True,
                training=torch.onnx.TrainingMode.EVAL,
                input_names=["input"],
                output_names=list(names),
                dynamic_axes=axes if dynamic else None,
            )
        finally:
            log.setLevel(level)


def to_torchscript(module: nn.Module, px: int, channels: int, path: Path) -> None:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(module, torch.zeros(1, channels, px, px), check_trace=False)
        traced.save(str(path))


def to_ncnn(module: nn.Module, sides: Sequence[int], channels: int, path: Path) -> None:
    """ncnn's two files, by pnnx, in a zip; for two sides the sizes stay open between them."""
    try:
        import pnnx
    except ImportError:
        raise BblabError("--to ncnn needs pnnx", hint=how_to_install("pnnx"), exit_code=1) from None
    from bblab.latency.runtimes.ncnn import FILES

    with tempfile.TemporaryDirectory(prefix="bblab-pnnx-") as folder:
        to_torchscript(module, sides[0], channels, Path(folder) / "model.pt")
        shapes = [f"[1,{channels},{px},{px}]" for px in sides]
        wanted = [f"inputshape{'' if i == 0 else i + 1}={shape}" for i, shape in enumerate(shapes)]
        done = subprocess.run(
            [pnnx.EXEC_PATH, "model.pt", *wanted, "fp16=0"],
            cwd=folder,
            capture_output=True,
            text=True,
            errors="replace",
        )
        made = [Path(folder) / name for name in FILES]
        if done.returncode != 0 or not all(file.is_file() for file in made):
            words = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
            raise RuntimeError(f"pnnx ended with code {done.returncode}: {' / '.join(words[-3:])}")
        with zipfile.ZipFile(path, "w") as packed:
            for file in made:
                packed.writestr(zipfile.ZipInfo(file.name), file.read_bytes())


def _runner(to: str, path: Path) -> Any:
    """Something with `run(x)` for a converted file."""
    if to == "torchscript":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = torch.jit.load(str(path))

        class Script:
            def run(self, x: Any) -> list[Any]:
                with torch.no_grad():
                    return [t.numpy() for t in loaded(torch.from_numpy(x))]

        return Script()
    from bblab.latency import runtimes

    return runtimes.find(CHECKED_BY[to]).load(str(path), 1)


def convert(
    to: str, net: Forms, spec: ArchSpec, sizes: Sequence[Size], *, dynamic: bool, stem: str, inputs: Any
) -> Model:
    """The deploy form as one model for these sizes, checked on `inputs` (by side) against both forms in torch.

    Raises RunError where it cannot be converted, differs from the deploy form by more than 1e-3 of a tap's largest
    value, or from the train form by that, unless rounding in the fold explains it.
    """
    module = net.deploy
    with torch.no_grad():
        truth, fused = (
            {size.px: [[t.numpy() for t in form(x[None])] for x in inputs[size.px]] for size in sizes}
            for form in (net.train, net.deploy)
        )
    names = tap_names(spec, len(truth[sizes[0].px][0]))
    suffix = {"onnx": ".onnx", "ncnn": ".zip", "torchscript": ".pt"}[to]
    with tempfile.TemporaryDirectory(prefix="bblab-export-") as folder:
        path = Path(folder) / f"{stem}{suffix}"
        channels = spec.input[0]
        try:
            if to == "onnx":
                to_onnx(module, sizes[-1].px, channels, names, dynamic=dynamic, path=path)
            elif to == "torchscript":
                to_torchscript(module, sizes[-1].px, channels, path)
            else:
                to_ncnn(module, [s.px for s in sizes], channels, path)
            runner = _runner(to, path)
            errors, converting = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
            maps: dict[str, dict[str, list[int]]] = {}
            for size in sizes:
                for x, trained, wanted in zip(inputs[size.px], truth[size.px], fused[size.px], strict=True):
                    got = runner.run(x[None].numpy())
                    for name, a, b, c in zip(names, trained, wanted, got, strict=True):
                        if a.shape != c.shape:
                            raise ValueError(f"{name} is {c.shape} at {size.px} px, {a.shape} in torch")
                        errors[name] = max(errors[name], _rel_error(a, c))
                        converting[name] = max(converting[name], _rel_error(b, c))
                maps[size.role] = {n: list(a.shape[1:]) for n, a in zip(names, truth[size.px][0], strict=True)}
        except BblabError:
            raise
        except Exception as error:  # exporters raise anything; the first line says what, the cause keeps the rest
            said = (str(error).strip().splitlines() or [""])[0][:300]
            open_ = " with open sizes" if dynamic else ""
            hint = "leave --dynamic away: one file a size" if dynamic else "another --to may take it"
            raise RunError(
                f"{spec.name}: {to}{open_} cannot take it: {type(error).__name__}: {said}", hint=hint
            ) from error
        _refuse(converting, f"{spec.name}: in {to} taps are off torch's")
        rounding = ""
        if max(errors.values()) > MAX_REL_ERROR:
            rounding = net.judge({size.px: inputs[size.px] for size in sizes})
            if not rounding:
                _refuse(errors, f"{spec.name}: in {to} taps are off those of the train form")
        files = _unpacked(path, stem) if to == "ncnn" else {path.name: path.read_bytes()}
    return Model(files, tuple(sizes), dynamic, errors, maps, conversion_errors=converting, rounding=rounding)


def _refuse(errors: Mapping[str, float], what: str) -> None:
    """Raise RunError with the taps whose error is above the limit, where there are any."""
    bad = {name: e for name, e in errors.items() if not e <= MAX_REL_ERROR}
    if bad:
        raise RunError(
            f"{what}, more than {MAX_REL_ERROR:g} of the largest value: "
            + ", ".join(f"{name} by {e:.2g}" for name, e in bad.items()),
            hint="nothing was written; look for an operation that the conversion changes",
        )


def _rel_error(truth: Any, other: Any) -> float:
    """The largest difference over the largest value; infinite where a value is not finite."""
    import numpy as np

    apart = float(np.abs(truth - other).max() / max(float(np.abs(truth).max()), 1e-12))
    return apart if math.isfinite(apart) else math.inf


def _unpacked(path: Path, stem: str) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as packed:
        return {f"{stem}.{name.rpartition('.')[2]}": packed.read(name) for name in packed.namelist()}


# ---------------------------------------------------------------------------------------------- the folder


def deploy(
    spec: ArchSpec,
    kinds: Mapping[str, BlockInfo],
    carried: Carried,
    found: fitting.Maps,
    *,
    to: str,
    dynamic: bool = False,
    normalise: Normalise = "outside",
    int8: bool = False,
    calibration: Sequence[photos.Photo] = (),
    latency: Sequence[Mapping[str, Any]] = (),
    code_version: str = "",
) -> Deployed:
    """Models for template and search, their manifest and a README; nothing is written.

    Raises RunError where a conversion fails, or what it computes is not what was trained.
    """
    sizes = [Size("template", found.template_px), Size("search", found.search_px)]
    shown = photos.shipped()
    inputs = {s.px: feed(photos.crops(shown, s.px), normalise, carried.provenance) for s in sizes}
    net = forms(spec, kinds, carried, normalise)
    stem = "".join(c if c.isalnum() or c in "-_." else "_" for c in Path(spec.name).name)
    models = []
    if dynamic:
        models.append(convert(to, net, spec, sizes, dynamic=True, stem=stem, inputs=inputs))
    else:
        for size in sizes:
            name = f"{stem}_{size.role}_{size.px}"
            models.append(convert(to, net, spec, [size], dynamic=False, stem=name, inputs=inputs))
    notes = [*net.notes, *dict.fromkeys(model.rounding for model in models if model.rounding)]
    quantised: list[dict[str, Any]] = []
    if int8:
        from bblab.export import int8 as quantising

        is_random = bool(carried.provenance.get("is_random"))
        has_branches = _has_branches(carried.module, net.deploy)
        for model in list(models):
            result = quantising.quantise(
                model, spec, net.train, normalise, carried.provenance, calibration or shown, shown, has_branches
            )
            models.append(result.model)
            quantised.append(result.to_json())
            notes += [f"{w} (with random weights this says little)" if is_random else w for w in result.warnings]
    if not shown[0].is_real:
        notes.append(f"checked on made-up images: scikit-image would bring photos ({how_to_install('scikit-image')})")
    if carried.provenance.get("is_random"):
        notes.append("random weights: good for latency, not for a tracker (--run ID or --weights FILE)")
    files = {name: content for model in models for name, content in model.files.items()}
    manifest = _manifest(spec, carried, found, models, quantised, shown, latency, to, normalise, code_version, notes)
    manifest["export_id"] = export_id(files)
    files["README.md"] = _readme(spec, manifest).encode()
    manifest["files"] = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    files[MANIFEST] = (json.dumps(manifest, indent=1, ensure_ascii=False, default=str) + "\n").encode()
    return Deployed(files, manifest, tuple(notes))


def _has_branches(train: nn.Module, fused: nn.Module) -> bool:
    def convolutions(module: nn.Module) -> int:
        return sum(isinstance(m, nn.Conv2d) for m in module.modules())

    return convolutions(train) > 1.2 * convolutions(fused)


def _manifest(
    spec: ArchSpec,
    carried: Carried,
    found: fitting.Maps,
    models: Sequence[Model],
    quantised: Sequence[Mapping[str, Any]],
    shown: Sequence[photos.Photo],
    latency: Sequence[Mapping[str, Any]],
    to: str,
    normalise: Normalise,
    code_version: str,
    notes: Sequence[str],
) -> dict[str, Any]:
    from bblab.latency.runtimes.ort import OPSET

    mean = list(carried.provenance.get("mean") or MEAN)
    std = list(carried.provenance.get("std") or STD)
    rows = []
    for model in models:
        for name, content in model.files.items():
            rows.append(
                {
                    "file": name,
                    "sha256": hashlib.sha256(content).hexdigest(),
                    "bytes": len(content),
                    "for": [{"role": s.role, "px": s.px} for s in model.sizes],
                    "dynamic": model.is_dynamic,
                    "outputs": {role: dict(maps) for role, maps in model.maps.items()},
                    "max_rel_error": dict(model.errors),
                    **({"conversion_rel_error": dict(model.conversion_errors)} if model.conversion_errors else {}),
                    **model.facts,
                }
            )
    return {
        "format": FORMAT,
        "export_id": "",
        "bblab": bblab.__version__,
        "code_version": code_version,
        "target": to,
        "variant": "",
        "spec": {"name": spec.name, "spec_id": spec.spec_id, "about": spec.about, "canonical": spec.canonical},
        "form": "deploy (fused)",
        "opset": OPSET if to == "onnx" else None,
        "torch": torch.__version__,
        "input": {
            "name": "input" if to == "onnx" else "in0" if to == "ncnn" else "x",
            "layout": "1, 3, height, width; float32",
            "normalised_in_module": normalise == "inside",
            "feeds": "BGR, 0 to 255" if normalise == "inside" else "RGB, (pixel - mean) / std",
            "mean": mean,
            "std": std,
        },
        "models": rows,
        "int8": list(quantised),
        "geometry": {**found.to_json(), "channels": found.channels},
        "checked": {
            "against": f"torch {torch.__version__}, train form in eval mode, these weights, float32",
            "images": [p.name for p in shown],
            "are_photos": all(p.is_real for p in shown),
            "allowed_rel_error": MAX_REL_ERROR,
        },
        "latency": [dict(row) for row in latency],
        "provenance": dict(carried.provenance),
        "notes": list(notes),
    }


def _readme(spec: ArchSpec, manifest: Mapping[str, Any]) -> str:
    given = manifest["input"]
    lines = [
        f"# {spec.name} for the device ({manifest['target']})",
        "",
        f"The deploy form: branches and norms folded. Input `{given['name']}`: {given['layout']}; {given['feeds']}.",
        "",
        "| file | for | outputs | off the train form | size |",
        "|---|---|---|---|---|",
    ]
    for row in manifest["models"]:
        role = ", ".join(f"{s['role']} {s['px']} px" for s in row["for"]) + (" (open sizes)" if row["dynamic"] else "")
        maps = "; ".join(
            ", ".join(f"{tap} {'x'.join(map(str, m))}" for tap, m in taps.items()) for taps in row["outputs"].values()
        )
        worst = max(row["max_rel_error"].values(), default=0.0)
        lines.append(f"| `{row['file']}` | {role} | {maps} | {worst:.2g} | {row['bytes'] / 1e6:.2f} MB |")
    are = "photos" if manifest["checked"]["are_photos"] else "made-up images"
    lines += [
        "",
        "Off the train form in torch with these weights: largest difference over the largest value, on "
        f"{len(manifest['checked']['images'])} {are}; for int8 the root of the mean square over that of the output.",
        "",
        f"- stride {manifest['geometry']['stride']}, {manifest['geometry']['channels']} channels",
        *([] if given["normalised_in_module"] else [f"- mean {given['mean']}, std {given['std']}, in RGB order"]),
        f"- spec id {spec.spec_id}; bblab {manifest['bblab']}; export {manifest['export_id']}",
        *(f"- {line}" for line in provenance_lines(manifest["provenance"])),
    ]
    for row in manifest["latency"]:
        low, high = row["ratio_low"], row["ratio_high"]
        span = "(no interval)" if low is None or high is None or not low < high else f"[{low:.3f}, {high:.3f}]"
        lines.append(
            f"- latency: {row['cpu_p10_s'] * 1e3:.3g} ms CPU p10 on {row['device']}, {row['runtime']}, "
            f"{'x'.join(map(str, row['input']))}"
            + (f", {row['ratio']:.3f} x resnet18 {span}" if row["ratio"] is not None else "")
            + f" (run {row['run']})"
        )
    return "\n".join(lines) + "\n"
