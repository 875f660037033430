"""PyTorch, operation by operation, as in eager mode: on the CPU (`torch`) and on an NVIDIA GPU (`torch-cuda`).

A model file holds the net's operations as Python source, from torch.export, and its tensors. Loading it needs only
`import torch`; torch.export.load imports 5 s (CPU time, torch 2.13) of machinery more, in every worker.
On a GPU the time is that between two CUDA events around the forward pass, copies left out, and TF32 is off.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from bblab.errors import BblabError
from bblab.latency.runtimes import RUNTIMES, installed

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn


def use_threads(count: int) -> None:
    import contextlib

    import torch

    torch.set_num_threads(count)
    with contextlib.suppress(RuntimeError):  # torch allows it once, before the first parallel work
        torch.set_num_interop_threads(1)


class OnCpu:
    """A function of one tensor as a model of the latency room."""

    def __init__(self, function: Callable[[Tensor], Sequence[Tensor]]) -> None:
        self._function = function

    def run(self, x: np.ndarray) -> Sequence[np.ndarray]:
        import torch

        with torch.inference_mode():
            return [t.numpy() for t in self._function(torch.from_numpy(x))]


class OnCuda:
    """The same on a GPU; `seconds` is what the GPU's own clock says of the last run."""

    def __init__(self, function: Callable[[Tensor], Sequence[Tensor]]) -> None:
        import torch

        self._function = function
        self._begin, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._given: Any = None  # the array that _x is a copy of
        self._x: Any = None

    def run(self, x: np.ndarray) -> Sequence[np.ndarray]:
        import torch

        with torch.inference_mode():
            if self._given is not x:
                self._given, self._x = x, torch.from_numpy(x).cuda()
            self._begin.record()
            outputs = self._function(self._x)
            self._end.record()
            self._end.synchronize()
            return [t.cpu().numpy() for t in outputs]

    def seconds(self) -> float:
        return float(self._begin.elapsed_time(self._end)) / 1e3


def need_cuda(name: str) -> None:
    """Raises BblabError where torch sees no GPU."""
    import torch

    if not torch.cuda.is_available():
        raise BblabError(
            f"the runtime {name!r} needs an NVIDIA GPU; torch {torch.__version__} sees none here",
            hint="run it where `python -c 'import torch; print(torch.cuda.is_available())'` says True",
            exit_code=1,
        )


def exact_float32() -> None:
    """No TF32 in convolutions and matrix products, which cuDNN would use unasked."""
    import torch

    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.benchmark = True  # the input never changes its shape


def exported(module: nn.Module, input_shape: tuple[int, ...], device: str) -> Any:
    """torch.export's program of an eval-mode module."""
    import torch

    with torch.no_grad():
        return torch.export.export(module.eval().to(device), (torch.zeros(input_shape, device=device),), strict=False)


@RUNTIMES("torch")
class Eager:
    name = "torch"
    suffix = ".torch"
    precision = "float32"
    pip = "torch"
    uses_torch = True
    processor = "cpu"

    def version(self) -> str:
        return installed(self.name, "torch")

    def settings(self) -> str:
        return "torch.export, source and tensors"

    def convert(self, module: nn.Module, input_shape: tuple[int, ...], path: Path) -> None:
        import torch

        graph_module = exported(module, input_shape, self.processor).module(check_guards=False)
        graph = graph_module.graph
        graph.set_codegen(torch.fx.graph.CodeGen())  # plain: no trees of arguments
        tensors = {}
        for node in graph.nodes:
            if node.op == "get_attr":
                value = graph_module
                for part in node.target.split("."):
                    value = getattr(value, part)
                tensors[node.target] = value.detach()
        torch.save({"source": graph.python_code("self").src, "tensors": tensors}, path)

    def load(self, path: str, threads: int) -> OnCpu | OnCuda:
        import torch

        use_threads(threads)
        if self.processor == "cuda":
            need_cuda(self.name)
            exact_float32()
        kept = torch.load(path, map_location=self.processor, weights_only=True)
        names: dict[str, Any] = {"torch": torch, "device": torch.device, "inf": math.inf, "nan": math.nan}
        exec(kept["source"], names)  # our own cache's file, checked against its hash
        own = _nested(kept["tensors"])
        forward = names["forward"]
        made = OnCuda if self.processor == "cuda" else OnCpu
        return made(lambda x: forward(own, x))


def _nested(tensors: dict[str, Tensor]) -> SimpleNamespace:
    """{"a.0.w": t} as an object with .a, whose "0" has .w: what the source calls self."""
    top = SimpleNamespace()
    for name, tensor in tensors.items():
        *parents, last = name.split(".")
        at = top
        for parent in parents:
            if not hasattr(at, parent):
                setattr(at, parent, SimpleNamespace())
            at = getattr(at, parent)
        setattr(at, last, tensor)
    return top


@RUNTIMES("torch-cuda")
class EagerCuda(Eager):
    name = "torch-cuda"
    processor = "cuda"

    def version(self) -> str:
        found = super().version()
        need_cuda(self.name)
        return found
