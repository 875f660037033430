"""ONNX Runtime on the CPU, from torch's TorchScript exporter.

The older exporter (`dynamo=False`) is chosen on purpose: it needs no onnxscript, is 2 to 5 times faster (1.3-6 s
against 2.4-15.7 s for six nets, torch 2.13), and the times of the models it writes do not differ.
"""

from __future__ import annotations

import json
import logging
import statistics
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bblab.latency.runtimes import RUNTIMES, LayerTimes, installed, module_path, package_version

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
    return f"torch {package_version('torch')} TorchScript export, opset {OPSET}"


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

    def profiled(self, path: str, threads: int) -> ProfiledSession:
        return ProfiledSession(path, threads)


class ProfiledSession:
    """ONNX Runtime's own profile, on the graph as it has optimised it, every node under a number of ours.

    The names that the profile uses are not enough: nodes made by inlining have none, and those of moved data are
    numbered anew in every process. So the optimised graph is written out, numbered, and run as it is.
    """

    def __init__(self, path: str, threads: int) -> None:
        import onnx
        import onnxruntime

        self._folder = tempfile.TemporaryDirectory(prefix="bblab-ort-")
        folder = Path(self._folder.name)
        writing = options(threads)
        writing.optimized_model_filepath = str(folder / "optimised.onnx")
        onnxruntime.InferenceSession(path, writing, providers=["CPUExecutionProvider"])
        model = onnx.load(str(folder / "optimised.onnx"))
        self._origins = origins(model.graph)
        for number, node in enumerate(model.graph.node):
            node.name = f"n{number}"
        onnx.save(model, str(folder / "numbered.onnx"))
        running = options(threads)
        running.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        running.enable_profiling = True
        running.profile_file_prefix = str(folder / "profile")
        self._session = onnxruntime.InferenceSession(
            str(folder / "numbered.onnx"), running, providers=["CPUExecutionProvider"]
        )
        self._input = self._session.get_inputs()[0].name

    def run(self, x: np.ndarray) -> Sequence[np.ndarray]:
        found: Sequence[np.ndarray] = self._session.run(None, {self._input: x})
        return found

    def layers(self) -> list[LayerTimes]:
        events = _profile(self._session)
        self._folder.cleanup()
        return layer_times(events, self._origins)

    def overhead_s(self) -> float:
        """What the profile adds to each operator: it counts the making of its own record as the operator's time.

        A chain of operators that do nothing, profiled, against the same chain plain: 2.3 us here (onnxruntime 1.32),
        which on 127 operators of mobileone_k5_se came to 4 % of the call.
        """
        return _overhead_s()


IDLE_OPERATORS, IDLE_RUNS = 64, 200


def _overhead_s() -> float:
    import numpy as np
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper

    nodes = [helper.make_node("Neg", [f"t{i}"], [f"t{i + 1}"], name=f"n{i}") for i in range(IDLE_OPERATORS)]
    ends = [helper.make_tensor_value_info(f"t{i}", TensorProto.FLOAT, [1, 8, 1, 1]) for i in (0, IDLE_OPERATORS)]
    graph = helper.make_graph(nodes, "idle", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    onnx.checker.check_model(model)
    x = {"t0": np.zeros((1, 8, 1, 1), np.float32)}
    with tempfile.TemporaryDirectory(prefix="bblab-ort-") as folder:
        sessions = []
        for is_profiled in (False, True):
            how = options(1)
            how.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
            how.enable_profiling = is_profiled
            how.profile_file_prefix = f"{folder}/idle"
            sessions.append(
                onnxruntime.InferenceSession(model.SerializeToString(), how, providers=["CPUExecutionProvider"])
            )
        plain, profiled = sessions
        whole = []
        for _ in range(IDLE_RUNS):
            began = time.perf_counter()
            plain.run(None, x)
            whole.append(time.perf_counter() - began)
            profiled.run(None, x)
        layers = layer_times(_profile(profiled), [("", "", "")] * IDLE_OPERATORS)
    sums = [sum(run) for run in zip(*(layer.seconds for layer in layers), strict=True)]
    return max(0.0, (statistics.median(sums) - statistics.median(whole)) / IDLE_OPERATORS)


def _profile(session: Any) -> list[dict[str, Any]]:
    with Path(session.end_profiling()).open(encoding="utf-8") as file:
        events: list[dict[str, Any]] = json.load(file)
    return events


Origin = tuple[str, str, str]  # a node's own name, the module it came from, how that is known


def origins(graph: Any) -> list[Origin]:  # an onnx.GraphProto
    """Where each node of an optimised graph came from: by its name, else by the tensors it writes, else by whose data
    it moves (a reordered layout belongs to who made the data; at the very front to who reads it).
    """
    found: list[Origin] = []
    made_by: dict[str, str] = {}
    for node in graph.node:
        scope, told_by = "", ""
        if node.name.removeprefix("fused ").startswith("/"):
            scope, told_by = node.name, "name"
        else:
            scope = next((o for o in node.output if o.startswith("/")), "")
            told_by = "output" if scope else ""
        module = module_path(scope) if scope else next((made_by[i] for i in node.input if i in made_by), "")
        if module and not told_by:
            told_by = "neighbour"
        for output in node.output:
            if module:
                made_by[output] = module
        found.append((node.name or f"({node.op_type})", module, told_by))
    readers: dict[str, str] = {}
    for node, (_, module, _) in zip(reversed(graph.node), reversed(found), strict=True):
        if module:
            readers.update(dict.fromkeys(node.input, module))
    for number, (node, (name, module, _)) in enumerate(zip(graph.node, found, strict=True)):
        if not module:
            reader = next((readers[o] for o in node.output if o in readers), "")
            found[number] = (name, reader, "neighbour" if reader else "")
    return found


def layer_times(events: Sequence[dict[str, Any]], known: Sequence[Origin]) -> list[LayerTimes]:
    """Seconds of every numbered node in every run, from a profile's events (microseconds, whole)."""
    runs = sorted((e["ts"], e["ts"] + e["dur"]) for e in events if e.get("name") == "model_run")
    ends = [end for _, end in runs]
    seconds: dict[int, list[float]] = defaultdict(lambda: [0.0] * len(runs))
    kinds: dict[int, str] = {}
    first: dict[int, int] = {}
    for e in events:
        name = e.get("name", "")
        if e.get("cat") != "Node" or not name.startswith("n") or not name.endswith("_kernel_time"):
            continue
        number = int(name.removeprefix("n").removesuffix("_kernel_time"))
        run = next((i for i, end in enumerate(ends) if e["ts"] <= end), None)
        if run is None:
            continue
        seconds[number][run] += e["dur"] * 1e-6
        kinds[number] = e["args"].get("op_name", "?")
        first.setdefault(number, e["ts"])
    return [
        LayerTimes(known[n][0], kinds[n], known[n][1], known[n][2], tuple(seconds[n]))
        for n in sorted(first, key=first.__getitem__)
    ]
