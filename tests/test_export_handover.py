"""The hand-over folder, checked by its own check.py against stand-ins of the trainers' interfaces (tests/trainers)."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from bblab.errors import BblabError
from bblab.lab import Lab

TRAINERS = Path(__file__).parent / "trainers"

# Three nets: plain; re-parameterised; re-parameterised with SE and a shuffled concat.
ROWS = {
    "plain": {
        "s4": "{block: conv, out: 16, stride: 2}",
        "s8": "[{block: conv, out: 16, stride: 2}, {block: conv}]",
        "s16": "{block: conv, out: 24, stride: 2}",
    },
    "reparam": {
        "s4": "{block: mobileone, out: 16, stride: 2, branches: 2}",
        "s8": "{block: mobileone, out: 16, stride: 2, branches: 2, repeat: 2}",
        "s16": "{block: mobileone, out: 24, stride: 2, branches: 2}",
    },
    "se_shuffle": {
        "s4": "{block: mobileone, out: 16, stride: 2, branches: 2, se: {ratio: 0.25, gate: hsigmoid}}",
        "s8": "[{block: shuffle_down, out: 32, stride: 2, shortcut: avgpool, branches: 1}, "
        "{block: mobileone, kernel: 5, se: {ratio: 0.25, gate: hsigmoid}}]",
        "s16": "{block: shuffle_down, out: 48, stride: 2, branches: 1}",
    },
}
# 127 -> 59 -> 29 -> 25 -> 12 -> 10 -> 8 -> 6 and 303 -> 147 -> 73 -> 69 -> 34 -> 32 -> 30 -> 28, as AlexNet
UNPADDED = {
    "plain": "[{block: conv, out: 16}, {block: conv, out: 16}, {block: conv, out: 16}]",
    "reparam": "{block: mobileone, out: 16, branches: 2, repeat: 3}",
    "se_shuffle": "[{block: mobileone, out: 16, se: {ratio: 0.25}}, {block: shuffle_down, out: 16}, "
    "{block: mobileone, out: 16, branches: 2}]",
}
RULES = {
    "nanotrack": ("same", 16),
    "pysot": ("same_unless_strided", 8),
    "ocean": ("same_unless_strided", 8),
    "stark": ("same", 16),
    "siamfcpp": ("valid", 8),
    "generic": ("same", 16),
}
NETS = tuple(ROWS)


def spec_text(target: str, net: str) -> str:
    pad, stride = RULES[target]
    if target == "siamfcpp":
        return (
            f"name: {net}\ninput: [3, 127, 127]\ndefaults: {{pad: valid}}\nstages:\n"
            "  conv1: [{block: conv, out: 8, kernel: 11, stride: 2}, "
            "{block: maxpool, kernel: 3, stride: 2, pad: 0, ceil_mode: true}]\n"
            "  conv2: [{block: conv, out: 16, kernel: 5}, "
            "{block: maxpool, kernel: 3, stride: 2, pad: 0, ceil_mode: true}]\n"
            f"  conv3: {UNPADDED[net]}\n"
        )
    rows = ROWS[net]
    last = f"  s16: {rows['s16']}\n" if stride == 16 else ""
    return (
        f"name: {net}\ninput: [3, 127, 127]\ndefaults: {{pad: {pad}}}\nstages:\n"
        f"  stem: {{block: conv, out: 8, stride: 2}}\n  s4: {rows['s4']}\n  s8: {rows['s8']}\n{last}"
    )


# Imports torch once, then forks: each check gets a process of its own, as when called by hand.
DRIVER = """
import json, os, runpy, sys
import torch
torch.set_num_threads(1)
import torch.nn.functional, yacs.config, yaml, numpy
net = torch.nn.Conv2d(3, 4, 3)
for kind in (torch.optim.SGD, torch.optim.AdamW):  # the first step of an optimiser imports half of torch
    net(torch.zeros(1, 3, 8, 8)).sum().backward()
    kind(net.parameters(), lr=0.1).step()
