"""OpenVINO on the CPU, reading the ONNX file that ONNX Runtime reads.

It is told to compute in float32: left alone it chose bfloat16 on a CPU that has it, and said so nowhere. What it
really chose is read back from the compiled model, operation by operation.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bblab.errors import RunError
from bblab.latency.runtimes import RUNTIMES, LayerTimes, installed, module_path
from bblab.latency.runtimes.ort import export_onnx, exporter

if TYPE_CHECKING:
    import numpy as np
    from torch import nn


class _Compiled:
    def __init__(self, compiled: Any) -> None:  # its types are generated and would need openvino to read
        self._request = compiled.create_infer_request()
        self._outputs = range(len(compiled.outputs))

    def run(self, x: np.ndarray) -> Sequence[np.ndarray]:
        self._request.infer([x], share_inputs=True)
        return [self._request.get_output_tensor(i).data for i in self._outputs]


@RUNTIMES("openvino")
class OpenVino:
    name = "openvino"
    suffix = ".onnx"
    precision = "float32"
    pip = "openvino"

    def version(self) -> str:
        return installed(self.name, "openvino")

    def settings(self) -> str:
        return exporter()

    def convert(self, module: nn.Module, input_shape: tuple[int, ...], path: Path) -> None:
        export_onnx(module, input_shape, path)

    def load(self, path: str, threads: int) -> _Compiled:
        return _Compiled(_compile(path, threads))

    def profiled(self, path: str, threads: int) -> _Profiled:
        return _Profiled(_compile(path, threads, counting=True))


def _compile(path: str, threads: int, *, counting: bool = False) -> Any:
    import openvino

    compiled = openvino.Core().compile_model(
        path,
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERF_COUNT": counting,
        },
    )
    used = {op.get_rt_info()["runtimePrecision"].astype(str) for op in compiled.get_runtime_model().get_ops()}
    if half := sorted(used & {"bf16", "f16"}):
        raise RunError(
            f"OpenVINO computes in {' and '.join(half)} although told float32", hint="report it with this net"
        )
    return compiled


class _Profiled(_Compiled):
    """OpenVINO's own counters, read after every run. Its names are those of the tensors that an operator writes."""

    def __init__(self, compiled: Any) -> None:
        super().__init__(compiled)
        self._runs: list[list[Any]] = []

    def run(self, x: np.ndarray) -> Sequence[np.ndarray]:
        found = super().run(x)
        counters = self._request.profiling_info
        self._runs.append([(p.node_name, p.node_type, p.exec_type, p.status, p.real_time) for p in counters])
        return found

    def layers(self) -> list[LayerTimes]:
        return layer_times(self._runs)

    def overhead_s(self) -> float:
        return 0.0


def layer_times(runs: Sequence[Sequence[tuple[str, str, str, Any, Any]]]) -> list[LayerTimes]:
    """Every operator that ran, from (name, type, kernel, status, time as timedelta) of each run, in its order."""
    found: dict[str, list[float]] = {}
    about: dict[str, tuple[str, str]] = {}
    for number, run in enumerate(runs):
        for name, kind, kernel, status, real_time in run:
            if not str(status).endswith("EXECUTED"):
                continue
            found.setdefault(name, [0.0] * len(runs))[number] += real_time.total_seconds()
            about[name] = (kind, kernel)
    layers: list[LayerTimes] = []
    for name, seconds in found.items():
        # A fused operator names all it does; moved data the operator that wants it, after a prefix of layouts.
        at = name.find("/")
        is_own = at == 0
        scope = name[at:].split(",")[0] if at >= 0 and "/" in name[at + 1 :] else ""
        module, told_by = (module_path(scope), "name" if is_own else "neighbour") if scope else ("", "")
        if not module and layers:  # without a name at the end of the net: it finishes what stands before it
            module, told_by = layers[-1].module, "neighbour"
        layers.append(LayerTimes(name, about[name][0], module, told_by, tuple(seconds), about[name][1]))
    return layers
