"""How long a whole process takes: a spec whose blocks are known, and the help page.

    uv run python benchmarks/startup.py

`bblab profile mobileone_s0 --no-latency`, run once before, against a Python process that imports torch, timm and
fvcore, builds timm's mobileone_s0 and counts it. `bblab --help` against `python -c "import typer, rich"`. Wall time
of whole processes in turn (A B A B ...), medians; CPU time beside it, which other work on the machine disturbs less.
Bars: below 1/10 of the peer; below twice the imports; and the profile of a known spec never imports torch.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import machine

NUM_PAIRS = 7
SPEC = "mobileone_s0"
BAR_PROFILE = 1 / 10
BAR_HELP = 2.0

COUNT = """
import logging, warnings
logging.disable(logging.WARNING); warnings.simplefilter("ignore")
import timm, torch
from fvcore.nn import FlopCountAnalysis, parameter_count
torch.set_num_threads(1)
net = timm.create_model("mobileone_s0").eval()
with torch.no_grad():
    print(FlopCountAnalysis(net, (torch.zeros(1, 3, 224, 224),)).total(), parameter_count(net)[""])
"""
WITHOUT_TORCH = f"""
import sys
from bblab.cli import main
code = main(["profile", "{SPEC}", "--no-latency", "--json", "-"])
assert code == 0, code
found = [name for name in ("torch", "timm", "onnxruntime") if name in sys.modules]
assert not found, f"imported: {{found}}"
"""


def main() -> int:
    bblab = [sys.executable, "-m", "bblab"]
    profile = [*bblab, "profile", SPEC, "--no-latency"]
    with tempfile.TemporaryDirectory() as folder:
        env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        for key, name in (("BBLAB_LAB", "lab"), ("BBLAB_CACHE", "cache"), ("PYTHONPYCACHEPREFIX", "bytecode")):
            env[key] = str(Path(folder, name))  # compiled modules for both sides, as after an ordinary install
        print(machine.describe("torch", "fvcore", "timm", "typer", "rich"))
        first = seconds(profile, env)
        seconds([*bblab, "profile", SPEC, "mobilenetv3_small@s16", "--no-latency"], env)
        needs_torch = subprocess.run([sys.executable, "-c", WITHOUT_TORCH], env=env, capture_output=True, text=True)
        if needs_torch.returncode:
            print(needs_torch.stderr.strip())
        counting = [sys.executable, "-c", COUNT]
        ours, theirs = pairs(profile, counting, env)
        page, imports = pairs([*bblab, "--help"], [sys.executable, "-c", "import typer, rich"], env)
    print(f"{'wall time, whole process':<46}{'median s':>10}{'lowest':>9}{'highest':>9}{'CPU s':>9}")
    show("bblab profile mobileone_s0, nothing known", [first])
    show("bblab profile mobileone_s0, blocks known", ours)
    show("import torch, timm, fvcore; build; count", theirs)
    show("bblab --help", page)
    show("python -c 'import typer, rich'", imports)
    known = median_wall(ours) / median_wall(theirs)
    help_ratio = median_wall(page) / median_wall(imports)
    return machine.judge(
        {
            f"profile of a known spec takes {known:.3f} of building and counting it < {BAR_PROFILE}": known
            < BAR_PROFILE,
            "profile of a known spec imports neither torch nor timm nor onnxruntime": needs_torch.returncode == 0,
            f"--help takes {help_ratio:.2f} of importing typer and rich < {BAR_HELP}": help_ratio < BAR_HELP,
        }
    )


Taken = tuple[float, float]  # wall and CPU seconds of one process


def pairs(one: Sequence[str], other: Sequence[str], env: dict[str, str]) -> tuple[list[Taken], list[Taken]]:
    """Two commands, run in turn; the first pair warms the disk cache and is left out."""
    taken = [(seconds(one, env), seconds(other, env)) for _ in range(NUM_PAIRS + 1)][1:]
    return [a for a, _ in taken], [b for _, b in taken]


def seconds(command: Sequence[str], env: dict[str, str]) -> Taken:
    before, began = os.times(), time.perf_counter()
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    wall_s, after = time.perf_counter() - began, os.times()
    if done.returncode:
        sys.exit(f"{' '.join(command[:4])} failed:\n{done.stderr}")
    cpu_s = after.children_user - before.children_user + after.children_system - before.children_system
    return wall_s, cpu_s


def median_wall(taken: Sequence[Taken]) -> float:
    return statistics.median(wall for wall, _ in taken)


def show(what: str, taken: Sequence[Taken]) -> None:
    walls = [wall for wall, _ in taken]
    cpu_s = statistics.median(cpu for _, cpu in taken)
    print(f"{what:<46}{statistics.median(walls):10.2f}{min(walls):9.2f}{max(walls):9.2f}{cpu_s:9.2f}")


if __name__ == "__main__":
    sys.exit(main())