for job in json.loads(sys.argv[1]):
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        if job["has_gpu"]:  # a machine with a GPU, as far as the scripts can see; torch itself is told the truth
            runpy.run_path(job["script"], run_name="seen")["on_cpu"]()
            seeing = ("/launch.py", "/main/train.py")
            torch.cuda.is_available = lambda: sys._getframe(1).f_code.co_filename.endswith(seeing)
        out = os.open(job["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1); os.dup2(out, 2)
        sys.argv = [job["script"], *job["args"]]
        os.chdir(os.path.dirname(job["script"]))
        code = 1
        try:
            runpy.run_path(job["script"], run_name="__main__")
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else (0 if stop.code is None else 1)
            if isinstance(stop.code, str):
                print(stop.code)
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            sys.stdout.flush(); sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    print(json.dumps([job["name"], os.waitstatus_to_exitcode(status)]), flush=True)
"""


@dataclass(frozen=True)
class Said:
    code: int
    text: str


def run_scripts(jobs: dict[str, tuple[Path, list[str]]], folder: Path, *, has_gpu: bool = False) -> dict[str, Said]:
    """Scripts of exported folders, each in a process without bblab; what each said."""
    listed = [
        {
            "name": name,
            "script": str(script),
            "args": args,
            "out": str(folder / f"{name.replace('/', '-')}.txt"),
            "has_gpu": has_gpu,
        }
        for name, (script, args) in jobs.items()
    ]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", DRIVER, json.dumps(listed)],
        capture_output=True,
        text=True,
        timeout=500,
        env=environment,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    codes = dict(json.loads(line) for line in done.stdout.splitlines())
    return {job["name"]: Said(codes[job["name"]], Path(job["out"]).read_text()) for job in listed}


@dataclass(frozen=True)
class World:
    """All exports of this file, what their scripts said, and the stand-ins' files before and after."""

    root: Path
    folders: dict[str, Path]
    said: dict[str, Said]
    trainers_before: dict[str, bytes]
    lab: Lab


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> World:
    import torch

    from bblab.build import build

    root = tmp_path_factory.mktemp("exports")
    lab = Lab(root / "lab")
    (root / "lab" / "arch_specs").mkdir(parents=True)
    folders: dict[str, Path] = {}
    jobs: dict[str, tuple[Path, list[str]]] = {}
    for target in RULES:
        trainer = root / "trainers" / target
        if target != "generic":
            shutil.copytree(TRAINERS / target, trainer, ignore=shutil.ignore_patterns("__pycache__"))
        given = ["--module-only"] if target == "generic" else ["--trainer", str(trainer)]
        for net in NETS:
            path = root / f"{target}-{net}.yaml"
            path.write_text(spec_text(target, net))
            weights = root / f"{target}-{net}.pth"
            torch.save(build(lab.spec(str(path)), lab.kinds, seed=3).state_dict(), weights)
            folders[f"{target}/{net}"] = out = root / f"{target}-{net}"
            lab.hand_over(str(path), target, out, weights=weights)
            jobs[f"{target}/{net}"] = (out / "check.py", given)
        folders[f"random/{target}"] = out = root / f"random-{target}"
        lab.hand_over(str(root / f"{target}-plain.yaml"), target, out)
        jobs[f"random/{target}"] = (out / "check.py", given)
    # what check.py must see: weights of which one key is missing; norms that nothing holds; a map of another size
    for name, change in BROKEN.items():
        folders[name] = out = root / name
        shutil.copytree(folders[f"{change[0]}/reparam"], out)
        change[1](out)
        jobs[name] = (out / "check.py", ["--trainer", str(root / "trainers" / change[0])])
    for target in LAUNCHED:
        given = ["--trainer", str(root / "trainers" / target)]
        jobs[f"no-gpu/{target}"] = (folders[f"{target}/plain"] / "launch.py", given)
    jobs["launch/nowhere"] = (folders["nanotrack/plain"] / "launch.py", ["--trainer", str(root)])
    jobs["check/untold"] = (folders["nanotrack/plain"] / "check.py", [])
    shutil.copytree(root / "trainers" / "ocean", root / "lacking")
    function = root / "lacking/lib/core/function.py"
    function.write_text("import not_installed_here\n" + function.read_text())
    for name in ("check", "launch"):
        given = ["--trainer", str(root / "lacking"), *(["--smoke"] if name == "launch" else [])]
        jobs[f"lacking/{name}"] = (folders["ocean/plain"] / f"{name}.py", given)
    before = contents(root / "trainers")
    return World(root, folders, run_scripts(jobs, root), before, lab)


LAUNCHED = ("nanotrack", "pysot", "ocean", "stark", "siamfcpp")


@pytest.fixture(scope="module")
def smoked(world: World) -> World:
    """The world after a smoke run of each target's plain net, with weights that are spared at first."""
    jobs = {}
    for target in LAUNCHED:
        given = ["--trainer", str(world.root / "trainers" / target), "--smoke"]
        jobs[f"smoke/{target}"] = (world.folders[f"{target}/plain"] / "launch.py", given)
    world.said.update(run_scripts(jobs, world.root))
    return world


@pytest.fixture(scope="module")
def trained(smoked: World) -> dict[str, Path]:
    """Each target's folder of random weights, in which two short trainings ran and the second was resumed."""
    world, data = smoked, smoked.root / "data"
    (world.root / "trainers/stark/data").mkdir()
    (world.root / "trainers/stark/data/got10k").symlink_to(data / "train", target_is_directory=True)
    space = runpy.run_path(str(world.folders["nanotrack/plain"] / "launch.py"), run_name="seen")
    space["made_up_crops"](data)
    space = runpy.run_path(str(world.folders["stark/plain"] / "launch.py"), run_name="seen")
    space["made_up_sequences"](data / "train", listed=9335)
    folders = {target: world.folders[f"random/{target}"] for target in LAUNCHED}
    jobs: dict[str, tuple[Path, list[str]]] = {}
    for target, folder in folders.items():
        _shorten(folder / "config.yaml", world.folders[f"{target}/plain"] / "runs/smoke/config.yaml", data)
        given = ["--trainer", str(world.root / "trainers" / target)]
        more = ["--seed", "7"] if target in ("nanotrack", "pysot") else []
        jobs[f"launch/{target}"] = (folder / "launch.py", given + more)
    world.said.update(run_scripts(jobs, world.root, has_gpu=True))
    first = {target: contents(folder / "runs/1") for target, folder in folders.items()}
    world.said.update(run_scripts({f"again/{n}": job for n, job in jobs.items()}, world.root, has_gpu=True))
    for target, folder in folders.items():
        assert contents(folder / "runs/1") == first[target], target
        # as if killed in its last epoch
        last = ("checkpoint_e3.pth",) if target == "ocean" else LAST
        for path in [p for p in (folder / "runs/2").rglob("*.p*") if p.name in last]:
            path.unlink()
    resumed = {name: (script, [*given, "--resume"]) for name, (script, given) in jobs.items()}
    world.said.update(
        run_scripts({n.replace("launch", "resume"): job for n, job in resumed.items()}, world.root, has_gpu=True)
    )
    return folders


LAST = ("checkpoint_e2.pth", "Model_ep0002.pth.tar", "epoch-1.pkl", "final_model.pkl")


def _shorten(config: Path, smoke: Path, data: Path) -> None:
    """A user's settings: two epochs of two steps on data of their own, from the smoke run's configuration."""
    text = smoke.read_text()
    weights = config.parent / yaml.safe_load((config.parent / "manifest.json").read_text())["weights"]["file"]
    made_up = re.search(r"(/\S*/made-up-\w+)", text)  # STARK's data are in data/ of the checkout
    for old, new in {
        **({f"{made_up[1]}/crops": str(data), made_up[1]: str(data)} if made_up else {}),
        "VIDEOS_PER_EPOCH: 21": "VIDEOS_PER_EPOCH: 5",
        "USE: 20": "USE: 4",
        "SAMPLE_PER_EPOCH: 20": "SAMPLE_PER_EPOCH: 4",
        "nr_image_per_epoch: 20": "nr_image_per_epoch: 4",
        "PRINT_FREQ: 5": "PRINT_FREQ: 1",
        "PRINT_INTERVAL: 5": "PRINT_INTERVAL: 1",
        "END_EPOCH: 2": "END_EPOCH: 3",
        "device: cpu": "device: cuda",
        "TRAIN_EPOCH: 1": "TRAIN_EPOCH: 0",
        "UNFIX_EPOCH: 1": "UNFIX_EPOCH: 0",
    }.items():
        text = text.replace(old, new)
    values = yaml.safe_load(text)
    _to_file(values, weights.name)
    config.write_text(yaml.safe_dump(values, sort_keys=False))


def _to_file(node: Any, name: str) -> None:
    """Weights as config.yaml names them: this folder's file."""
    for key, value in node.items():
        if isinstance(value, dict):
            _to_file(value, name)
        elif key in ("PRETRAINED", "PRETRAIN", "pretrain_model_path") and str(value).endswith(name):
            node[key] = name


def _drop_a_key(folder: Path) -> None:
    import torch

    path = folder / "bb_reparam.pth"
    state = torch.load(path, weights_only=True)
    state.pop(next(k for k in state if k.endswith("conv.weight")))
    torch.save(state, path)


def _let_norms_move(folder: Path) -> None:
    path = folder / "bb_reparam.py"
    text = path.read_text()
    assert text.count("                module.eval()") == 1
    path.write_text(text.replace("                module.eval()", "                pass"))


def _say_another_size(folder: Path) -> None:
    for name in ("manifest.json", "config.yaml"):
        path = folder / name
        path.write_text(path.read_text().replace('"score_map": 15', '"score_map": 16'))


BROKEN: dict[str, tuple[str, Callable[[Path], None]]] = {
    "broken-key": ("nanotrack", _drop_a_key),
    "broken-freeze": ("ocean", _let_norms_move),
    "broken-size": ("nanotrack", _say_another_size),
}


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("target", RULES)
def test_every_claim_holds_for_every_target_and_net(world: World, target: str, net: str):
    said = world.said[f"{target}/{net}"]
    assert said.code == 0, said.text
    assert "every claim holds" in said.text and "FAIL" not in said.text
    if target not in ("generic", "stark"):
        assert "frozen: no statistic" in said.text
        assert "tensors of the rest learned" in said.text
    if target != "generic":
        assert "by its own loader" in said.text or "its own loader took" in said.text


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("broken-key", "keys match"),
        ("broken-freeze", "no running statistic moves"),
        ("broken-size", "cls is 15x15"),
    ],
)
def test_check_sees_what_is_broken(world: World, name: str, words: str):
    said = world.said[name]
    assert said.code == 1
    assert any(line.startswith("FAIL") and words in line for line in said.text.splitlines()), said.text


