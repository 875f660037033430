"""The hand-over folder: written beside its place, renamed into it, and never over what bblab did not write."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import string
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bblab
from bblab.errors import BblabError, RunError
from bblab.export import codegen, fitting
from bblab.export.carrying import Carried
from bblab.export.sources import Collection
from bblab.export.target import Fit, Target, freezing
from bblab.spec import ArchSpec, BlockInfo

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "bblab-export-1"
MANIFEST = "manifest.json"
_SAMPLES = 4096


@dataclass(frozen=True, slots=True)
class Export:
    """What was written: the folder, its manifest, and what a person should know."""

    folder: Path
    manifest: Mapping[str, Any]
    warnings: tuple[str, ...] = ()

    @property
    def export_id(self) -> str:
        return str(self.manifest["export_id"])

    def to_json(self) -> dict[str, Any]:
        return {**self.manifest, "folder": str(self.folder), "warnings": list(self.warnings)}


def check_place(folder: Path, *, force: bool) -> None:
    """Refuse a place that holds anything, unless `force` and everything in the way was written by bblab.

    Raises BblabError, RunError where it cannot be written.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise BblabError(f"{folder} is no folder", hint="name another with --out DIR")
    parent = folder.resolve().parent
    if not parent.is_dir():
        raise BblabError(f"{folder}: there is no folder {parent}", hint="make it first, or name another with --out DIR")
    if not os.access(folder if folder.is_dir() else parent, os.W_OK):
        raise RunError(f"{folder} cannot be written: you may not write there", hint="name another with --out DIR")
    if not folder.is_dir():
        return
    there = sorted(p.name for p in folder.iterdir())
    if there and not force:
        shown = ", ".join(there[:6]) + (f" and {len(there) - 6} more" if len(there) > 6 else "")
        raise BblabError(
            f"{folder} is not empty ({shown}): kept",
            hint="name another with --out DIR; --force replaces the files that bblab wrote there, and no others",
        )


