"""bblab pretrain: a spec trained on images with mmpretrain, at any batch size, resumable."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bblab.cli import common
from bblab.errors import BblabError, RunError

if TYPE_CHECKING:
    from bblab.lab import Lab
    from bblab.lab.training import Pretrained
    from bblab.pretraining.config import Plan
    from bblab.pretraining.estimate import Estimate


def register(app: typer.Typer) -> None:
    app.command(
        epilog="Example: bblab pretrain mobilenetv3_small, "
        "bblab pretrain mobileone_k5_se --data imagenet --recipe rank16 --batch-size 512 --lr-scale"
    )(pretrain)


def pretrain(
    spec: Annotated[
        str | None, typer.Argument(metavar="[SPEC]", help="The spec; without it, the one that was profiled last.")
    ] = None,
    edits: common.SetOption = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="DIR", help="train/CLASS/*.jpg, val/CLASS/*.jpg; else scikit-learn's digits."),
    ] = None,
    ann_train: Annotated[
        Path | None, typer.Option("--ann-train", metavar="FILE", help="'image label' lines of the training images.")
    ] = None,
    ann_val: Annotated[
        Path | None, typer.Option("--ann-val", metavar="FILE", help="'image label' lines of the validation images.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option("--recipe", metavar="NAME", help="From bblab recipes; digits, or rank16 with --data.")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option("--epochs", metavar="N", help="Another number; warm-up and ramp keep their share.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", metavar="N", help="Images a step in each process; else the recipe's.")
    ] = None,
    lr_scale: Annotated[
        bool, typer.Option("--lr-scale", help="Scale the learning rate to the batch, linearly.")
    ] = False,
    lr_rule: Annotated[
        str | None, typer.Option("--lr-rule", metavar="linear|sqrt", help="Scale it by this rule.")
    ] = None,
    accumulate: Annotated[
        int, typer.Option("--accumulate", metavar="N", help="Steps whose gradients make one update.")
    ] = 1,
    gpus: Annotated[
        int, typer.Option("--gpus", metavar="N", help="Processes on this machine; on the CPU where there is no GPU.")
    ] = 1,
    nodes: Annotated[int, typer.Option("--nodes", metavar="N", help="Machines, each with --gpus processes.")] = 1,
    node_rank: Annotated[int, typer.Option("--node-rank", metavar="R", help="Which of them this is, from 0.")] = 0,
    master: Annotated[str, typer.Option("--master", metavar="HOST:PORT", help="The first machine's address.")] = "",
    precision: Annotated[
        str, typer.Option("--precision", metavar="P", help="fp32, bf16, or auto: bf16 where a GPU has it.")
    ] = "auto",
    compile: Annotated[bool, typer.Option("--compile", help="torch.compile the net (not the loop around it).")] = False,
    freeze: Annotated[
        str | None, typer.Option("--freeze", metavar="STAGE", help="Hold all up to this stage, norm statistics too.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option("--weights", metavar="FILE", help="Begin from these, as bblab import wrote them.")
    ] = None,
    stop_if: Annotated[
        list[str] | None,
        typer.Option(
            "--stop-if",
            metavar="CONDITION",
            help="'loss > 2.5 at epoch 3', 'accuracy < 40 at epoch 5', 'below the worst of 5 earlier runs at epoch 3'.",
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", metavar="N", help="Processes that load images; 0: the training itself.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of everything random.")] = 0,
    save_minutes: Annotated[
        float, typer.Option("--save-minutes", metavar="MIN", help="Between checkpoints inside an epoch; 0: at its end.")
    ] = 10.0,
    run: Annotated[
        Path | None,
        typer.Option(
            "--run", metavar="DIR", help="The run's folder; else runs/... in the lab. To resume: also its number."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with --run, or with the newest unfinished run (of SPEC).")
    ] = False,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Measure a few steps and say what the recipe would take; train nothing.")
    ] = False,
    json: common.JsonOption = None,
    lab: common.LabOption = None,
) -> None:
    """Pretrain a spec with mmpretrain; whatever happens, nothing that was trained is lost.

    Without --data it trains on scikit-learn's digits, so that the whole chain can be tried anywhere in minutes.
    """
    from bblab.lab import training
    from bblab.pretraining.launch import Machines

    opened = common.open_lab(lab)
    machine = json == "-"
    if lr_rule is not None and lr_rule not in ("linear", "sqrt"):
        raise BblabError(f"--lr-rule {lr_rule!r}", hint="linear or sqrt")
    if precision not in ("auto", "fp32", "bf16"):
        raise BblabError(f"--precision {precision!r}", hint="auto, fp32 or bf16")
    wanted = training.Wanted(
        data=data, ann_train=ann_train, ann_val=ann_val, recipe=recipe, epochs=epochs, batch_size=batch_size,
        lr_rule=lr_rule or ("linear" if lr_scale else "none"),  # type: ignore[arg-type]  # checked above
        accumulation=accumulate, processes=gpus, machines=Machines(nodes, node_rank, master), seed=seed,
        precision=precision, workers=workers, compile=compile, freeze=freeze,  # type: ignore[arg-type]
        weights=None if weights is None else str(weights), stop_if=tuple(stop_if or ()), save_minutes=save_minutes,
        run=run,
    )  # fmt: skip
    if node_rank:
        with progress(quiet=machine) as tell:
            done = training.join(opened, wanted, on_progress=tell)
    elif resume:
        fixed = {
            "--set": edits, "--recipe": recipe, "--epochs": epochs, "--batch-size": batch_size, "--lr-scale": lr_scale,
            "--lr-rule": lr_rule, "--accumulate": accumulate != 1, "--gpus": gpus != 1, "--freeze": freeze,
            "--weights": weights, "--stop-if": stop_if, "--seed": seed, "--precision": precision != "auto",
            "--compile": compile, "--workers": workers is not None, "--estimate": estimate,
        }  # fmt: skip
        if given := [name for name, value in fixed.items() if value]:
            hint = "leave it away, or begin a new run"
            raise BblabError(
                f"--resume goes on with the run's own plan: {', '.join(given)} cannot be changed", hint=hint
            )

        def on_start(made: Plan, lines: Sequence[str]) -> None:
            for line in [*opening(made), *lines]:
                common.console(stderr=machine).print(line, markup=False, soft_wrap=True)

        with progress(quiet=machine) as tell:
            done = training.resume(opened, run, spec, wanted=wanted, on_progress=tell, on_start=on_start)
    else:
        chosen = training.chosen_spec(opened, spec, edits or ())
        if spec is None and not machine:
            common.console().print(f"{chosen.name}: the spec that was profiled last", markup=False, soft_wrap=True)
        made = training.plan(opened, chosen, wanted)
        if not machine:
            for line in opening(made):
                common.console().print(line, markup=False, soft_wrap=True)
        if estimate:
            estimated(opened, made, spec, json)
            return
        with progress(quiet=machine) as tell:
            done = training.pretrain(opened, chosen, wanted, made=made, on_progress=tell)
    if json:
        common.write_json(json, done.to_json())
    finish(opened, done, machine, json)


def estimated(opened: Lab, made: Plan, spec: str | None, json: str | None) -> None:
    """Measure, store and print what the recipe would take."""
    import contextlib

    from bblab.lab import training

    err = common.console(stderr=True)
    busy = err.status("measuring a few steps of the net, then of the data") if err.is_terminal and json != "-" else None
    with busy or contextlib.nullcontext():
        found, run_id = training.estimate(opened, made)
    if json:
        common.write_json(json, {**found.to_json(), "run_id": run_id})
    if json == "-":
        return
    out = common.console()
    for line in estimate_lines(found):
        out.print(line, markup=False, soft_wrap=True)
    where = f"stored as run {run_id} in {common.short(opened.store_path)}"
    after = " ".join(["bblab pretrain", *([spec] if spec else [])])
    out.print(f"{where} · next: {after}", style="dim", markup=False, soft_wrap=True)


def estimate_lines(e: Estimate) -> list[str]:
    """Rates, the limit and the hours, as a person reads them."""
    from bblab.pretraining.card import duration

    how = f"batch {e.batch_size}, {e.px} px, {e.precision}, {e.device}"
    who = "the training process itself" if not e.workers else f"{e.workers} workers"
    each = f" in each of {e.processes} processes (taken to add up)" if e.processes > 1 else ""
    lines = [
        f"net    {common.digits(e.net_images_per_s):>8} images/s  training steps on synthetic images: {how}{each}",
        f"data   {common.digits(e.loader_images_per_s):>8} images/s  loaded by {who}, nothing else running",
        f"limit  {e.limit}",
        f"the recipe on this data ({e.train_images:,} + {e.val_images:,} images): {duration(3600 * e.hours)}",
        f"on ImageNet-1k (1,281,167 + 50,000 images), if its images load as fast: {duration(3600 * e.imagenet_hours)}",
    ]
    if e.peak_memory_bytes is not None:
        lines.insert(1, f"       {e.peak_memory_bytes / 1e9:8.2f} GB of GPU memory")
    return lines


def opening(made: Plan) -> list[str]:
    """What is about to happen, in a few lines."""
    from bblab.pretraining.data.values import number

    recipe, data, scaling, s = made.recipe, made.data, made.scaling, made.settings
    sizes = " → ".join(str(px) for _, px in recipe.resolutions_px)
    colours = "" if made.channels == 3 else ", grey"
    updates = f" ({number(-(-made.steps // s.accumulation), 'update')})" if s.accumulation > 1 else ""
    lines = [
        f"{made.name} · spec {made.spec_id} · recipe {recipe.name}: {number(recipe.epochs, 'epoch')} at {sizes} px"
        f"{colours}, {recipe.optimizer}, {recipe.schedule}",
        f"data {common.short(Path(data['root']))}: {data['train_count']:,} training and {data['val_count']:,} "
        f"validation images, {len(data['classes'])} classes",
        f"learning rate {scaling.arithmetic} · batch {scaling.batch_arithmetic} · "
        f"{number(made.iterations, 'step')} an epoch, {made.steps:,} in all{updates}{last_batch(made)}",
        schedule_line(made),
    ]
    if s.precise_images:
        settling = made.extra.get("settling_steps", 0)
        why = "norms of this net average all that they ever saw"
        if settling < 10**9:
            why = f"running averages settle in {settling:,} steps (10 / momentum), an epoch has {made.iterations:,}"
        lines.append(
            f"norm statistics from {s.precise_images:,} training images before each validation, kept with the weights: "
            f"{why}"
        )
    if recipe.ema_momentum is not None:
        lines += average_lines(made)
    lines += [f"· {note}" for note in (*made.notes, scaling.advice) if note]
    for gate in made.gates:
        source = f", the {gate.which} of {gate.runs} earlier runs of {recipe.name}" if gate.which else ""
        lines.append(f"· ends early where {gate.metric} {gate.op} {gate.value:.4g} at epoch {gate.epoch}{source}")
    return lines


def last_batch(made: Plan) -> str:
    """What becomes of the images that do not fill a batch; "" where there are none."""
    images, s = made.data["train_count"], made.settings
    rest = -(-images // s.processes) % s.batch_size
    if made.left_out:
        share = f"{100 * made.left_out / images:.2g} %"
        return f"; {made.left_out:,} of {images:,} images ({share}) left out of each epoch, others each time"
    return f"; no image left out (each epoch's last batch: {rest:,})" if rest else "; no image left out"


def schedule_line(made: Plan) -> str:
    """Warm-up and end of the learning rate as the schedule has them."""
    from bblab.pretraining.data.values import number
    from bblab.pretraining.schedule import warmup_steps

    recipe, lr = made.recipe, made.scaling.lr
    steps = warmup_steps(recipe, made.iterations)
    if steps:
        epochs = f"{number(steps, 'step')} ({epochs_text(steps / made.iterations)})"
        begin = f"{lr * recipe.warmup_start_factor:.3g}"
        line = f"warm-up from {begin} over {epochs}" if recipe.warmup == "linear" else f"{begin} for {epochs}"
    elif recipe.warmup_epochs:
        line = f"no warm-up: {epochs_text(recipe.warmup_epochs)} of it would be less than 2 steps"
    else:
        line = "no warm-up"
    if recipe.schedule in ("cosine", "linear"):
        return f"{line} · then {recipe.schedule} down to {lr * recipe.final_lr_ratio:.3g}"
    if recipe.schedule == "exponential":
        every = max(1, round(recipe.step_epochs * made.iterations))
        return (
            f"{line} · then × {recipe.gamma:g} every {number(every, 'step')} ({epochs_text(every / made.iterations)})"
        )
    if recipe.schedule == "step":
        at = ", ".join(map(str, recipe.milestones))
        return f"{line} · then × {recipe.gamma:g} after epochs {at}" if at else f"{line} · then constant"
    return f"{line} · then constant"


def epochs_text(count: float) -> str:
    """ "1 epoch", "2.5 epochs"."""
    return f"{count:.3g} epoch" + "s" * (f"{count:.3g}" != "1")


def average_lines(made: Plan) -> list[str]:
    """What a running average of the weights looks back over, and how much of its beginning is in its end."""
    recipe, share = made.recipe, made.recipe.ema_momentum or 0.0
    batch = made.scaling.total_batch
    step = 1 - (1 - share) ** (batch / recipe.base_batch)
    lines = [
        f"weights averaged: {share:g} of the new ones for each {recipe.base_batch:,} images"
        + (f", {step:.3g} for a step of {batch:,}" if batch != recipe.base_batch else "")
    ]
    images = recipe.epochs * (made.data["train_count"] - made.left_out)
    first = (1 - share) ** (max(0, images - batch) / recipe.base_batch)
    if first > 0.01:
        lines.append(
            f"· the average is longer than this run: {100 * first:.2g} % of it will still be the weights after the "
            "first step, and it is the average that is scored and kept"
        )
    return lines


def finish(opened: Lab, done: Pretrained, machine: bool, json: str | None) -> None:
    """What came out, where it is, what to run next. Raises RunError for a run that did not end well."""
    from bblab.pretraining import record

    for notice in (*opened.notices, *done.notices):
        common.warn(notice)
    folder = common.short(done.folder)
    ended_well = done.status in (record.DONE, record.GATED)
    if not machine:
        out = common.console()
        for line in closing(done):
            out.print(line, markup=False, soft_wrap=True)
        where = f"stored as run {done.run_id} in {common.short(opened.store_path)}" if done.run_id else "not stored"
        after = f"bblab report · bblab show {done.run_id}" if ended_well else f"bblab pretrain --resume --run {folder}"
        written = f"; written {json}" if json else ""
        out.print(f"{folder} · {where}{written} · next: {after}", style="dim", markup=False, soft_wrap=True)
    if not ended_well:
        hint = done.hint or f"its output: {folder}/worker.log"
        raise RunError(done.message or f"the training {done.status}", hint=hint)


def closing(done: Pretrained) -> list[str]:
    """The result in a few lines."""
    from bblab.lab import training
    from bblab.pretraining import card, record

    history, total = done.history, done.plan.data["val_count"]
    count = training.scored_images(done.plan, history)
    lines = []
    if done.status == record.GATED:
        lines += [done.message, f"  {done.hint}"]
    if done.top1_percent is not None:
        best = done.best
        at = f"; best {best[1]:.2f} % at epoch {best[0]}" if best else ""
        lines.append(f"top-1 {card.accuracy_text(done.top1_percent, count)} of {count} validation images (95 %){at}")
        if count < total:
            where = common.short(done.folder / "bad_images.txt")
            lines.append(f"{total - count} of {total} validation images could not be read and are not scored: {where}")
    epochs = history.epochs
    if epochs:
        images, spent = sum(e["images"] for e in epochs.values()), sum(e["epoch_s"] for e in epochs.values())
        waited = sum(e["wait_share"] * e["epoch_s"] for e in epochs.values()) / max(1e-9, spent)
        lines.append(
            f"{epochs_text(len(epochs))} in {card.duration(history.train_s)}: {images / max(1e-9, spent):.0f} images/s "
            f"while training, {100 * waited:.1f} % of it waiting for data"
        )
        if bad := max(e.get("bad_images", 0) for e in epochs.values()):
            where = common.short(done.folder / "bad_images.txt")
            lines.append(f"{bad} training images could not be read, others were trained on instead: {where}")
    result = history.last.get("result")
    if result is not None:
        kind = "averaged weights" if result["is_average"] else "weights"
        text = f"{kind} of epoch {result['epoch']}: {result['file']}, {result['bytes'] / 1e6:.1f} MB"
        if result.get("forms_rel_diff") is not None:
            text += (
                f"; the deploy form's scores differ by {result['forms_rel_diff']:.1g} of the largest, "
                f"{result['forms_other_answers']} of {result['forms_images']} answers change{card.rounding(result)}"
            )
        lines.append(text)
        lines.append("beside it: card.md, curves.png, config.py (mmengine), record.jsonl")
    return lines


# ---------------------------------------------------------------------------------------------- live


@contextmanager
def progress(quiet: bool) -> Iterator[Any]:
    """A callback for progress: a live bar on a terminal, a line an epoch elsewhere, nothing when `quiet`."""
    if quiet:
        yield None
        return
    out = common.console(stderr=True)
    if not out.is_terminal:
        yield Lines()
        return
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[figures]}"),
    )  # fmt: skip
    with Progress(*columns, console=out, transient=True) as bar:
        yield Bar(bar)


class Lines:
    """One line an epoch, for a log file."""

    def __init__(self) -> None:
        self.seen: set[int] = set()

    def __call__(self, told: Mapping[str, Any]) -> None:
        from rich.text import Text

        epoch = told.get("validated_epoch")
        if epoch is None or epoch in self.seen or "epoch_loss" not in told:
            return
        self.seen.add(epoch)
        common.console(stderr=True).print(Text(epoch_line(told)), soft_wrap=True)


class Bar:
    """The live bar. Time left comes from the steps that this process has seen, validations and all."""

    def __init__(self, bar: Any) -> None:
        import time

        self.bar, self.clock = bar, time.monotonic
        self.task = bar.add_task("starting (loading torch and mmpretrain)", total=None, figures="")
        self.first: tuple[float, int] | None = None
        self.lines = Lines()

    def __call__(self, told: Mapping[str, Any]) -> None:
        if not told or "iterations_total" not in told:
            return
        epoch = told.get("validated_epoch")
        if epoch is not None and epoch not in self.lines.seen and "epoch_loss" in told:
            self.lines.seen.add(epoch)
            self.bar.console.print(epoch_line(told), markup=False, highlight=False)
        done, total = told["iterations_done"], told["iterations_total"]
        if self.first is None or done < self.first[1]:
            self.first = (self.clock(), done)
        figures = [f"epoch {told['epoch']}/{told['epochs']}"]
        if "loss" in told:
            figures.append(f"loss {told['loss']:.3f}")
        if told.get("top1_percent") is not None:
            figures.append(f"top-1 {told['top1_percent']:.1f} %")
        figures.append(f"{told['images_per_s']:.0f} images/s, {100 * told['wait_share']:.0f} % waiting for data")
        if done > self.first[1]:
            from bblab.pretraining.card import duration

            rate = (done - self.first[1]) / (self.clock() - self.first[0])
            figures.append(f"{duration((total - done) / rate)} left")
        self.bar.update(self.task, description=told["doing"], completed=done, total=total, figures=" · ".join(figures))


def epoch_line(told: Mapping[str, Any]) -> str:
    """What one epoch gave."""
    from bblab.pretraining.card import duration

    top1 = "" if told.get("top1_percent") is None else f"  top-1 {told['top1_percent']:6.2f} %"
    counts = [(told.get("epoch_bad_images"), "training"), (told.get("epoch_bad_val_images"), "validation")]
    bad = "".join(f"  unreadable: {count} {split} image{'s' * (count > 1)}" for count, split in counts if count)
    return (
        f"epoch {told['validated_epoch']:3d}/{told['epochs']}  loss {told['epoch_loss']:.4f}{top1}  "
        f"{told['epoch_images_per_s']:.0f} images/s  {100 * told['epoch_wait_share']:.1f} % waiting  "
        f"{duration(told['epoch_s'])}{bad}"
    )
