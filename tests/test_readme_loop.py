"""The loop of README.md, typed line by line in order, on the embedded digits with small settings.

The lines are read out of README.md; `adapted` has what a test's time and the numbers of its own runs change in them.
"""

from __future__ import annotations

import csv
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from bblab.lab import Lab
from bblab.store import Run

README = Path(__file__).parents[1] / "README.md"
VERBS = [
    "specs", "new", "profile", "check", "profile", "bench", "pretrain", "report", "export", "export", "record", "find",
    "diff",
]  # fmt: skip
CLASSES = 10
LITTLE = """
name: little
about: mobileone_k5_se's stages with a tenth of its layers; for a test
tracker: {template: 127, search: 255}
defaults: {act: relu, branches: 2}
define:
  k5: {block: mobileone, kernel: 5, se: {ratio: 0.25, gate: hsigmoid}}
stages:
  stem: {block: conv, out: 16, stride: 2}
  s4: {block: mobileone, out: 24, stride: 2}
  s8: {block: mobileone, out: 32, stride: 2}
  s16:
    - {block: k5, out: 48, stride: 2}
    - {block: k5}
head: {block: classifier, pool: avg}
taps: [s16]
"""
"""Stands for the README's mobileone_k5_se: 161 norms take minutes to train, and after so few steps on digits they are
ill-conditioned on photos."""
LOG = "".join(
    f"[2026-01-02 03:{e:02d}:05,081-rk0-train.py#249] Epoch: [{e}][0/20] lr: 0.010000\n"
    f"\tcls_loss: {1 / e:.6f} ({1 / e:.6f})\ttotal_loss: {1 / e:.6f} ({1 / e:.6f})\n"
    for e in range(1, 8)
)


def loop() -> list[list[str]]:
    """The commands in the first code block under README's "The loop", without their comments."""
    section = README.read_text(encoding="utf-8").partition("\n## The loop\n")[2].partition("\n## ")[0]
    block = re.search(r"```sh\n(.*?)```", section, re.DOTALL)
    assert block is not None
    return [shlex.split(line, comments=True) for line in block[1].splitlines()]


@dataclass
class Session:
    """A lab in which the loop is typed, and what each line left."""

    type: Callable[..., Any]
    lab: Path
    opened: list[str] = field(default_factory=list)

    def rows(self, kind: str) -> list[Run]:
        """Stored rows, newest first."""
        with Lab(self.lab).notebook(read_only=True) as store:
            return store.runs(kind=kind)

    @property
    def trained(self) -> Run:
        return self.rows("pretrain")[0]

    def timings(self, name: str) -> list[Run]:
        return [r for r in self.rows("timing") if r.name == name]

    @property
    def found_value_s(self) -> float:
        return float(self.timings("mine")[0].result["cpu_p10_s"])


def adapted(line: list[str], session: Session) -> list[str]:
    """A line as this test types it: a little net, two epochs, and the numbers of this lab's own runs."""
    argv = line[1:]
    if argv[0] == "new":
        assert "mobileone_k5_se" in argv
        argv[argv.index("mobileone_k5_se")] = "little"
    if argv[0] == "export":
        argv[argv.index("--run") + 1] = str(session.trained.id)
    if argv[0] == "pretrain":
        argv += ["--epochs", "2", "--batch-size", "16"]
    if argv[0] == "find":
        assert re.fullmatch(r"[\d.]+ms", argv[1])
        argv[1] = f"{1000 * session.found_value_s:.3g}ms"
    if argv[0] == "diff":
        pair = [session.timings("mine")[0], session.timings("nanotrack")[0]]
        argv[1:] = [str(r.id) for r in pair]
    return argv


