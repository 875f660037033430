"""check.py: does this folder do what its manifest says, and does the trainer take it? On the CPU, in a minute.

    python check.py --trainer DIR     this folder, then the trainer's own model and one training step of it
    python check.py --module-only     this folder alone

Every line is a claim that was tested; the exit code is 1 if one does not hold. `launch.py --smoke` goes further: it
runs the trainer's own loop. Python 3.8 or newer.
"""

import argparse
import contextlib
import copy
import importlib.util
import io
import json
import sys
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
MANIFEST = json.loads((HERE / "manifest.json").read_text(encoding="utf-8"))
sys.dont_write_bytecode = True  # nothing is added to this folder or the trainer's
TOLERANCE = 1e-4  # of a map's largest value, float32; another order of summation stays below 1e-5

failed: list = []


def claim(holds, text):
    print(f"{'ok  ' if holds else 'FAIL'} {text}", flush=True)
    if not holds:
        failed.append(text)


def load(name):
    found = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    assert found is not None and found.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def as_list(maps):
    return list(maps) if isinstance(maps, (list, tuple)) else [maps]


def read(path):
    """A file of torch's with tensors alone; torch before 1.13 has no word for that."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except TypeError:
        return torch.load(path, map_location="cpu")


def weights():
    """The weight file, and its tensors under the backbone's own keys."""
    prefix = MANIFEST["weights"]["prefix"]
    state = read(HERE / MANIFEST["weights"]["file"])
    return state, {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}


def quiet():
    """Trainers print every key and layer."""
    return contextlib.redirect_stdout(io.StringIO())


def norms(module):
    return [m for m in module.modules() if hasattr(m, "running_mean") and m.running_mean is not None]


def statistics(module):
    return [t.clone() for m in norms(module) for t in (m.running_mean, m.running_var)]


def parameters(module):
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def moved(before, after):
    return [name for name, old in before.items() if not torch.equal(old, after[name].detach())]


def worst_difference(maps, expected):
    """Largest difference over the largest value, at the positions that were stored."""
    worst = 0.0
    if len(as_list(maps)) != len(expected):
        return float("inf")
    for tap, (shape, where, values) in zip(as_list(maps), expected):
        if list(tap.shape[1:]) != list(shape):
            return float("inf")
        apart = float((tap.flatten()[where] - values).abs().max() / values.abs().max())
        worst = max(worst, apart if apart == apart else float("inf"))  # a nan is as far as can be
    return worst


def sizes(maps):
    return [list(tap.shape[1:]) for tap in as_list(maps)]


def check_features(backbone, data, whose):
    with torch.no_grad():
        for size in ("template", "search"):
            maps = backbone.eval()(data[size]["input"])
            expected = data[size]["taps"]
            shapes = [list(shape) for shape, _, _ in expected]
            px = data[size]["input"].shape[-1]
            shown = ", ".join("x".join(map(str, s)) for s in sizes(maps))
            claim(sizes(maps) == shapes, f"{whose}: {size} {px}x{px} gives {shown}")
            apart = worst_difference(maps, expected)
            claim(apart <= TOLERANCE, f"{whose}: {size} features are bblab's, off by {apart:.2g} of the largest value")


def check_module(data):
    module = load(MANIFEST["module"])
    claim(not any(m.split(".")[0] == "bblab" for m in sys.modules), "the module needs torch alone")
    state, own = weights()
    backbone = module.Backbone()
    wanted = backbone.state_dict()
    same = sum(1 for key in wanted if key in own and own[key].shape == wanted[key].shape)
    claim(same == len(wanted) == len(state), f"{same} of {len(wanted)} keys match, {len(state)} in the file")
    if failed:
        for key in sorted(set(wanted) ^ set(own))[:10]:
            print(f"     {key}: {'not in the file' if key in wanted else 'not in the module'}")
        return
    backbone.load_state_dict(own)
    claim(len(norms(backbone)) > 0 or not MANIFEST["weights"]["has_norms"], f"unfused: {len(norms(backbone))} norms")
    check_features(backbone, data, "module")
    frozen = copy.deepcopy(backbone)
    frozen.requires_grad_(False)
    frozen.train()
    before = statistics(frozen)
    frozen(data["template"]["input"].repeat(2, 1, 1, 1))
    still = all(torch.equal(a, b) for a, b in zip(before, statistics(frozen)))
    claim(still, "frozen by requires_grad_(False) and then train(): no running statistic moves")


