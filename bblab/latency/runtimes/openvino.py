"""OpenVINO on the CPU, reading the ONNX file that ONNX Runtime reads.

It is told to compute in float32: left alone it chose bfloat16 on a CPU that has it, and said so nowhere. What it
really chose is read back from the compiled model, operation by operation.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bblab.errors import RunError
from bblab.latency.runtimes import RUNTIMES, installed
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
        import openvino

        compiled = openvino.Core().compile_model(
            path,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": "f32",
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_NUM_THREADS": threads,
                "NUM_STREAMS": 1,
            },
        )
        used = {op.get_rt_info()["runtimePrecision"].astype(str) for op in compiled.get_runtime_model().get_ops()}
        if half := sorted(used & {"bf16", "f16"}):
            raise RunError(
                f"OpenVINO computes in {' and '.join(half)} although told float32", hint="report it with this net"
            )
        return _Compiled(compiled)
