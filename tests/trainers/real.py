"""Run check.py and launch.py --smoke of exported nets on the trainers' own code; not a part of the tests.

    python tests/trainers/real.py --pysot DIR --nanotrack DIR --siamban DIR --ocean DIR --stark DIR --siamfcpp DIR
                                    [--python FILE] [--only N]

Each DIR is a checkout; what is needed beside torch is in the README.md of the export. `--python`: the interpreter of an
environment that has it, where bblab's own has not. Three nets a target: plain, re-parameterised, and one with
squeeze-excitation and a shuffled concat; the first with random weights, the others as trained ones (frozen at first).
The smoke run is made with the first two. What it leaves is read back here by bblab too: the log, the checkpoint. The
checkout must be the same before and after, and the configuration may differ from the trainer's own only where it says.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

UNPADDED = ("defaults.pad=same_unless_strided", "taps=[s8]")
NETS: dict[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "nanotrack": (("resnet18@s16", ()), ("mobileone_s0@s16", ()), ("mobileone_k5_se", ()), ("mobileone_shuffle", ())),
    "pysot": (("pysot_mobilenetv2", ()), ("mobileone_s0_stride8", UNPADDED[:1]), ("mobileone_k5_se", UNPADDED)),
    "stark": (("resnet18@s16", ()), ("repvgg_a0@s16", ()), ("mobileone_k5_se", ())),
    "siamfcpp": (("siamfcpp_alexnet", ()), ("siamfcpp_alexnet", ())),
}
NETS["siamban"] = NETS["pysot"]
NETS["ocean"] = (("pysot_mobilenetv2", ("taps=[layer5]",)), *NETS["pysot"][1:])
SMOKED = 2


def check(target: str, trainer: Path, place: int, folder: Path, python: str) -> list[str]:
    """Export a net, run its scripts on the checkout; what failed."""
    import torch

    from bblab.build import build
    from bblab.lab import Lab

    spec, edits = NETS[target][place]
    print(f"== {spec} {' '.join(edits)} for {target}", flush=True)
    lab, out, weights = Lab(folder / "lab"), folder / "out", None
    if place:
        weights = folder / "weights.pth"
        torch.save(build(lab.spec(spec, edits), lab.kinds, seed=place).state_dict(), weights)
    lab.hand_over(spec, target, out, edits=edits, weights=weights, store=False)
    before, failed = fingerprint(trainer), []
    failed += differing_keys(out, trainer)
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    for script, options in (("check.py", []), ("launch.py", ["--smoke"])):
        if script == "launch.py" and place >= SMOKED:
            continue
        call = [python, "-W", "ignore", str(out / script), "--trainer", str(trainer), *options]
        done = subprocess.run(call, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        lines = done.stdout.splitlines()
        shown = [
            line for line in lines if line.startswith(("ok  ", "FAIL", "     ", "launch.py:", "every claim", "the sm"))
        ]
        print("\n".join(shown if done.returncode == 0 else lines[-40:]), flush=True)
        failed += [] if done.returncode == 0 else [f"{script} ended with {done.returncode}"]
        if options and not done.returncode:
            failed += read_back(out, trainer, python)
    if fingerprint(trainer) != before:
        failed.append("the checkout is another than before")
    return failed


def read_back(out: Path, trainer: Path, python: str) -> list[str]:
    """What the smoke run left, read by bblab: the log's epochs, the checkpoint's backbone.

    STARK's checkpoints hold objects of its own, which bblab refuses: converted first, as bblab's refusal says.
    """
    from bblab.errors import BblabError
    from bblab.tracking import logs
    from bblab.weights import files

    manifest = json.loads((out / "manifest.json").read_text())
    leaves, own = manifest["trainer"]["leaves"], manifest["weights"]
    try:
        log = logs.read(sorted((out / "runs/smoke").glob(leaves["log"])))
        shapes = {k.removeprefix(own["prefix"]): v for k, v in _shapes(files.read(out / own["file"])).items()}
        checkpoint = max((out / "runs/smoke").glob(leaves["checkpoints"]), key=lambda p: p.name)
        if manifest["target"] == "stark":
            code = "import sys, torch; sys.path.insert(0, sys.argv[1]); old, new = sys.argv[2:]; "
            code += "torch.save(torch.load(old, map_location='cpu', weights_only=False)['net'], new)"
            plain = out / "net.pth"
            subprocess.run([python, "-c", code, str(trainer), str(checkpoint), str(plain)], check=True)
            checkpoint = plain
        found = files.read(checkpoint)
        fitted, prefix = files.fit_keys(found.state, shapes)
    except BblabError as error:
        return [f"not read by bblab: {error}"]
    lacking = [k for k in shapes if k not in fitted and not k.endswith("num_batches_tracked")]
    epochs = [f"{e.epoch}: {e.iteration}/{e.iterations}" for e in log.epochs]
    print(f"ok   bblab reads epochs {', '.join(epochs)} and {len(fitted)} tensors under {prefix!r}", flush=True)
    wrong = [] if len(log.epochs) == 2 else [f"the log has epochs {epochs}, wanted two"]
    return wrong + [f"not in the checkpoint: {', '.join(lacking[:4])}"] * bool(lacking)


def _shapes(found: Any) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in found.state.items()}


def differing_keys(out: Path, trainer: Path) -> list[str]:
    """Keys in which the configuration differs from the trainer's own without saying so."""
    import yaml

    head = [line[2:] for line in (out / "config.yaml").read_text().splitlines() if line.startswith("# ")]
    manifest = json.loads((out / "manifest.json").read_text())
    upstream = head[1].removeprefix("After ").partition(" of ")[0]
    root = trainer.parent if upstream.startswith(f"{trainer.name}/") else trainer
    theirs, ours = (flat(yaml.safe_load(p.read_text())) for p in (root / upstream, out / "config.yaml"))
    assert manifest["trainer"]["commit"] in head[1]
    told = [p.strip() for line in head[2:] if line.startswith("  ") for p in line.partition(": ")[0].split(",")]
    differ = [key for key in {**theirs, **ours} if theirs.get(key) != ours.get(key)]
    return [f"{k}: not as in {upstream}, and not said" for k in differ if not any(fnmatch.fnmatch(k, p) for p in told)]