def check_deploy(data):
    module = load(MANIFEST["module"])
    backbone = module.Backbone()
    backbone.load_state_dict(weights()[1])
    said = "deploy(backbone), for the device after training"
    x = data["template"]["input"].double()
    torch.set_default_dtype(torch.float64)  # layers that a block makes while it fuses
    try:
        with torch.no_grad():
            double = backbone.eval().double()
            pairs = list(zip(as_list(module.deploy(double)(x)), as_list(double(x))))
            apart = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
    except (Exception, SystemExit) as error:  # a block's own way to fuse may raise anything
        first = (str(error).strip().splitlines() or [""])[0]
        why = f"{type(error).__name__}: {first}" if first else type(error).__name__
        claim(False, f"{said}: a block cannot be fused ({why}); `bblab export --to` leaves it as trained")
        return
    finally:
        torch.set_default_dtype(torch.float32)
    claim(apart < 1e-4, f"{said}: off by {apart:.2g} (float64)")


def check_trainer(folder, data):
    launch = load("launch")
    launch.on_cpu()
    trainer = launch.trainer_folder(folder)
    with quiet():
        wrong = launch.unready(launch.register, trainer)
    script = MANIFEST["trainer"]["script"]
    claim(not wrong, f"{script}: all that it imports is there" if not wrong else "; ".join(wrong))
    for text in launch.SUPPLIED:
        print(f"     launch.py supplies {text}")
    if wrong:
        return
    torch.manual_seed(0)
    with quiet():
        model = launch.build(trainer)
    part = launch.backbone_of(model)
    _, own = weights()
    now = part.state_dict()
    equal = sum(1 for key, value in own.items() if key in now and torch.equal(now[key], value))
    counters = sum(1 for key in own if key.endswith("num_batches_tracked") and key not in now)  # frozen norms have none
    said = (
        f"{MANIFEST['trainer']['name']} built with the backbone; its own loader took {equal + counters} of {len(own)}"
    )
    claim(equal + counters == len(own) and len(now) == equal, f"{said} tensors")
    check_features(launch.taps_of(model), data, "trainer")
    geometry = MANIFEST["geometry"]
    with torch.no_grad():
        z, x = data["template"]["input"], data["search"]["input"]
        for name, shape in launch.scores(model.eval(), z, x).items():
            size = geometry["score_map"]
            claim(
                list(shape[-2:]) == [size, size], f"trainer: {name} is {'x'.join(map(str, shape[-2:]))}, wanted {size}"
            )
    freeze = MANIFEST["freeze"]
    all_names = dict(part.named_parameters())
    phases = [(freeze["epochs"], freeze["layers"])]
    if freeze["epochs"]:
        phases.insert(0, (0, freeze["layers_at_start"]))
    for epoch, layers in phases:
        with quiet():
            optimizer = launch.epoch(trainer, model, epoch)
        names, old, before = list(all_names), statistics(part), parameters(model)
        with quiet():
            loss = launch.step(model, optimizer)
        learning = [n for n in names if any(n.startswith(f"{layer}.") for layer in layers)]
        changed = moved(before, dict(model.named_parameters()))
        own_changed = moved({n: before[launch.PREFIX + n] for n in names}, dict(part.named_parameters()))
        still = all(torch.equal(a, b) for a, b in zip(old, statistics(part)))
        when = f"epoch {epoch}"
        if not layers:
            claim(not own_changed, f"{when}, frozen: no parameter of the backbone moved in a step (loss {loss:.3g})")
            claim(still, f"{when}, frozen: no statistic of the backbone's {len(old) // 2} norms moved")
            claim(len(changed) > 0, f"{when}: {len(changed)} tensors of the rest learned")
        else:
            which = f"{len(own_changed)} of {len(learning)} tensors of {', '.join(layers)}"
            holds = set(own_changed) <= set(learning) and len(own_changed) > 0.5 * len(learning)
            claim(holds, f"{when}: {which} learned, none outside")
        if layers and freeze["norms_never_learn"]:
            claim(still, f"{when}: no statistic of the backbone's {len(old) // 2} norms moved")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trainer", metavar="DIR", help=f"a checkout of {MANIFEST['trainer']['repository']}")
    parser.add_argument("--module-only", action="store_true", help="do not look at the trainer")
    given = parser.parse_args()
    has_trainer = bool(MANIFEST["trainer"]["script"])
    if has_trainer and not given.trainer and not given.module_only:
        parser.error(f"give --trainer DIR, a checkout of {MANIFEST['trainer']['repository']}, or --module-only")
    data = read(HERE / "check_data.pth")
    if given.trainer:  # before it changes the folder
        given.trainer = str(Path(given.trainer).expanduser().resolve())
    check_module(data)
    if not failed:
        if given.trainer and has_trainer:
            check_trainer(given.trainer, data)
        check_deploy(data)
    geometry = MANIFEST["geometry"]
    seen = geometry["receptive_field"]
    field = "receptive field unknown" if seen is None else f"receptive field {seen} px"
    print(f"     stride {geometry['stride'] or 'unknown'}, {field}")
    claims = "1 claim does" if len(failed) == 1 else f"{len(failed)} claims do"
    print("every claim holds" if not failed else f"{claims} not hold")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
