"""What every `launch.py` shares. Copied into it; nothing here knows bblab, and the trainer's code is not changed.

Everything a training writes goes to a folder of its own, `runs/N` beside this file, with the manifest and the
configuration it ran with.
"""

from __future__ import annotations

import argparse
import ast
import collections
import collections.abc
import importlib
import importlib.util
import json
import math
import os
import re
import runpy
import shutil
import socket
import sys
import tempfile
import time
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
NOTES = HERE / "manifest.json"
MANIFEST = json.loads(NOTES.read_text(encoding="utf-8") if NOTES.is_file() else "{}")
WEIGHTS = HERE / MANIFEST.get("weights", {}).get("file", "")
CONFIG = HERE / "config.yaml"
RUNS = HERE / "runs"
SMOKE_EPOCHS = 2
SMOKE_ITERATIONS = 10  # an epoch
SMOKE_BATCH = 2
SMOKE_LR = 1e-5  # a deep net of random weights diverges at a trainer's own rate where a batch is two images
SUPPLIED: list[str] = []
STEPS = [0]
PACKAGES = {"cv2": "opencv-python", "yaml": "pyyaml", "PIL": "pillow", "skimage": "scikit-image"}
"""Packages by the module that they bring, where the names differ."""
NAMED_ALIKE = (
    "colorama", "easydict", "jpeg4py", "lmdb", "loguru", "matplotlib", "numba", "numpy", "pandas", "pycocotools",
    "scipy", "shapely", "tensorboard", "tensorboardX", "timm", "torch", "torchvision", "tqdm", "visdom", "yacs",
)  # fmt: skip
"""Packages that bring a module of their own name. Of others nobody knows whose package a module's name is."""


def say(text: str) -> None:
    """A line of launch.py's own among the trainer's."""
    print(f"launch.py: {text}", flush=True)


def own_module() -> Any:
    """The backbone's module in this folder, without putting this folder on the import path."""
    name = MANIFEST["module"]
    if name not in sys.modules:
        found = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
        assert found is not None and found.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(found)
        found.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def backbone(**kwargs: Any) -> torch.nn.Module:
    """What the trainer calls to build the backbone."""
    return own_module().Backbone(**kwargs)


def trainer_folder(given: str) -> Path:
    """The checkout's folder that holds the trainer's script."""
    root, script = MANIFEST["trainer"]["root"], MANIFEST["trainer"]["script"]
    folder = Path(given).expanduser().resolve()
    for candidate in (folder, folder / root):
        if (candidate / script).is_file():
            return candidate
    sys.exit(f"{folder} has no {script}: give --trainer a checkout of {MANIFEST['trainer']['repository']}")


def enter(trainer: Path) -> None:
    """The trainer's packages first on the import path; names that it uses and current packages dropped are supplied."""
    sys.dont_write_bytecode = True
    folders = [str((trainer / folder).resolve()) for folder in (*MANIFEST["trainer"]["paths"], ".")]
    for folder in [*folders, str((trainer / MANIFEST["trainer"]["script"]).parent)]:
        if folder not in sys.path:
            sys.path.insert(0, folder)
    for name in MANIFEST["trainer"]["supplies"]:
        if globals()[name]():
            SUPPLIED.append(globals()[name].__doc__.splitlines()[0])


# ---- names that the trainers use and current packages dropped; each returns whether it was needed


def numpy_names() -> bool:
    """np.float, np.int, np.bool and np.object, which numpy 1.24 dropped."""
    kinds = {"float": float, "int": int, "bool": bool, "object": object}
    gone = [name for name in kinds if name not in np.__dict__]
    for name in gone:
        setattr(np, name, kinds[name])
    return bool(gone)


def collections_names() -> bool:
    """collections.Iterable and its like, which Python 3.10 dropped."""
    names = ("Callable", "Hashable", "Iterable", "Iterator", "Mapping", "MutableMapping", "Sequence")
    gone = [name for name in names if not hasattr(collections, name)]
    for name in gone:
        setattr(collections, name, getattr(collections.abc, name))
    return bool(gone)


