"""torch.compile: the kernels that Inductor writes, on the CPU (`torch-compile`) and on a GPU (`torch-compile-cuda`).

Compiled ahead, once, to a file (AOTInductor). torch.compile itself would compile in every worker: 76 s for
mobileone_s0@s16 the first time and 20 s from Inductor's own cache, under load on two cores, against 11 ms to load this.
The kernels are the same; torch.compile's checks of its assumptions before each call are left out.
"""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bblab.errors import BblabError
from bblab.latency.runtimes import RUNTIMES, installed
from bblab.latency.runtimes.eager import OnCpu, OnCuda, exact_float32, exported, need_cuda, use_threads

if TYPE_CHECKING:
    from torch import nn


@RUNTIMES("torch-compile")
class Compiled:
    name = "torch-compile"
    suffix = ".pt2"
    precision = "float32"
    pip = "torch"
    uses_torch = True
    processor = "cpu"

    def version(self) -> str:
        return installed(self.name, "torch")

    def settings(self) -> str:
        return "torch.export, AOTInductor"

    def convert(self, module: nn.Module, input_shape: tuple[int, ...], path: Path) -> None:
        import shutil

        if not any(shutil.which(os.environ.get("CXX", name)) for name in ("g++", "clang++", "c++")):
            raise BblabError(
                f"the runtime {self.name!r} needs a C++ compiler", hint="apt install g++, or set CXX", exit_code=1
            )
        # No pool of compiler processes that would outlive the conversion and disturb what is timed after it.
        os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
        import torch
        import torch._inductor

        program = exported(module, input_shape, self.processor)
        if self.processor == "cuda":
            exact_float32()
        log = logging.getLogger("torch.utils.cpp_extension")  # says that there is no GPU, which nobody asked for
        level = log.level
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch 2.13 deprecates what it does itself
            log.setLevel(logging.ERROR)
            try:
                torch._inductor.aoti_compile_and_package(program, package_path=str(path))
            finally:
                log.setLevel(level)

    def load(self, path: str, threads: int) -> OnCpu | OnCuda:
        use_threads(threads)
        if self.processor == "cuda":
            need_cuda(self.name)
            exact_float32()
            return OnCuda(_loaded(path, 0))
        return OnCpu(_loaded(path, -1))


def _loaded(path: str, device: int) -> Any:
    import torch

    try:  # directly: the public function imports all of Inductor, seconds in every worker
        loader = torch._C._aoti.AOTIModelPackageLoader(path, "model", False, 1, device)
    except (AttributeError, TypeError):  # another torch
        import torch._inductor

        return torch._inductor.aoti_load_package(path)
    return lambda x: loader.run([x])


@RUNTIMES("torch-compile-cuda")
class CompiledCuda(Compiled):
    name = "torch-compile-cuda"
    processor = "cuda"

    def version(self) -> str:
        found = super().version()
        need_cuda(self.name)
        return found