def test_the_loop_of_the_readme_runs_from_the_first_line_to_the_last(
    bblab: Callable[..., Any], lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("mmpretrain", "sklearn", "timm", "altair"):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    session = Session(bblab, lab)
    (lab / "arch_specs").mkdir()
    (lab / "arch_specs" / "little.yaml").write_text(LITTLE)
    monkeypatch.setattr("webbrowser.open", lambda url: bool(session.opened.append(url)) or True)
    lines = loop()
    assert [line[1] for line in lines] == VERBS and {line[0] for line in lines} == {"bblab"}
    for number, line in enumerate(lines):
        if line[1] == "record":  # the trainer has written its log where the line names it
            log = tmp_path / line[line.index("--log") + 1]
            log.parent.mkdir(parents=True, exist_ok=True)
            log.write_text(LOG)
        argv = adapted(list(line), session)
        ran = bblab(*argv)
        assert ran.code == 0, f"{shlex.join(argv)}\n{ran.out}\n{ran.err}"
        AFTER[number](session, tmp_path, ran.out + ran.err)
    other_ways_out(session, tmp_path)


# ---- what each line leaves


def after_specs(session: Session, _: Path, said: str) -> None:
    assert all(name in said for name in ("mobileone_k5_se", "nanotrack", "resnet18"))


def after_new(session: Session, _: Path, said: str) -> None:
    spec = session.lab / "arch_specs" / "mine.yaml"
    assert spec.is_file() and "name: mine" in spec.read_text()
    opened = Lab(session.lab)
    assert opened.spec("mine").spec_id == opened.spec("little").spec_id
    assert opened.spec("mine").head is not None and opened.spec("mine").head.out != CLASSES


def after_the_edit(session: Session, _: Path, said: str) -> None:
    opened, (row,) = Lab(session.lab), session.rows("profile")
    assert row.spec_id == opened.spec("mine", ["s16.0.kernel=3"]).spec_id != opened.spec("mine").spec_id
    assert session.timings("mine") and "latency" in said


def after_check(session: Session, _: Path, said: str) -> None:
    assert "padding-shift" in said and "arXiv" in said


def after_side_by_side(session: Session, _: Path, said: str) -> None:
    assert {"mine", "nanotrack", "timm:starnet_s1@s16"} <= {r.name for r in session.rows("profile")}


def after_bench(session: Session, _: Path, said: str) -> None:
    assert session.timings("mine") and session.timings("nanotrack")
    assert all(r.result["cpu_p10_s"] > 0 for r in session.rows("timing"))


def after_pretrain(session: Session, _: Path, said: str) -> None:
    from bblab.weights import load

    (row,) = session.rows("pretrain")
    assert (row.result["status"], row.result["epochs_trained"], row.name) == ("done", 2, "mine")
    # 0.1 for 64 images, 16 here: --lr-scale makes it 0.1 * 16 / 64
    assert row.inputs["scaling"]["lr"] == pytest.approx(0.025)
    folder = Path(row.result["folder"])
    state, _metadata = load(folder / row.result["weights"]["file"])
    assert state["head.last.weight"].shape[0] == row.inputs["data"]["num_classes"] == CLASSES
    assert (folder / "card.md").is_file() and (folder / "curves.png").is_file()


def after_report(session: Session, _: Path, said: str) -> None:
    (url,) = session.opened
    page = Path(url.removeprefix("file://"))
    assert page.is_file() and "mine" in page.read_text(encoding="utf-8")
    with page.with_suffix(".csv").open(encoding="utf-8", newline="") as file:
        drawn = [row for row in csv.DictReader(file) if (row["name"], row["form"]) == ("mine", "deploy")]
    assert [float(row["accuracy"]) for row in drawn] == pytest.approx([session.trained.result["top1_percent"] / 100])
    assert session.trained.result["top1_percent"] > 100 / CLASSES  # it learned


def after_hand_over(session: Session, place: Path, said: str) -> None:
    folder = place / "handover"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["provenance"]["run"] == session.trained.id
    assert manifest["provenance"]["accuracy_top1"] == pytest.approx(session.trained.result["top1_percent"] / 100)
    assert "the file's head is left out (10 classes in the file, 1000 here)" in said
    assert session.rows("export")[0].result["export_id"] == manifest["export_id"]
    done = subprocess.run(
        [sys.executable, "check.py", "--module-only"], cwd=folder, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stdout + done.stderr


def after_device(session: Session, place: Path, said: str) -> None:
    """The file computes what the trained weights compute, by torch, in train form."""
    import onnxruntime
    import torch

    from bblab import build
    from bblab.weights import load

    opened = Lab(session.lab)
    folder = Path(session.trained.result["folder"])
    state, _ = load(folder / session.trained.result["weights"]["file"])
    module = build.Backbone(opened.spec("mine"), opened.kinds)
    module.load_state_dict({k: v for k, v in state.items() if not k.startswith("head.")}, strict=False)
    models = sorted((place / "device").glob("*.onnx"))
    assert models
    for model in models:
        running = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        px = running.get_inputs()[0].shape[-1]
        x = torch.randn(1, 3, px, px, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            (ours,) = module.eval()(x)
        (theirs,) = running.run(None, {running.get_inputs()[0].name: x.numpy()})
        assert float((torch.from_numpy(theirs) - ours).abs().max()) < 1e-3 * float(ours.abs().max())


def after_record(session: Session, place: Path, said: str) -> None:
    (row,) = session.rows("tracker_training")
    manifest = json.loads((place / "handover" / "manifest.json").read_text())
    assert (row.name, row.spec_id) == ("mine", Lab(session.lab).spec("mine").spec_id)
    assert row.inputs["export_id"] == manifest["export_id"]
    assert [p["total_loss"] for p in row.result["curve"]][:4] == [1.0, 0.5, 0.333333, 0.25]


def after_find(session: Session, _: Path, said: str) -> None:
    assert any(re.search(rf"^\s*{r.id}\b", said, re.MULTILINE) for r in session.timings("mine"))


def after_diff(session: Session, _: Path, said: str) -> None:
    assert "mine" in said and "nanotrack" in said


AFTER = dict(
    enumerate(
        [
            after_specs, after_new, after_the_edit, after_check, after_side_by_side, after_bench, after_pretrain,
            after_report, after_hand_over, after_device, after_record, after_find, after_diff,
        ]
    )
)  # fmt: skip


def other_ways_out(session: Session, place: Path) -> None:
    """The same weights named by their file, and brought into the spec with its 1000 classes."""
    folder = Path(session.trained.result["folder"])
    file = folder / session.trained.result["weights"]["file"]
    for way in (["--for", "generic"], ["--to", "torchscript"]):
        ran = session.type("export", "mine", "--weights", file, *way, "--out", place / f"{way[1]}-of-file")
        assert ran.code == 0 and "10 classes in the file, 1000 here" in ran.out, ran.err
    ran = session.type("import", "mine", "--from", file, "--json", "-")
    told = json.loads(ran.out)
    assert (told["verdict"], told["has_head"]) == ("equal", False)
    assert any("10 classes there, 1000 here" in note for note in told["notes"])
