"""ONNX Runtime on an NVIDIA GPU: by its own CUDA kernels (`ort-cuda`) or by TensorRT (`ort-trt`).

In float32: TF32, which both would use silently on Ampere and later, is off. Copies of the input to the GPU and of the
outputs back are part of the time. Not tried on a GPU by the tests: they see that its absence is told.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from bblab.errors import BblabError, RunError
from bblab.installing import how_to_install
from bblab.latency.runtimes import RUNTIMES, installed
from bblab.latency.runtimes.ort import Session, export_onnx, exporter, options

if TYPE_CHECKING:
    from torch import nn


class _OrtGpu:
    name: str
    provider: str
    provider_options: ClassVar[dict[str, Any]]  # as ONNX Runtime documents them
    suffix = ".onnx"
    precision = "float32"
    pip = "onnxruntime-gpu"
    processor = "cuda"

    def version(self) -> str:
        found = installed(self.name, "onnxruntime-gpu", "onnxruntime")
        import onnxruntime

        there = onnxruntime.get_available_providers()
        if self.provider not in there:
            raise BblabError(
                f"the runtime {self.name!r} needs {self.provider}; this onnxruntime {found} has {', '.join(there)}",
                hint=f"{how_to_install('onnxruntime-gpu')}, on a machine with an NVIDIA GPU and its CUDA libraries",
                exit_code=1,
            )
        return found

    def settings(self) -> str:
        return exporter()

    def convert(self, module: nn.Module, input_shape: tuple[int, ...], path: Path) -> None:
        export_onnx(module, input_shape, path)

    def load(self, path: str, threads: int) -> Session:
        os.environ["NVIDIA_TF32_OVERRIDE"] = "0"  # TensorRT has no option of its own for it here
        import onnxruntime

        providers = [(self.provider, self.provider_options), "CPUExecutionProvider"]
        session = onnxruntime.InferenceSession(path, options(threads), providers=providers)
        # Without its libraries a provider is dropped with a mere warning, and the CPU would be timed.
        if session.get_providers()[0] != self.provider:
            raise RunError(
                f"onnxruntime left {self.provider} out and would run on {session.get_providers()[0]}",
                hint="its CUDA, cuDNN or TensorRT libraries are missing or of another version",
            )
        return Session(session)


@RUNTIMES("ort-cuda")
class OrtCuda(_OrtGpu):
    name = "ort-cuda"
    provider = "CUDAExecutionProvider"
    provider_options: ClassVar[dict[str, Any]] = {"use_tf32": "0", "cudnn_conv_algo_search": "EXHAUSTIVE"}


@RUNTIMES("ort-trt")
class OrtTensorRt(_OrtGpu):
    name = "ort-trt"
    provider = "TensorrtExecutionProvider"
    provider_options: ClassVar[dict[str, Any]] = {"trt_fp16_enable": "0", "trt_int8_enable": "0"}