def torch_six() -> bool:
    """torch._six, which torch 1.13 dropped."""
    if "torch._six" in sys.modules or importlib.util.find_spec("torch._six") is not None:
        return False
    gone = types.ModuleType("torch._six")
    values = {"string_classes": (str, bytes), "int_classes": int, "container_abcs": collections.abc, "inf": math.inf}
    for name, value in values.items():
        setattr(gone, name, value)
    sys.modules["torch._six"] = gone
    return True


def torchvision_utils() -> bool:
    """torchvision.models.utils, which torchvision 0.13 dropped."""
    name = "torchvision.models.utils"
    if name in sys.modules or importlib.util.find_spec("torchvision") is None:
        return False
    if importlib.util.find_spec(name) is not None:
        return False
    gone = types.ModuleType(name)
    gone.load_state_dict_from_url = torch.hub.load_state_dict_from_url  # type: ignore[attr-defined]
    sys.modules[name] = gone
    return True


def pandas_squeeze() -> bool:
    """pandas.read_csv(squeeze=True), which pandas 2 dropped."""
    import inspect

    if importlib.util.find_spec("pandas") is None:
        return False
    import pandas

    plain = pandas.read_csv
    if "squeeze" in inspect.signature(plain).parameters:
        return False

    def read_csv(*args: Any, squeeze: bool = False, **kwargs: Any) -> Any:
        table = plain(*args, **kwargs)
        return table.squeeze("columns") if squeeze else table

    read_csv.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter("squeeze", inspect.Parameter.KEYWORD_ONLY)]
    )
    pandas.read_csv = read_csv
    return True


def yaml_loader() -> bool:
    """yaml.load(stream) without a Loader, which PyYAML 6 refuses."""
    import inspect

    import yaml

    plain = yaml.load
    if inspect.signature(plain).parameters["Loader"].default is not inspect.Parameter.empty:
        return False

    def load(stream: Any, Loader: Any = yaml.SafeLoader) -> Any:
        return plain(stream, Loader)

    yaml.load = load
    return True


def whole_checkpoints() -> bool:
    """torch.load of whole checkpoints (optimiser and numpy numbers too), which torch 2.6 refuses unless told."""
    plain = torch.load
    if "whole" in plain.__dict__:
        return False

    def load(*args: Any, **kwargs: Any) -> Any:
        return plain(*args, **{"weights_only": False, **kwargs})

    load.__dict__["whole"] = True
    torch.load = load
    return True


# ---- without CUDA


def on_cpu() -> None:
    """Where there is no CUDA, what the trainer sends to the GPU stays on the CPU: for check.py and --smoke only."""
    if torch.cuda.is_available():
        return

    def stay(self: Any, *_: Any, **__: Any) -> Any:
        return self

    def is_cuda(value: Any) -> bool:
        return (isinstance(value, torch.device) and value.type == "cuda") or (
            isinstance(value, str) and value.startswith("cuda")
        )

    for kind in (torch.Tensor, torch.nn.Module):
        setattr(kind, "cuda", stay)  # noqa: B010
        plain_to = kind.to

        def to(self: Any, *args: Any, _plain: Any = plain_to, **kwargs: Any) -> Any:
            args = tuple("cpu" if is_cuda(value) else value for value in args)
            kwargs = {key: "cpu" if is_cuda(value) else value for key, value in kwargs.items()}
            return _plain(self, *args, **kwargs)

        setattr(kind, "to", to)  # noqa: B010
    torch.cuda.current_device = lambda: 0
    torch.cuda.device_count = lambda: 1
    for name in ("set_device", "empty_cache", "synchronize"):
        setattr(torch.cuda, name, lambda *_, **__: None)
    for name in ("max_memory_allocated", "memory_allocated"):
        setattr(torch.cuda, name, lambda *_, **__: 0)
    storage = getattr(torch, "UntypedStorage", None)
    if storage is not None:
        storage.cuda = stay
    if "map_location" not in torch.load.__dict__:
        loads = torch.load

        def load(*args: Any, **kwargs: Any) -> Any:
            return loads(*args, **{**kwargs, "map_location": "cpu"})

        load.__dict__.update(loads.__dict__, map_location="cpu")
        torch.load = load
    if torch.distributed.is_available():
        joins = torch.distributed.init_process_group

        def join(backend: Any = None, *args: Any, **kwargs: Any) -> Any:
            return joins("gloo", *args, **kwargs)

        torch.distributed.init_process_group = join


