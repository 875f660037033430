"""The hand-over folder, checked by its own check.py against stand-ins of the trainers' interfaces (tests/trainers)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

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


def run_scripts(jobs: dict[str, tuple[Path, list[str]]], folder: Path) -> dict[str, Said]:
    """Scripts of exported folders, each in a process without bblab; what each said."""
    listed = [
        {"name": name, "script": str(script), "args": args, "out": str(folder / f"{name.replace('/', '-')}.txt")}
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
    """All exports of this file, and what their check.py said."""

    folders: dict[str, Path]
    said: dict[str, Said]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> World:
    root = tmp_path_factory.mktemp("exports")
    lab = Lab(root / "lab")
    (root / "lab" / "arch_specs").mkdir(parents=True)
    folders: dict[str, Path] = {}
    jobs: dict[str, tuple[Path, list[str]]] = {}
    for target in RULES:
        trainer = root / "trainers" / target
        if target != "generic":
            shutil.copytree(TRAINERS / target, trainer)
        for net in NETS:
            path = root / f"{target}-{net}.yaml"
            path.write_text(spec_text(target, net))
            folders[f"{target}/{net}"] = out = root / f"{target}-{net}"
            lab.hand_over(str(path), target, out)
            given = ["--module-only"] if target == "generic" else ["--trainer", str(trainer)]
            jobs[f"{target}/{net}"] = (out / "check.py", given)
    # what check.py must see: weights of which one key is missing; norms that nothing holds; a map of another size
    for name, change in BROKEN.items():
        folders[name] = out = root / name
        shutil.copytree(folders[f"{change[0]}/reparam"], out)
        change[1](out)
        jobs[name] = (out / "check.py", ["--trainer", str(root / "trainers" / change[0])])
    for target in ("nanotrack", "pysot", "ocean", "stark", "siamfcpp"):
        jobs[f"launch/{target}"] = (
            folders[f"{target}/plain"] / "launch.py",
            ["--trainer", str(root / "trainers" / target)]
            + (["--seed", "7"] if target in ("nanotrack", "pysot") else []),
        )
    jobs["launch/nowhere"] = (folders["nanotrack/plain"] / "launch.py", ["--trainer", str(root)])
    jobs["check/untold"] = (folders["nanotrack/plain"] / "check.py", [])
    return World(folders, run_scripts(jobs, root))


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


def test_launch_starts_the_trainers_script_with_the_folders_config(world: World):
    # float is gone from numpy; OUTPUT_SIZE of head V3 is 15; --seed is handed on
    assert "np.float is float seed 7 type bb_plain out 15" in world.said["launch/nanotrack"].text
    assert "rank 0 np.float is float seed 7 type bb_plain out 25" in world.said["launch/pysot"].text
    assert "model Own weights there True" in world.said["launch/ocean"].text
    assert "config there True" in world.said["launch/stark"].text
    weights = world.folders["siamfcpp/plain"] / "bb_plain.pkl"
    assert f"task track weights {weights}" in world.said["launch/siamfcpp"].text
    assert all(world.said[f"launch/{t}"].code == 0 for t in ("nanotrack", "pysot", "ocean", "stark", "siamfcpp"))


def test_scripts_say_what_they_need(world: World):
    assert "has no bin/train.py" in world.said["launch/nowhere"].text
    assert world.said["launch/nowhere"].code == 1
    assert "--trainer DIR" in world.said["check/untold"].text and world.said["check/untold"].code == 2


def test_checks_leave_nothing_behind(world: World):
    for name, folder in world.folders.items():
        if name.partition("/")[0] in RULES:
            manifest = json.loads((folder / "manifest.json").read_text())
            assert {p.name for p in folder.iterdir()} - {"stark_run"} == {*manifest["files"], "manifest.json"}, name


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