def test_launch_starts_the_trainers_script_with_the_folders_config(world: World, trained: dict[str, Path]):
    # float is gone from numpy; OUTPUT_SIZE of head V3 is 15; --seed is handed on
    assert "np.float is float seed 7 type bb_plain out 15" in world.said["launch/nanotrack"].text
    assert "rank 0 np.float is float seed 7 type bb_plain out 25" in world.said["launch/pysot"].text
    assert "model Own weights there True" in world.said["launch/ocean"].text
    stark = world.said["launch/stark"].text
    assert "Finished training!" in stark and "crashed" not in stark, stark
    weights = trained["siamfcpp"] / "bb_plain.pkl"
    assert f"task track weights {weights}" in world.said["launch/siamfcpp"].text
    for name in LAUNCHED:
        assert world.said[f"launch/{name}"].code == 0, world.said[f"launch/{name}"].text


@pytest.mark.parametrize("target", LAUNCHED)
def test_every_training_writes_into_a_run_of_its_own_with_the_manifest_above(
    world: World, trained: dict[str, Path], target: str
):
    folder = trained[target]
    for said in ("launch", "again/launch"):
        assert world.said[f"{said}/{target}"].code == 0, world.said[f"{said}/{target}"].text
    assert sorted(p.name for p in (folder / "runs").iterdir()) == ["1", "2"]
    leaves = json.loads((folder / "manifest.json").read_text())["trainer"]["leaves"]
    for run in ("1", "2"):
        place = folder / "runs" / run
        assert (place / "manifest.json").read_bytes() == (folder / "manifest.json").read_bytes()
        assert list(place.glob(leaves["log"])) and list(place.glob(leaves["checkpoints"])), contents(place).keys()
    assert contents(world.root / "trainers") == world.trainers_before  # nothing in the checkouts


