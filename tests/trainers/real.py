"""Run check.py of exported nets against the trainers' own code; not part of the tests, which have stand-ins.

    python tests/trainers/real.py --pysot DIR --nanotrack DIR [--siamban DIR] [--ocean DIR] [--stark DIR] [--siamfcpp DIR]

Each DIR is a checkout; needed beside torch: what the README.md of the export names (yacs and OpenCV for the first two).
Three nets a target: plain, re-parameterised, and one with squeeze-excitation and a shuffled concat. Weights are random.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

UNPADDED = ("defaults.pad=same_unless_strided", "taps=[s8]")
NETS: dict[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "nanotrack": (("resnet18@s16", ()), ("mobileone_s0@s16", ()), ("mobileone_k5_se", ()), ("mobileone_shuffle", ())),
    "pysot": (("pysot_mobilenetv2", ()), ("mobileone_s0_stride8", UNPADDED[:1]), ("mobileone_k5_se", UNPADDED)),
    "stark": (("resnet18@s16", ()), ("repvgg_a0@s16", ()), ("mobileone_k5_se", ())),
    "siamfcpp": (("siamfcpp_alexnet", ()),),
}
NETS["siamban"] = NETS["pysot"]
NETS["ocean"] = (("pysot_mobilenetv2", ("taps=[layer5]",)), *NETS["pysot"][1:])


def check(target: str, trainer: str, spec: str, edits: tuple[str, ...], folder: Path) -> bool:
    """Export a net, run its check.py on the checkout, print what it says."""
    from bblab.lab import Lab

    print(f"== {spec} {' '.join(edits)} for {target}", flush=True)
    Lab(folder / "lab").hand_over(spec, target, folder / "out", edits=edits, store=False)
    script = folder / "out" / "check.py"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), "--trainer", trainer], env={**os.environ, "OMP_NUM_THREADS": "2"}
    )
    return done.returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for target in NETS:
        parser.add_argument(f"--{target}", metavar="DIR", help=f"a checkout for --for {target}")
    given = {target: path for target, path in vars(parser.parse_args()).items() if path}
    if not given:
        parser.error("give at least one checkout, such as --pysot DIR")
    results = {}
    for target, path in given.items():
        for spec, edits in NETS[target]:
            with tempfile.TemporaryDirectory(prefix="bblab-real-") as folder:
                results[f"{target}: {spec}"] = check(target, str(Path(path).resolve()), spec, edits, Path(folder))
    print("\n".join(f"{'ok  ' if ok else 'FAIL'} {name}" for name, ok in results.items()))
    return 0 if all(results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