def flat(node: dict[str, Any], lead: str = "") -> dict[str, Any]:
    """A tree of settings by dotted keys."""
    found: dict[str, Any] = {}
    for key, value in node.items():
        found |= flat(value, f"{lead}{key}.") if isinstance(value, dict) and value else {f"{lead}{key}": value}
    return found


def fingerprint(folder: Path) -> str:
    """All files of a checkout but git's own, by name and content."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and ".git" not in p.parts):
        digest.update(f"{path.relative_to(folder)}|{path.stat().st_size}|{path.stat().st_mtime_ns}".encode())
    return digest.hexdigest()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for target in NETS:
        parser.add_argument(f"--{target}", metavar="DIR", help=f"a checkout for --for {target}")
    parser.add_argument(
        "--python", default=sys.executable, metavar="FILE", help="the interpreter that runs the scripts"
    )
    parser.add_argument("--only", type=int, metavar="N", help="only the Nth net of each target, from 0")
    told = vars(parser.parse_args())
    python, only = told.pop("python"), told.pop("only")
    given = {target: path for target, path in told.items() if path}
    if not given:
        parser.error("give at least one checkout, such as --pysot DIR")
    results: dict[str, list[str]] = {}
    for target, path in given.items():
        for place, (spec, _) in enumerate(NETS[target]):
            if only is None or only == place:
                with tempfile.TemporaryDirectory(prefix="bblab-real-") as folder:
                    failed = check(target, Path(path).resolve(), place, Path(folder), python)
                results[f"{target}: {spec} ({'trained' if place else 'random'} weights)"] = failed
    for name, failed in results.items():
        print("\n".join([f"{'FAIL' if failed else 'ok  '} {name}", *(f"     {text}" for text in failed)]))
    return 1 if any(results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