def written_before(folder: Path) -> dict[str, str]:
    """Files of an earlier export, by name, with their hashes; empty where there was none."""
    try:
        old = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if not str(old["format"]).startswith("bblab-"):
            return {}
        return {str(name): str(sha256) for name, sha256 in old["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def place(files: Mapping[str, bytes], folder: Path, *, force: bool) -> tuple[str, ...]:
    """Put the files into the folder, all or none; what of an earlier export they do not replace is removed.

    With `force` only files are replaced that an earlier export wrote and nobody has changed since. Returns what was
    left alone. Raises BblabError where a file of someone else has a name that is needed.
    """
    check_place(folder, force=force)
    old = written_before(folder) if folder.is_dir() else {}
    ours = {name for name, sha256 in old.items() if _sha256_of(folder / name) == sha256} | {MANIFEST} if old else set()
    there = {p.name for p in folder.iterdir()} if folder.is_dir() else set()
    foreign = sorted(there & set(files) - ours)
    if foreign:
        raise BblabError(
            f"{folder} has files that bblab did not write, or that were changed since: {', '.join(foreign)}: kept",
            hint="move them away, or name another folder with --out DIR",
        )
    temporary = folder.resolve().with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for name, content in files.items():
            with (temporary / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        if not there:
            if folder.is_dir():
                folder.rmdir()
            temporary.rename(folder.resolve())
            return ()
        for name in sorted(files, key=lambda n: n == MANIFEST):  # the manifest last: it vouches for the others
            (temporary / name).replace(folder / name)
        for name in sorted(ours - set(files)):
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        said = error.strerror or str(error)
        raise RunError(
            f"{folder} cannot be written: {said}", hint="make room, or name another with --out DIR"
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return tuple(sorted(there - set(files) - ours))


def _sha256_of(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


def export_id(files: Mapping[str, bytes]) -> str:
    """Ten hexadecimal digits from the content of all files but the manifest."""
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(f"{name}|{hashlib.sha256(files[name]).hexdigest()}|".encode())
    return f"x{digest.hexdigest()[:10]}"


# ---------------------------------------------------------------------------------------------- contents


def slug(name: str) -> str:
    """A spec's name as a Python module's."""
    return "bb_" + "".join(c if c.isalnum() and c.isascii() else "_" for c in name).strip("_")


def contents(
    target: Target,
    variant: str,
    spec: ArchSpec,
    kinds: Mapping[str, BlockInfo],
    found: fitting.Maps,
    fit: Fit | None,
    carried: Carried,
    *,
    code_version: str,
) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Every file of the folder, and its manifest (which is one of them)."""
    own = target.variants[variant] if variant else None
    values = dict(own.values) if own else {}
    feeds = values.pop("input", target.input)
    module = slug(spec.name)
    weights_file = f"{module}{target.weights_suffix}"
    stages = _stages(spec, found)
    is_random = bool(carried.provenance.get("is_random"))
    freeze = freezing(target, [(name, stride) for name, _, stride in stages], is_random=is_random)
    where = f"Trains with {target.trainer} ({target.repository} {target.commit})." if target.repository else ""
    mean, std = carried.provenance.get("mean"), carried.provenance.get("std")
    text = codegen.module_text(
        spec,
        kinds,
        layout=target.layout,
        feeds=feeds,
        **({"mean": mean, "std": std} if mean and std else {}),
        head_lines=[where] if where else [],
        maps=stages,
    )
    state = codegen.module_state(spec, carried.state, target.layout, target.weights_prefix)
    files: dict[str, bytes] = {f"{module}.py": text.encode(), weights_file: _saved(state)}
    score = fit.score_map if fit else None
    keys = {
        **(dict(fit.keys) if fit else {}),
        **values,
        "module": module,
        "weights": weights_file,
        "taps": [t.stage for t in found.search.taps],
        "channels": found.channels,
        "channel": found.channels[-1],
        "train_layers": list(freeze.layers),
        "freeze_epochs": freeze.epochs,
        "lr_share": freeze.lr_share,
        "freeze_norms": freeze.norms,
        "freeze_why": freeze.why,
        "template_px": target.template_px,
        "search_px": target.search_px,
        "template_map": found.z[0],
        "search_map": found.x[0],
        "stride": found.stride,
        "score_map": score,
        "variant": variant,
        "spec": spec.name,
    }
    if target.config_values is not None:
        keys |= target.config_values(keys)
    if target.config:
        chosen = keys.get("config_text") or target.config
        filled = string.Template(str(chosen)).substitute({k: _yaml(v) for k, v in keys.items()})
        files["config.yaml"] = (_config_head(target, spec) + filled).encode()
    if target.launch:
        files["launch.py"] = launch_text(target).encode()
    files["check.py"] = (Path(__file__).parent / "checking.py").read_bytes()
    files["check_data.pth"] = _check_data(spec, carried, target, feeds)
    geometry = {**found.to_json(), "score_map": score}
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "export_id": "",
        "bblab": bblab.__version__,
        "code_version": code_version,
        "target": target.name,
        "variant": variant,
        "trainer": {
            "name": target.trainer,
            "repository": target.repository,
            "commit": target.commit,
            "read": list(target.sources),
            "root": target.root,
            "script": target.script,
            "supplies": list(target.supplies),
            "imports": list(target.imports),
            "paths": list(target.paths),
            "leaves": {"log": target.log, "losses": list(target.losses), "checkpoints": target.checkpoints},
        },
        "spec": {"name": spec.name, "spec_id": spec.spec_id, "about": spec.about, "canonical": spec.canonical},
        "module": module,
        "config": "config.yaml" if target.config else None,
        "input": {"feeds": feeds, "normalised_in_module": feeds == "bgr255", "layout": target.layout},
        "weights": {
            "file": weights_file,
            "prefix": target.weights_prefix,
            "tensors": len(state),
            "parameters": sum(t.numel() for k, t in state.items() if _is_parameter(k)),
            "has_norms": any(k.endswith("running_mean") for k in state),
            "form": "train (unfused)",
        },
        "provenance": dict(carried.provenance),
        "geometry": geometry,
        "freeze": {
            "epochs": freeze.epochs,
            "layers": list(freeze.layers),
            "layers_at_start": values.get("layers_at_start", []),
            "norms_never_learn": freeze.norms,
            "lr_share": freeze.lr_share,
            "why": freeze.why,
            "how": target.freeze,
        },
        "keys": {k: v for k, v in keys.items() if k != "config_text"},
    }
    files["README.md"] = b""
    manifest["export_id"] = export_id({k: v for k, v in files.items() if k != "README.md"})
    files["README.md"] = _readme(target, variant, spec, manifest, carried).encode()
    manifest["files"] = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    files[MANIFEST] = (json.dumps(manifest, indent=1, ensure_ascii=False, default=str) + "\n").encode()
    return files, manifest


def _is_parameter(key: str) -> bool:
    return not key.endswith(("running_mean", "running_var", "num_batches_tracked"))


def _stages(spec: ArchSpec, found: fitting.Maps) -> list[tuple[str, int, float | None]]:
    by_name = {m.stage.partition("[")[0]: m for m in found.search.maps}
    rows: list[tuple[str, int, float | None]] = []
    for stage in spec.backbone_stages:
        m = by_name.get(stage.name)
        rows.append((stage.name, m.channels, m.stride) if m else (stage.name, 0, None))
    return rows


def _yaml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):  # YAML takes 5e-05 for a word
        text = repr(value)
        return text.replace("e", ".0e") if "e" in text and "." not in text else text
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_yaml(v) if not isinstance(v, str) else f"'{v}'" for v in value) + "]"
    return str(value)


def _config_head(target: Target, spec: ArchSpec) -> str:
    lines = [f"{target.trainer} with {spec.name}: the whole configuration; what is not here is the trainer's default."]
    if target.upstream:
        lines.append(f"After {target.upstream} of {target.repository} {target.commit}; it differs from that in")
        lines += [f"  {keys}: {why}" for keys, why in target.differs.items()]
    return "".join(f"# {line}\n" for line in lines)


def launch_text(target: Target) -> str:
    """`launch.py`: the target file's own functions and what they share, as one script."""
    found = Collection()
    common = Path(__file__).parent / "launching.py"
    for name in ("main", "on_cpu", "trainer_folder", "unready", *target.supplies):
        found.add(common, name)
    for name in target.launch:
        found.add(target.file, name)
    lines = [
        f'"""Train the backbone of this folder with {target.trainer}; none of its files is changed.',
        "",
        f"    {target.command}",
        "",
        f"Read at {target.repository} {target.commit}: {', '.join(target.sources)}.",
        "`build` and what follows it is for check.py.",
        '"""',
        "",
        *found.import_lines(),
        "",
    ]
    for path in found.files():
        for text in found.texts(path):
            is_value = not text.startswith(("def ", "class ", "@"))
            lines += ([] if is_value else ["", ""]) + text.splitlines()
    lines += [
        "",
        "",
        'if __name__ == "__main__":',
        "    main(register, start, smoke, resume, restore, backbone_of, ready)",
    ]
    return "\n".join(lines) + "\n"


def _saved(value: Any) -> bytes:
    import io

    import torch

    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def normalised(pixels: Tensor, carried: Carried) -> Tensor:
    """B, 3, H, W as BGR, 0 to 255 -> RGB less the mean and over the deviation that the weights were trained with."""
    import torch

    mean = carried.provenance.get("mean") or (123.675, 116.28, 103.53)
    std = carried.provenance.get("std") or (58.395, 57.12, 57.375)
    mean_px, std_px = (torch.tensor(tuple(v)).view(1, -1, 1, 1) for v in (mean, std))
    return (pixels.flip(1) - mean_px) / std_px


def _check_data(spec: ArchSpec, carried: Carried, target: Target, feeds: str) -> bytes:
    """An image at template and at search size, and what bblab's own model makes of it, at some positions."""
    import torch

    from bblab.latency.models import check_image, flat_outputs

    data: dict[str, Any] = {}
    generator = torch.Generator().manual_seed(0)
    for name, side in (("template", target.template_px), ("search", target.search_px)):
        pixels = (128 + 50 * check_image((1, spec.input[0], side, side))).round().clamp(0, 255)
        rgb = normalised(pixels, carried)
        with torch.no_grad():
            maps = flat_outputs(carried.module.eval(), rgb)
        taps = []
        for tap in maps:
            count = min(_SAMPLES, tap.numel())
            index = torch.randperm(tap.numel(), generator=generator)[:count].sort().values
            taps.append((list(tap.shape[1:]), index, tap.flatten()[index].clone()))
        data[name] = {"input": pixels if feeds == "bgr255" else rgb, "taps": taps}
    return _saved(data)


def _readme(target: Target, variant: str, spec: ArchSpec, manifest: Mapping[str, Any], carried: Carried) -> str:
    geometry, module = manifest["geometry"], manifest["module"]
    title = f"{spec.name} for {target.trainer}" + (f" ({variant})" if variant else "")
    lines = [f"# {title}", ""]
    if target.command:
        lines += [
            f"With a checkout of {target.repository} (read at {target.commit})"
            + (f" and `pip install {target.pip}`" if target.pip else "")
            + ":",
            "",
            "```sh",
            target.command,
            "```",
            "",
            "No file of the trainer is changed. Before that, on any machine, without a GPU:",
            "",
            "```sh",
            target.command.replace("launch.py", "check.py"),
            f"{target.command} --smoke",
            "```",
            "",
            "The second runs 20 iterations of the trainer's own loop on made-up crops and reads back what it wrote.",
            "",
            f"Everything a training writes goes to `runs/N` here: the log `{_shown(target.log)}`, checkpoints "
            f"`{_shown(target.checkpoints)}`, the manifest and the configuration it ran with. `--resume` goes on with "
            "the newest run, `--resume N` with run N.",
        ]
        if target.supplies:
            lines += ["", "Where the environment lacks them, `launch.py` supplies", "", *_supplied(target)]
    else:
        lines += [
            "```python",
            "import torch",
            f"import {module}",
            "",
            f"backbone = {module}.Backbone()",
            f'backbone.load_state_dict(torch.load("{manifest["weights"]["file"]}", weights_only=True))',
            "```",
            "",
            "`python check.py` says whether this folder does what its manifest says.",
        ]
    taps = geometry["search"]["taps"]
    shown = ", ".join("x".join(map(str, t["map"])) for t in geometry["template"]["taps"])
    wide = ", ".join("x".join(map(str, t["map"])) for t in taps)
    fed = "raw BGR, 0 to 255; `in_norm`, the first layer, normalises"
    fed = fed if manifest["input"]["normalised_in_module"] else "RGB, ImageNet's mean and deviation taken out"
    field = geometry["receptive_field"]
    over = geometry["receptive_field_over_template"]
    lines += [
        "",
        "| | |",
        "|---|---|",
        f"| template | {target.template_px} px → {shown} |",
        f"| search | {target.search_px} px → {wide} |",
    ]
    if geometry["score_map"]:
        lines.append(f"| score map | {geometry['score_map']}x{geometry['score_map']} |")
    lines += [
        f"| stride, receptive field | {geometry['stride'] or 'unknown'}, "
        + (f"{field} px ({over:.2f} of the template) |" if field is not None else "unknown |"),
        f"| taps | {', '.join(t['stage'] for t in taps)} |",
        f"| parameters | {manifest['weights']['parameters']:,} as trained, {geometry['params_deploy']:,} fused |",
        f"| MACs, fused | {geometry['search']['macs_deploy']:,} at search size |",
        f"| input | {fed} |",
        f"| frozen | {frozen_words(manifest['freeze'])} |",
        "",
        "## Where it comes from",
        "",
        f"- spec {spec.name}, id {spec.spec_id}; bblab {bblab.__version__}; export {manifest['export_id']}",
        *(f"- {line}" for line in provenance_lines(carried.provenance)),
        "",
        "## Files",
        "",
        f"- `{module}.py`: the network, readable, needs torch alone; `deploy(backbone)` fuses it for the device",
        f"- `{manifest['weights']['file']}`: its state dict, unfused, {manifest['weights']['tensors']} tensors",
    ]
    if target.config:
        lines.append("- `config.yaml`: the trainer's configuration, whole")
    if target.launch:
        lines.append("- `launch.py`: enters the backbone and starts the trainer's own script")
    lines += [
        "- `check.py`, `check_data.pth`: whether all of this holds, tested on the CPU",
        "- `manifest.json`: hashes, sizes, provenance",
    ]
    if target.notes:
        lines += ["", "## Good to know", "", *(f"- {note}" for note in target.notes)]
    return "\n".join(lines) + "\n"


def _shown(pattern: str) -> str:
    return f"runs/N/{pattern}"


def _supplied(target: Target) -> list[str]:
    """What `launch.py` supplies, by the first lines of its functions."""
    import ast

    tree = ast.parse((Path(__file__).parent / "launching.py").read_text(encoding="utf-8"))
    docs = {n.name: ast.get_docstring(n) or "" for n in tree.body if isinstance(n, ast.FunctionDef)}
    return [f"- {docs[name].splitlines()[0]}" for name in target.supplies]


def frozen_words(freeze: Mapping[str, Any]) -> str:
    """A manifest's `freeze` as one line for a person."""
    layers, share = ", ".join(freeze["layers"]), freeze["lr_share"]
    rate = "at the full learning rate" if share == 1 else f"at {share:g} of the learning rate"
    if freeze["epochs"]:
        return f"epochs 0 to {freeze['epochs'] - 1}, statistics of norms too; then {layers} learn, {rate}"
    learn = f"{layers} learn from the start, {rate}"
    if freeze["norms_never_learn"]:
        return f"all norms, for ever; {learn}"
    return f"never ({freeze['why']}); {learn}"


def provenance_lines(provenance: Mapping[str, Any]) -> list[str]:
    """Where weights come from, as a person reads it."""
    lines = [f"weights: {provenance['source']}"]
    words = {
        "run": "run {} of the lab's notebook",
        "accuracy_top1": "top-1 {:.2%}",
        "recipe": "recipe {}",
        "data": "data {}",
        "imported_from": "from: {}",
        "written_for_spec": "trained as spec {} (an id counts the head and its classes too)",
        "head_left_out": "without the file's head: {}",
        "trained_on": "trained on images as {}",
        "sha256": "sha256 {}",
    }
    for key, text in words.items():
        value = provenance.get(key)
        if value is not None:
            lines.append(text.format(value))
    return lines