def without_gpu() -> str:
    """Why a real training cannot start here; "" where it can."""
    if torch.cuda.is_available():
        return ""
    name = MANIFEST["trainer"]["name"]
    return f"no CUDA device here, and {name} trains on one only; --smoke tries its loop on this CPU"


def one_process() -> None:
    """Without torchrun: a group of one, on a port that is free."""
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")):
        os.environ.setdefault(name, value)
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    if "MASTER_PORT" not in os.environ:
        with socket.socket() as port:
            port.bind(("127.0.0.1", 0))
            os.environ["MASTER_PORT"] = str(port.getsockname()[1])


# ---- what the trainer's script imports


def unready(register: Callable[[Path], None], trainer: Path) -> list[str]:
    """Enter the backbone, then import what the trainer's script imports: what fails, each with its remedy."""
    enter(trainer)
    try:
        register(trainer)
    except ImportError as error:
        return missing_imports(trainer) or [str(error)]
    return missing_imports(trainer)


def missing_imports(trainer: Path) -> list[str]:
    """What of the imports of the trainer's script fails, each with its remedy; empty where all are there."""
    told: dict[str, str] = {}
    script = trainer / MANIFEST["trainer"]["script"]
    tree = ast.parse(script.read_text(encoding="utf-8"))
    nodes: list[ast.stmt] = [n for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom))]
    nodes += [ast.parse(f"import {name}").body[0] for name in MANIFEST["trainer"]["imports"]]
    for node in nodes:
        try:
            exec(compile(ast.Module([node], []), str(script), "exec"), {"__name__": "imports"})
        except ModuleNotFoundError as error:
            name = error.name or str(error)
            told.setdefault(name, f"{name} is not there: {_remedy(trainer, name)}")
        except Exception as error:
            told.setdefault(str(error), f"{type(error).__name__}: {error}")
    return [f"{MANIFEST['trainer']['script']} cannot be imported: {text}" for text in told.values()]


def _remedy(trainer: Path, name: str) -> str:
    top = name.partition(".")[0]
    if any((folder / top).is_dir() or (folder / f"{top}.py").is_file() for folder in (trainer, trainer / "lib")):
        return "it is the trainer's own, and has to be built as the trainer's README says"
    if top in PACKAGES or top in NAMED_ALIKE:
        return f"pip install {PACKAGES.get(top, top)}"
    return "install the package that brings it: the trainer's README or requirements.txt names it"


# ---- a run's folder


def new_run(name: str = "") -> Path:
    """A new folder of this run's own: runs/1, runs/2, ...; with the manifest beside what the training writes.

    Of several processes (torchrun) the first makes it, and the others take the same.
    """
    mark = f"{os.environ.get('MASTER_PORT', '')}-{os.getppid()}"
    if int(os.environ.get("RANK", "0")) > 0:
        return _of_the_first(mark)
    try:
        RUNS.mkdir(exist_ok=True)
        if name:
            shutil.rmtree(RUNS / name, ignore_errors=True)
        number = 1 + max((int(p.name) for p in RUNS.iterdir() if p.name.isdigit()), default=0)
        while True:
            place = RUNS / (name or str(number))
            try:
                place.mkdir()
                break
            except FileExistsError:  # another training began at the same time
                number += 1
                if name:
                    raise
        shutil.copyfile(NOTES, place / NOTES.name)
        (place / ".launch").write_text(mark)
    except OSError as error:
        sys.exit(f"{RUNS} cannot be written ({error.strerror or error}): copy this folder to where you may write")
    return place