@pytest.mark.parametrize("target", LAUNCHED)
def test_a_run_is_resumed_in_its_own_folder_from_its_newest_checkpoint(
    world: World, trained: dict[str, Path], target: str
):
    from bblab.tracking import logs

    said = world.said[f"resume/{target}"]
    assert said.code == 0, said.text
    folder = trained[target] / "runs/2"
    assert f"going on with {folder}" in said.text
    log = logs.read(sorted(folder.glob(_leaves(trained[target])["log"])))
    epochs = [epoch.epoch for epoch in log.epochs]
    assert epochs[:2] == ([0, 1] if target == "siamfcpp" else [1, 2]), epochs
    if target in ("nanotrack", "pysot"):
        assert "resume from" in (folder / "logs/logs.txt").read_text()
    assert contents(world.root / "trainers") == world.trainers_before


def _leaves(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())["trainer"]["leaves"]


@pytest.mark.parametrize("target", LAUNCHED)
def test_smoke_runs_twenty_iterations_and_what_it_leaves_is_read_back(smoked: World, target: str):
    import torch

    from bblab.tracking import logs
    from bblab.weights import files

    said = smoked.said[f"smoke/{target}"]
    assert said.code == 0, said.text
    assert "ok   20 iterations of" in said.text and "the smoke run holds" in said.text
    folder = smoked.folders[f"{target}/plain"]
    place, leaves = folder / "runs/smoke", _leaves(folder)
    log = logs.read(sorted(place.glob(leaves["log"])))
    assert len(log.epochs) == 2 and all(e.iterations == 10 and e.is_complete for e in log.epochs)
    assert all(value == value for e in log.epochs for value in e.means.values())
    checkpoint = max(place.glob(leaves["checkpoints"]), key=lambda p: p.name)
    if target == "stark":  # it pickles objects of its own: read where the trainer is, not by bblab
        state = torch.load(checkpoint, map_location="cpu", weights_only=False)["net"]
    else:
        state = files.read(checkpoint).state
    weights = json.loads((folder / "manifest.json").read_text())["weights"]
    own = torch.load(folder / weights["file"], weights_only=True)
    short = {key.removeprefix(weights["prefix"]) for key in own}
    fitted, _ = files.fit_keys(state, {key: tuple(own[weights["prefix"] + key].shape) for key in short})
    counters = {key for key in short if key.endswith("num_batches_tracked")}
    assert short - counters <= set(fitted)  # frozen norms of STARK have no counter
    moved = [key for key in fitted if not torch.equal(fitted[key], own[weights["prefix"] + key])]
    assert moved


