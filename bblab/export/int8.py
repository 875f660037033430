"""Int8 by ONNX Runtime's static quantisation: calibrated on photos, the error shown per tap, a collapse warned of.

Re-parameterised nets are known to collapse in int8: folding branches and norms leaves kernels and activations with a
wide spread (QARepVGG, arXiv:2212.01593: more than 20 points of RepVGG's ImageNet top-1 are lost).
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bblab.errors import RunError
from bblab.export import photos

if TYPE_CHECKING:
    from torch import nn

    from bblab.export.deploy import Model, Normalise
    from bblab.spec import ArchSpec

WORTH_A_WARNING = 0.1
"""Root mean square of the error over that of the map; chosen by us: 20 dB of signal over noise."""
COLLAPSED = 0.4
"""8 dB: what is left no longer tells neighbouring units apart. Chosen by us."""
CROPS_EACH = 8


@dataclass(frozen=True, slots=True)
class Quantised:
    """An int8 model: per tap the relative error (root mean square), the cosine and the signal over noise in dB."""

    model: Model
    file: str
    float_bytes: int
    int8_bytes: int
    taps: Mapping[str, Mapping[str, float]]
    images: int
    calibration: str
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "file": self.file,
            "float_bytes": self.float_bytes,
            "int8_bytes": self.int8_bytes,
            "taps": {tap: dict(values) for tap, values in self.taps.items()},
            "calibration_images": self.images,
            "calibration": self.calibration,
            "warnings": list(self.warnings),
        }


class _Reader:
    """Calibration images, one at a time, as ONNX Runtime asks for them."""

    def __init__(self, inputs: Sequence[Any]) -> None:
        self._left: Iterator[Any] = iter(inputs)

    def get_next(self) -> dict[str, Any] | None:
        x = next(self._left, None)
        return None if x is None else {"input": x[None]}


def quantise(
    model: Model,
    spec: ArchSpec,
    module: nn.Module,
    normalise: Normalise,
    provenance: Mapping[str, Any],
    calibration: Sequence[photos.Photo],
    held_out: Sequence[photos.Photo],
    has_branches: bool,
) -> Quantised:
    """The model in int8 (QDQ, per channel), compared with `module` (the train form in torch) on unseen central crops.

    Calibrated on the photos of `calibration`; where those are the `held_out` ones too, on other crops of them.
    Raises RunError where ONNX Runtime cannot quantise it.
    """
    import numpy as np
    import torch

    from bblab.export.deploy import feed, tap_names
    from bblab.latency import runtimes

    is_own = {p.name for p in calibration} != {p.name for p in held_out}
    side = model.sizes[-1].px
    every = photos.crops(calibration, side, each=CROPS_EACH if not is_own else 1, seed=1)
    if not is_own:
        every = np.stack([c for i, c in enumerate(every) if i % CROPS_EACH])  # the central ones are for comparing
    (name, content), *_ = model.files.items()
    with tempfile.TemporaryDirectory(prefix="bblab-int8-") as folder:
        source, target = Path(folder) / name, Path(folder) / f"{Path(name).stem}_int8.onnx"
        source.write_bytes(content)
        try:
            _quantised(source, target, feed(every, normalise, provenance).numpy())
            runner = runtimes.find("ort").load(str(target), 1)
            sums: dict[str, list[float]] = {}
            for size in model.sizes:
                x = feed(photos.crops(held_out, size.px), normalise, provenance)
                for image in x:
                    with torch.no_grad():
                        truth = [t.numpy().astype(np.float64) for t in module(image[None])]
                    got = runner.run(image[None].numpy())
                    for tap, a, b in zip(tap_names(spec, len(truth)), truth, got, strict=True):
                        s = sums.setdefault(tap, [0.0, 0.0, 0.0, 0.0])
                        parts = (((a - b) ** 2).sum(), (a**2).sum(), (a * b).sum(), (b.astype(np.float64) ** 2).sum())
                        sums[tap] = [old + float(new) for old, new in zip(s, parts, strict=True)]
        except Exception as error:  # onnxruntime raises anything
            said = (str(error).strip().splitlines() or [""])[0][:300]
            raise RunError(
                f"{spec.name}: ONNX Runtime cannot quantise it: {type(error).__name__}: {said}",
                hint="leave --int8 away",
            ) from error
        made = target.read_bytes()
    taps = {}
    for tap, (noise, signal, joint, other) in sums.items():
        ratio = (noise / signal) ** 0.5 if signal else 0.0
        taps[tap] = {
            "rel_rms_error": ratio,
            "cosine": joint / (signal * other) ** 0.5 if signal and other else 0.0,
            "sqnr_db": -20 * float(np.log10(ratio)) if ratio else float("inf"),
        }
    file = f"{Path(name).stem}_int8.onnx"
    said = f"{len(every)} crops of {len(calibration)} {'photos' if calibration[0].is_real else 'made-up images'}"
    errors = {tap: values["rel_rms_error"] for tap, values in taps.items()}
    result = replace(
        model,
        files={file: made},
        errors=errors,
        facts={"precision": "int8", "calibrated_on": said},
        conversion_errors={},
        rounding="",
    )
    roles = ", ".join(s.role for s in model.sizes)
    notes = [text for tap, v in taps.items() if (text := _warning(f"{roles} {tap}", v["rel_rms_error"], has_branches))]
    return Quantised(result, file, len(content), len(made), taps, len(every), said, tuple(notes))


def _warning(where: str, error: float, has_branches: bool) -> str:
    if error < WORTH_A_WARNING:
        return ""
    what = f"int8 {where}: off by {error:.0%} of the map's root mean square"
    if error >= COLLAPSED:
        what += ": collapsed"
    if not has_branches:
        return f"{what}; calibrate on your own images (--calibrate DIR), or stay with float32"
    return (
        f"{what}; re-parameterised nets are known for this (arXiv:2212.01593): the fused kernels spread too widely. "
        "The block qarepvgg was made for int8; else train with quantisation, or stay with float32"
    )


def _quantised(source: Path, target: Path, inputs: Any) -> None:
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    ready = source.with_name("ready.onnx")
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            quant_pre_process(str(source), str(ready), skip_symbolic_shape=True)
            quantize_static(
                str(ready),
                str(target),
                _Reader(inputs),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
            )
    finally:
        root.setLevel(level)