def _of_the_first(mark: str) -> Path:
    for _ in range(600):
        for place in RUNS.glob("*/.launch"):
            if place.read_text() == mark:
                return place.parent
        time.sleep(0.1)
    sys.exit(f"no run of this launch in {RUNS} after a minute: the first process (RANK 0) did not come so far")


def old_run(name: str) -> Path:
    """A run of this folder to go on with: by its name, or the newest."""
    there = sorted((p for p in RUNS.glob("*") if p.name.isdigit()), key=lambda p: int(p.name))
    place = RUNS / name if name else there[-1] if there else RUNS
    if place not in there:
        known = ", ".join(p.name for p in there) or "none"
        sys.exit(f"no run {name or ''} to resume in {RUNS}; there: {known}".replace("run  to", "run to"))
    if place.joinpath(NOTES.name).read_bytes() != NOTES.read_bytes():
        sys.exit(f"{place} belongs to another export than this folder now holds: start a new run")
    return place


def leavings(place: Path, what: str) -> list[Path]:
    """The logs ("log") or checkpoints ("checkpoints") of a run, oldest first."""
    found = place.glob(MANIFEST["trainer"]["leaves"][what])
    return sorted(found, key=lambda p: (p.stat().st_mtime, [int(n) for n in re.findall(r"\d+", p.name)]))


def settings_for(place: Path, changes: Mapping[str, Any]) -> Path:
    """config.yaml with these changes ("TRAIN.EPOCH": 2), written into the run's folder; what is not ours stays."""
    import yaml

    try:
        values = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        sys.exit(f"{CONFIG} cannot be read: {error}")
    for key, value in changes.items():
        node = values
        *path, last = key.split(".")
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    head = "# config.yaml as this run had it; written by launch.py, which set: " + (", ".join(changes) or "nothing")
    text = yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=110)
    target = place / CONFIG.name
    target.write_text(f"{head}\n{text}", encoding="utf-8")
    return target


def config_value(key: str) -> Any:
    """A value of config.yaml, as it is now; None where it has none."""
    import yaml

    node = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    for part in key.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return node


def weights_given(key: str) -> str:
    """The weights that config.yaml names: whole where they are this folder's."""
    given = str(config_value(key) or "")
    return str(WEIGHTS) if given == WEIGHTS.name else given


def run(script: Path, arguments: Sequence[str], place: Path) -> None:
    """The trainer's own script, as if called by hand in the run's folder."""
    os.chdir(place)
    sys.argv = [str(script), *arguments]
    runpy.run_path(str(script), run_name="__main__")


class Tee:
    """A stream that is written to a file as well: some trainers print their losses and log them nowhere."""

    def __init__(self, stream: Any, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.stream, self.file = stream, path.open("a", encoding="utf-8")

    def write(self, text: str) -> int:
        self.file.write(text)
        self.file.flush()
        return self.stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def function_of(script: Path, name: str, names: Mapping[str, Any]) -> Callable[..., Any]:
    """One function out of a script that would start training if it were imported; `names` is what it finds there."""
    tree = ast.parse(script.read_text(encoding="utf-8"))
    node = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == name)
    space = dict(names)
    exec(compile(ast.Module([node], []), str(script), "exec"), space)
    return space[name]


# ---- made-up crops