@pytest.mark.parametrize("target", LAUNCHED)
def test_a_machine_without_a_gpu_is_one_sentence(world: World, target: str):
    said = world.said[f"no-gpu/{target}"]
    assert said.code == 1
    lines = [line for line in said.text.splitlines() if not line.startswith("launch.py: supplied")]
    assert len(lines) == 1 and "no CUDA device here" in lines[0] and "--smoke" in lines[0], said.text


@pytest.mark.parametrize("name", ["check", "launch"])
def test_a_package_that_the_trainers_script_needs_is_named_with_its_remedy(world: World, name: str):
    said = world.said[f"lacking/{name}"]
    assert said.code == 1
    # a module's name may be a stranger's package: only known ones are named
    assert "not_installed_here is not there: install the package that brings it" in said.text, said.text
    assert "pip install" not in said.text
    assert "Traceback" not in said.text


@pytest.mark.parametrize("target", RULES)
def test_random_weights_are_not_frozen_and_learn_at_the_full_rate(world: World, target: str):
    folder = world.folders[f"random/{target}"]
    said = world.said[f"random/{target}"]
    assert said.code == 0, said.text
    freeze = json.loads((folder / "manifest.json").read_text())["freeze"]
    assert freeze["epochs"] == 0 and freeze["lr_share"] == 1 and freeze["norms_never_learn"] is False
    assert "random weights" in freeze["why"]
    readme = (folder / "README.md").read_text()
    assert "never (random weights" in readme and "at the full learning rate" in readme
    kept = json.loads((world.folders[f"{target}/plain"] / "manifest.json").read_text())["freeze"]
    assert kept["lr_share"] == 0.1
    if target != "generic":
        assert "epoch 0:" in said.text and "epoch 0, frozen" not in said.text  # every stage learns in the first step
        stages = 1 if target == "nanotrack" else 3 if target == "siamfcpp" else 4 if target == "stark" else 3
        assert len(freeze["layers"]) == stages, freeze


def test_random_weights_are_said_in_the_configuration(tmp_path: Path, world: World):
    for target in LAUNCHED:
        weights = world.root / f"{target}-plain.pth"
        out = tmp_path / target
        out.mkdir()
        lab, path = world.lab, str(world.root / f"{target}-plain.yaml")
        lab.hand_over(path, target, out / "random", store=False)
        lab.hand_over(path, target, out / "trained", weights=weights, store=False)
        random, kept = ((out / name / "config.yaml").read_text() for name in ("random", "trained"))
        assert "random weights: nothing to spare" in random and "random weights" not in kept
        share, epochs, norms = KEYS[target]
        assert f"{share}1.0" in random and f"{share}0.1" in kept
        if epochs:
            assert re.search(rf"{epochs}0\b", random) and re.search(rf"{epochs}10\b", kept)
        if norms:
            assert f"{norms}false" in random and f"{norms}true" in kept


