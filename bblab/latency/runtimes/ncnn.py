"""ncnn on the CPU, converted by pnnx from TorchScript.

A model file is a zip of ncnn's two files. The options that let ncnn compute in half precision are off: with its
defaults the outputs of six nets were off torch's by 2e-4 to 8e-4, without by 2e-5 or less (x86-64, ncnn 1.0.20261020).
"""

from __future__ import annotations

import subprocess
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bblab.errors import RunError
from bblab.latency.runtimes import RUNTIMES, installed, package_version

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

HALF_PRECISION = ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage", "use_bf16_packed")
FILES = ("model.ncnn.param", "model.ncnn.bin")


class _Net:
    def __init__(self, net: Any) -> None:  # ncnn ships no types
        self._net = net
        names = sorted(net.output_names(), key=lambda name: (len(name), name))  # out0, out1, ... out10
        (self._input,), self._outputs = net.input_names(), names

    def run(self, x: np.ndarray) -> Sequence[np.ndarray]:
        import ncnn
        import numpy as np

        extractor = self._net.create_extractor()
        # ncnn knows no batch. The copy into its own layout took 0.03 ms for 3 x 255 x 255.
        extractor.input(self._input, ncnn.Mat(x[0]))
        found = []
        for name in self._outputs:
            code, mat = extractor.extract(name)
            if code != 0:
                raise RuntimeError(f"ncnn could not compute {name} (code {code})")
            found.append(np.array(mat)[None])
        return found


@RUNTIMES("ncnn")
class Ncnn:
    name = "ncnn"
    suffix = ".ncnn.zip"
    precision = "float32"
    pip = "ncnn pnnx"

    def version(self) -> str:
        return installed(self.name, "ncnn")

    def settings(self) -> str:
        return f"torch {package_version('torch')} TorchScript trace, pnnx {installed(self.name, 'pnnx')} fp16=0"

    def convert(self, module: nn.Module, input_shape: tuple[int, ...], path: Path) -> None:
        import warnings

        import pnnx
        import torch

        with tempfile.TemporaryDirectory(prefix="bblab-pnnx-") as folder:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch 2.13 announces the end of TorchScript
                traced = torch.jit.trace(module.eval(), torch.zeros(input_shape), check_trace=False)
                traced.save(f"{folder}/model.pt")
            shape = ",".join(map(str, input_shape))
            done = subprocess.run(
                [pnnx.EXEC_PATH, "model.pt", f"inputshape=[{shape}]", "fp16=0"],
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
                    # A fixed date, so that the same net gives the same file and the same hash.
                    packed.writestr(zipfile.ZipInfo(file.name), file.read_bytes())

    def load(self, path: str, threads: int) -> _Net:
        import ncnn

        net = ncnn.Net()
        net.opt.num_threads = threads
        for option in HALF_PRECISION:
            if hasattr(net.opt, option):  # older ones know fewer
                setattr(net.opt, option, False)
        with tempfile.TemporaryDirectory(prefix="bblab-ncnn-") as folder, zipfile.ZipFile(path) as packed:
            param, weights = (packed.extract(name, folder) for name in FILES)
            if net.load_param(param) != 0 or net.load_model(weights) != 0:
                raise _refused(self.version(), Path(param).read_text(encoding="utf-8"), Path(path).name)
        return _Net(net)


def _refused(version: str, param: str, file: str) -> RunError:
    """Why ncnn did not load a model: the operators in it that it does not know, as far as it is that."""
    import ncnn

    kinds = dict.fromkeys(words[0] for line in param.splitlines()[2:] if (words := line.split()))
    unknown = [kind for kind in kinds if ncnn.layer_to_index(kind) < 0]
    if unknown:
        hint = "write them with other operations, or measure this net with another runtime: bblab bench --runtime ort"
        return RunError(f"ncnn {version} does not know {', '.join(unknown)}", hint=hint)
    return RunError(f"ncnn {version} cannot load {file}", hint="its own message is above; another runtime may take it")