def made_up_image(side: int, box: Sequence[int], seed: int) -> Any:
    """A textured image, BGR, 0 to 255, with a textured object of another colour in a box (x, y, x2, y2)."""
    import cv2

    random = np.random.RandomState(seed)

    def texture(height: int, width: int, colour: Any) -> Any:
        small = random.randint(0, 120, (max(2, height // 16), max(2, width // 16), 3)).astype(np.uint8)
        return np.clip(cv2.resize(small, (width, height)).astype(np.int64) + colour, 0, 255).astype(np.uint8)

    image = texture(side, side, random.randint(0, 60, 3))
    x, y, x2, y2 = box
    image[y:y2, x:x2] = texture(y2 - y, x2 - x, random.randint(60, 160, 3))
    return image


def made_up_crops(folder: Path, videos: int = 4, frames: int = 4) -> tuple[str, str]:
    """Crops of 511 px as pysot's tools make them, and their annotation: the folder, the JSON file."""
    import cv2

    labels: dict[str, Any] = {}
    for v in range(videos):
        (folder / f"v{v}").mkdir(parents=True)
        boxes = {}
        for f in range(frames):
            half = 40 + 6 * v + 2 * f
            box = [255 - half, 255 - half // 2, 255 + half, 255 + half // 2]
            cv2.imwrite(str(folder / f"v{v}" / f"{f:06d}.00.x.jpg"), made_up_image(511, box, 10 * v + f))
            boxes[f"{f:06d}"] = box
        labels[f"v{v}"] = {"00": boxes}
    annotation = folder / "train.json"
    annotation.write_text(json.dumps(labels))
    return str(folder), str(annotation)


def made_up_sequences(folder: Path, listed: int = 4, real: int = 4, frames: int = 24, side: int = 360) -> None:
    """Sequences as GOT-10k has them; of `listed` only `real` are folders of their own, the others links to those.

    STARK's sampler looks for a sequence of 20 visible frames or more until it finds one.
    """
    import cv2

    folder.mkdir(parents=True)
    names = [f"GOT-10k_Train_{n + 1:06d}" for n in range(listed)]
    for n, name in enumerate(names):
        place = folder / name
        if n >= real:
            place.symlink_to(folder / names[n % real], target_is_directory=True)
            continue
        place.mkdir()
        rows = []
        for f in range(frames):
            x, y, w, h = 100 + 6 * f, 140 + 4 * n, 70, 50
            cv2.imwrite(str(place / f"{f + 1:08d}.jpg"), made_up_image(side, (x, y, x + w, y + h), 10 * n + f))
            rows.append(f"{x}.0,{y}.0,{w}.0,{h}.0")
        (place / "groundtruth.txt").write_text("\n".join(rows) + "\n")
        for label, value in (("absence", "0"), ("cover", "8"), ("cut_by_image", "0")):
            (place / f"{label}.label").write_text(f"{value}\n" * frames)
        kinds = ("object_class", "motion_class", "major_class", "root_class", "motion_adverb")
        lines = ["[METAINFO]", "url: none", "begin: 0", "end: 1", "anno_fps: 10Hz", *(f"{k}: made-up" for k in kinds)]
        (place / "meta_info.ini").write_text("\n".join([*lines, f"resolution: ({side}, {side})"]) + "\n")
    (folder / "list.txt").write_text("\n".join(names) + "\n")


# ---- the smoke run


def count_steps() -> None:
    """Count iterations of the loop: each clears the gradients once."""
    plain = torch.optim.Optimizer.zero_grad

    def zero_grad(self: Any, *args: Any, **kwargs: Any) -> Any:
        STEPS[0] += 1
        return plain(self, *args, **kwargs)

    torch.optim.Optimizer.zero_grad = zero_grad  # type: ignore[method-assign]


def losses_in(log: Path) -> list[float]:
    """Every number that a log gives as a loss."""
    names = "|".join(MANIFEST["trainer"]["leaves"]["losses"])
    text = log.read_text(encoding="utf-8", errors="replace")
    return [float(n) for n in re.findall(rf"(?:{names})\s*:\s*([-+]?\d[-+\d.e]*|nan|inf)", text)]


def smoke_verdict(restore: Callable[[Any], Any], backbone_of: Callable[[Any], Any], place: Path) -> int:
    """Read back what the smoke run left: checkpoint by the trainer's own loader, log; the number of failures."""
    wanted = SMOKE_EPOCHS * SMOKE_ITERATIONS
    checkpoints, logs = leavings(place, "checkpoints"), leavings(place, "log")
    failures = []

    def claim(holds: Any, text: str) -> None:
        print(f"{'ok  ' if holds else 'FAIL'} {text}", flush=True)
        if not holds:
            failures.append(text)

    claim(STEPS[0] == wanted, f"{STEPS[0]} iterations of {MANIFEST['trainer']['name']}'s own loop, wanted {wanted}")
    claim(checkpoints, f"checkpoints: {', '.join(p.name for p in checkpoints) or 'none'}")
    if checkpoints:
        kept = torch.load(checkpoints[-1], map_location="cpu")
        saved = next(v for k, v in kept.items() if k in ("state_dict", "net", "model_state_dict"))
        before = backbone_of(restore(None))
        old = {key: value.clone() for key, value in before.state_dict().items()}
        part = backbone_of(restore(checkpoints[-1]))
        mine = part.state_dict()
        same = sum(any(k.endswith(key) and torch.equal(v, mine[key]) for k, v in saved.items()) for key in mine)
        claim(same == len(mine), f"the trainer's own loader read back {same} of the backbone's {len(mine)} tensors")
        moved = sum(not torch.equal(value, mine[key]) for key, value in old.items() if key in mine)
        claim(moved > 0, f"{moved} of them moved in training")
    numbers = [n for log in logs for n in losses_in(log)]
    shown = f"{numbers[0]:.4g} to {numbers[-1]:.4g}" if numbers else "none"
    where = logs[-1].relative_to(HERE) if logs else "no log"
    claim(numbers and all(map(math.isfinite, numbers)), f"{where}: {len(numbers)} losses, {shown}")
    print("the smoke run holds" if not failures else f"{len(failures)} claims do not hold", flush=True)
    return len(failures)


def main(
    register: Callable[[Path], None],
    start: Callable[[Path, Path, dict[str, Any], list[str]], None],
    smoke: Callable[[Path, Path], dict[str, Any]],
    resume: Callable[[Path], tuple[dict[str, Any], list[str]]],
    restore: Callable[[Any], Any],
    backbone_of: Callable[[Any], Any],
    ready: Callable[[Path], str],
) -> None:
    name = MANIFEST["trainer"]["name"]
    parser = argparse.ArgumentParser(
        description=f"Train {MANIFEST['module']} with {name}. Other options are handed on to it."
    )
    parser.add_argument("--trainer", required=True, metavar="DIR", help=f"a checkout: {MANIFEST['trainer']['root']}")
    parser.add_argument(
        "--smoke",
        action="store_true",
        help=f"{SMOKE_EPOCHS * SMOKE_ITERATIONS} iterations of the trainer's own loop on the CPU with made-up crops",
    )
    parser.add_argument(
        "--resume", nargs="?", const="", metavar="RUN", help="go on with a run of this folder, the newest unless named"
    )
    given, rest = parser.parse_known_args()
    rest = [argument for argument in rest if argument != "--"]
    if given.smoke and given.resume is not None:
        parser.error("--smoke begins a run of its own: leave --resume away")
    trainer = trainer_folder(given.trainer)
    if given.smoke:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        on_cpu()
    wrong = unready(register, trainer)
    if wrong:
        sys.exit("\n".join(wrong))
    for text in SUPPLIED:
        say(f"supplied, since this environment lacks it: {text}")
    if not given.smoke:
        reason = ready(trainer)
        if reason:
            sys.exit(reason)
    if given.resume is not None:
        place = old_run(given.resume)
        changes, more = resume(place)
        say(f"going on with {place}")
        start(trainer, place, changes, [*more, *rest])
        return
    place = new_run("smoke" if given.smoke else "")
    say(f"everything goes to {place}")
    if not given.smoke:
        start(trainer, place, {}, rest)
        return
    data = Path(tempfile.mkdtemp(prefix="made-up-"))
    try:
        count_steps()
        torch.manual_seed(0)
        start(trainer, place, smoke(trainer, data), rest)
        failures = smoke_verdict(restore, backbone_of, place)
    finally:
        shutil.rmtree(data, ignore_errors=True)
    sys.exit(1 if failures else 0)