KEYS = {
    "nanotrack": ("LAYERS_LR: ", "TRAIN_EPOCH: ", ""),
    "pysot": ("LAYERS_LR: ", "TRAIN_EPOCH: ", ""),
    "ocean": ("LAYERS_LR: ", "UNFIX_EPOCH: ", ""),
    "stark": ("BACKBONE_MULTIPLIER: ", "", "FREEZE_BACKBONE_BN: "),
    "siamfcpp": ('"regex": "basemodel", "ratio": ', "", '"epoch": 0, "freezed": '),
}


def test_everything_in_the_folder_runs_on_python_3_8(world: World):
    from bblab.export.pythons import oldest

    for name, folder in world.folders.items():
        for path in folder.glob("*.py"):
            assert oldest(path.read_text()) == (8, ""), (name, path.name)


def test_the_copy_of_every_built_in_block_runs_on_python_3_8():
    from bblab.export.pythons import oldest
    from bblab.export.sources import Collection

    kinds = Lab(Path("no-lab-here")).kinds
    for kind, info in kinds.items():
        found = Collection()
        found.add(info.file, info.class_name)
        for path in found.files():
            for text in found.texts(path):
                assert oldest(text) == (8, ""), (kind, path.name)


@pytest.mark.parametrize(
    ("text", "minor"),
    [
        ("def f(x, /):\n    return (y := x)", 8),
        ("for a, b in zip(x, y, strict=True): pass", 10),
        ("name = text.removeprefix('a')", 9),
        ("kind = list[int]", 9),
        ("both = {**a} | {'b': 1}", 9),
        ("settings |= {'b': 1}", 9),
        ("isinstance(x, int | str)", 10),
        ("match x:\n    case 1: pass", 10),
        ("try: pass\nexcept* ValueError: pass", 11),
        ("from itertools import pairwise", 10),
        ("class A:\n    def cache(self): pass\nA().cache()", 8),
    ],
)
def test_the_oldest_python_of_a_text(text: str, minor: int):
    from bblab.export.pythons import oldest

    assert oldest(text)[0] == minor


def test_strict_zip_of_a_block_is_copied_without_its_word(tmp_path: Path):
    from bblab.export.sources import Collection

    (tmp_path / "one.py").write_text("def pairs(a, b):\n    return list(zip(a, b[:2], strict=True))\n")
    found = Collection()
    found.add(tmp_path / "one.py", "pairs")
    text = "\n".join(t for path in found.files() for t in found.texts(path))
    assert "strict" not in text
    space: dict = {}
    exec(text, space)
    assert space["pairs"]([1, 2], "xyz") == [(1, "x"), (2, "y")]


def test_a_module_whose_features_differ_is_not_put_in_place(world: World, tmp_path: Path, monkeypatch):
    from bblab.export import codegen

    path = str(world.root / "nanotrack-plain.yaml")
    plain = codegen.module_text

    def elsewhere(*args: Any, **kwargs: Any) -> str:  # as a block whose copy is another function
        text = plain(*args, **kwargs)
        changed = text.replace("x = stage(x)", "x = stage(x) * 1.01")
        assert changed != text
        return changed

    monkeypatch.setattr(codegen, "module_text", elsewhere)
    with pytest.raises(BblabError, match=r"(?s)features are not those.*template, s16: off by 0\.0\d+ of the largest"):
        world.lab.hand_over(path, "nanotrack", tmp_path / "out", store=False)
    assert list(tmp_path.iterdir()) == []

    def other_keys(*args: Any, **kwargs: Any) -> str:
        return plain(*args, **kwargs).replace('stages["s16"]', 'stages["s17"]')

    monkeypatch.setattr(codegen, "module_text", other_keys)
    with pytest.raises(BblabError, match=r"features\.s17\.0\.conv\.weight: in the module, not among the weights"):
        world.lab.hand_over(path, "nanotrack", tmp_path / "out", store=False)
    monkeypatch.setattr(codegen, "module_text", lambda *a, **k: "class Backbone:\n    def __init__(self): 1 / 0\n")
    with pytest.raises(BblabError, match="does not run: ZeroDivisionError"):
        world.lab.hand_over(path, "nanotrack", tmp_path / "out", store=False)
    assert list(tmp_path.iterdir()) == []


