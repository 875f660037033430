"""ONNX Runtime on the CPU, from torch's TorchScript exporter.

The older exporter (`dynamo=False`) is chosen on purpose: it needs no onnxscript, is 2 to 5 times faster (1.3-6 s
against 2.4-15.7 s for six nets, torch 2.13), and the times of the models it writes do not differ.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bblab.latency.runtimes import RUNTIMES, installed

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

OPSET = 17


class Session:
    def __init__(self, session: Any) -> None:  # onnxruntime ships no types
        self._session = session
        self._input = session.get_inputs()[0].name

    def run(self, x: np.ndarray) -> Sequence[np.ndarray]:
        return self._session.run(None, {self._input: x})


def exporter() -> str:
    """What writes the ONNX file: part of the key of a remembered model."""
    from importlib.metadata import version

    return f"torch {version('torch')} TorchScript export, opset {OPSET}"


def export_onnx(module: nn.Module, input_shape: tuple[int, ...], path: Path) -> None:
    """The eval-mode module as an ONNX file, also for other runtimes that read ONNX."""
    import torch

    module.eval()
    x = torch.zeros(input_shape)
    log = logging.getLogger("torch.onnx")
    level = log.level
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch 2.13 announces the end of this exporter, and every traced `if`
        log.setLevel(logging.ERROR)
        try:
            torch.onnx.export(
                module,
                (x,),
                str(path),
                opset_version=OPSET,
                dynamo=False,
                do_constant_folding=True,
                training=torch.onnx.TrainingMode.EVAL,
                input_names=["input"],
            )
        finally:
            log.setLevel(level)


def options(threads: int) -> Any:
    import onnxruntime

    made = onnxruntime.SessionOptions()
    made.intra_op_num_threads = threads
    made.inter_op_num_threads = 1
    made.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    made.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    made.log_severity_level = 3
    # Threads of a model that has finished must not spin into the next model's time.
    made.add_session_config_entry("session.force_spinning_stop", "1")
    return made


@RUNTIMES("ort")
class Ort:
    name = "ort"
    suffix = ".onnx"
    precision = "float32"
    pip = "onnxruntime"

    def version(self) -> str:
        return installed(self.name, "onnxruntime", "onnxruntime-gpu")

    def settings(self) -> str:
        return exporter()

    def convert(self, module: nn.Module, input_shape: tuple[int, ...], path: Path) -> None:
        export_onnx(module, input_shape, path)

    def load(self, path: str, threads: int) -> Session:
        import onnxruntime

        return Session(onnxruntime.InferenceSession(path, options(threads), providers=["CPUExecutionProvider"]))