def test_a_block_whose_state_lies_outside_of_its_file_is_not_put_in_place(tmp_path: Path):
    (tmp_path / "blocks").mkdir()
    (tmp_path / "arch_specs").mkdir()
    (tmp_path / "blocks/lazy.py").write_text(
        '"""A convolution times a number that the lab sets."""\n\n'
        "import os\n\nfrom torch import nn\n\nfrom bblab.blockkit import ConvNorm, block\n\n"
        "COUNT = []\n\n\n"
        '@block("lazy")\nclass Lazy(nn.Module):\n'
        "    def __init__(self, in_ch: int, out_ch: int, stride: int = 1, *, device=None, dtype=None) -> None:\n"
        "        super().__init__()\n"
        "        self.conv = ConvNorm(in_ch, out_ch, 3, stride, device=device, dtype=dtype)\n"
        "        COUNT.append(1)\n        self.scale = float(len(COUNT))\n\n"
        "    def forward(self, x):\n        return self.conv(x) * self.scale\n"
    )
    text = spec_text("nanotrack", "plain").replace(
        "{block: conv, out: 24, stride: 2}", "{block: lazy, out: 24, stride: 2}"
    )
    (tmp_path / "arch_specs/lazy_net.yaml").write_text(text.replace("name: plain", "name: lazy_net"))
    with pytest.raises(BblabError, match="features are not those of bblab's own net") as error:
        Lab(tmp_path).hand_over("lazy_net", "nanotrack", tmp_path / "out", store=False)
    assert "nothing was put in place" in str(error.value.hint)
    assert not (tmp_path / "out").exists()


def test_nanotrack_v3_trains_as_configv3_does(world: World):
    # SiamTrackers 248663f, NanoTrack/models/config/configv3.yaml
    config = yaml.safe_load((world.folders["nanotrack/plain"] / "config.yaml").read_text())
    assert config["DATASET"]["NAMES"] == ["GOT", "VID", "YOUTUBEBB", "COCO", "DET", "LASOT"]
    assert config["DATASET"]["VIDEOS_PER_EPOCH"] == 400_000
    assert config["TRAIN"]["BATCH_SIZE"] == 64 and config["TRAIN"]["OUTPUT_SIZE"] == 15
    assert config["TRACK"] | {"WINDOW_INFLUENCE": 0.455, "PENALTY_K": 0.138, "LR": 0.348} == config["TRACK"]
    head = (world.folders["nanotrack/plain"] / "config.yaml").read_text().partition("\nMETA_ARC")[0]
    assert "248663f" in head and "NanoTrack/models/config/configv3.yaml" in head
    assert "differs" in head and "DATASET.VID" in head


def test_scripts_say_what_they_need(world: World):
    assert "has no bin/train.py" in world.said["launch/nowhere"].text
    assert world.said["launch/nowhere"].code == 1
    assert "--trainer DIR" in world.said["check/untold"].text and world.said["check/untold"].code == 2


def test_checks_leave_nothing_behind(world: World):
    for name, folder in world.folders.items():
        if name.partition("/")[0] in RULES:
            manifest = json.loads((folder / "manifest.json").read_text())
            assert {p.name for p in folder.iterdir()} - {"runs"} == {*manifest["files"], "manifest.json"}, name


def test_the_module_says_nothing_of_bblab_but_its_licence(world: World):
    for name, folder in world.folders.items():
        for path in folder.glob("*.py"):
            assert "import bblab" not in path.read_text() and "from bblab" not in path.read_text(), name


def test_keys_are_the_trainers(world: World):
    import torch

    def keys(name: str, suffix: str = ".pth") -> set[str]:
        state = torch.load(world.folders[name] / f"bb_plain{suffix}", weights_only=True)
        return {k.rpartition(".conv.")[0] for k in state if ".conv." in k}

    assert {"features.stem.0", "features.s16.0"} <= keys("nanotrack/plain")  # TRAIN_LAYERS: ['features']
    assert {"stem.0", "s8.1"} <= keys("pysot/plain")  # a stage an attribute
    assert {"features.features.stem.0"} <= keys("ocean/plain")  # whole-model keys
    assert {"body.conv3.2"} <= keys("siamfcpp/plain", ".pkl")


def test_the_module_reads_like_the_spec(world: World):
    text = (world.folders["nanotrack/se_shuffle"] / "bb_se_shuffle.py").read_text()
    assert 'stages["stem"] = nn.Sequential(Conv(3, 8, stride=2))  # 8 channels, stride 2' in text
    assert 'shortcut="avgpool"' in text and 'se={"gate": "hsigmoid", "ratio": 0.25}' in text
    assert "self.in_norm = InNorm()" in text  # raw BGR is fed
    assert "in_norm = InNorm" not in (world.folders["stark/plain"] / "bb_plain.py").read_text()
    assert "class MBConv" not in text  # nothing that is not used
    assert max(map(len, text.splitlines())) <= 120


def test_norms_held_by_the_module_move_again_once_their_scale_learns(world: World):
    import torch

    from bblab.export import codegen

    module = codegen.load((world.folders["generic/plain"] / "bb_plain.py").read_text())
    net = module.Backbone()
    norm = net.stem[0].norm
    net.requires_grad_(False)
    net.train()
    x = torch.randn(2, 3, 127, 127)
    before = norm.running_mean.clone()
    net(x)
    assert torch.equal(before, norm.running_mean)
    net.requires_grad_(True)  # as DynamicFreezer unfreezes: no train() follows
    net(x)
    assert not torch.equal(before, norm.running_mean)
    with pytest.raises(ValueError, match=r"used_layers.*the stages are stem, s4, s8, s16"):
        module.Backbone(used_layers=["s32"])
    assert [tuple(t.shape[1:]) for t in module.Backbone(["s16", "s8"])(x)] == [(24, 8, 8), (16, 16, 16)]


def test_two_blocks_whose_helpers_have_one_name_stand_side_by_side(tmp_path: Path):
    from bblab.export.sources import Collection

    for name, answer in (("one", 1), ("two", 2)):
        (tmp_path / f"{name}.py").write_text(
            textwrap.dedent(f"""
            LIMIT = {answer}

            def _helper(x: int) -> int:
                return x + LIMIT

            class Block:
                def call(self, LIMIT: int = 5) -> int:
                    return _helper(LIMIT)
            """)
        )
    found = Collection()
    names = [found.add(tmp_path / f"{name}.py", "Block") for name in ("one", "two")]
    text = "\n\n".join(t for path in found.files() for t in found.texts(path))
    space: dict = {}
    exec(text, space)
    assert [space[n]().call() for n in names] == [6, 7]
    assert names == ["Block", "TwoBlock"]


OWN_FUSE = """
import torch
import torch.nn.functional as F
from torch import nn


class Stubborn(nn.Module):
    def __init__(self, in_ch, out_ch, stride=1, raises=True):
        super().__init__()
        self.c = nn.Conv2d(in_ch, out_ch, 3, stride, 1)
        self.n = nn.BatchNorm2d(out_ch)
        self.raises = raises

    def forward(self, x):
        return F.relu(self.n(self.c(x)))

    def fuse(self):
        if self.raises:
            raise NotImplementedError("no fused form of this one")
        scale = self.n.weight / torch.sqrt(self.n.running_var + self.n.eps)
        made = nn.Conv2d(self.c.in_channels, self.c.out_channels, 3, self.c.stride, 1)
        made.weight.data.copy_(self.c.weight * scale[:, None, None, None])
        made.bias.data.copy_((self.c.bias - self.n.running_mean) * scale + self.n.bias)
        return nn.Sequential(made, nn.ReLU())
"""


@pytest.mark.parametrize("raises", [True, False])
def test_check_reports_a_block_whose_own_fuse_raises_and_fuses_the_others_in_float64(
    raises: bool, tmp_path: Path
) -> None:
    (tmp_path / "lab" / "blocks").mkdir(parents=True)
    (tmp_path / "lab" / "blocks" / "own.py").write_text(OWN_FUSE)
    lab = Lab(tmp_path / "lab")
    path = tmp_path / "own.yaml"
    path.write_text(
        "stages:\n  a: {block: conv, out: 16, stride: 4}\n"
        f"  b: {{block: own.Stubborn, out: 16, stride: 2, raises: {str(raises).lower()}}}\n"
    )
    lab.hand_over(str(path), "generic", tmp_path / "out")
    ran = subprocess.run(
        [sys.executable, "check.py", "--module-only"], cwd=tmp_path / "out", capture_output=True, text=True
    )
    assert "Traceback" not in ran.stdout + ran.stderr
    line = next(text for text in ran.stdout.splitlines() if "deploy(backbone)" in text)
    if raises:
        assert ran.returncode == 1 and "NotImplementedError: no fused form of this one" in line
        assert "1 claim does not hold" in ran.stdout
    else:
        assert ran.returncode == 0, ran.stdout + ran.stderr
        assert float(re.search(r"off by (\S+)", line)[1]) < 1e-12  # type: ignore[index]
