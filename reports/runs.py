"""Training curves: the newest run of each net against earlier runs of the same recipe and data."""

from __future__ import annotations

from bblab.errors import BblabError
from bblab.reports import Options, Page, Table, notebook_report
from bblab.reports.kit import tables
from bblab.reports.kit.charts import Axis, Chart, Curve, LineChart
from bblab.reports.kit.stored import Stored, TrainingRow
from bblab.reports.kit.words import Words

MOST_BOLD = 6
SHOWN = (
    ("loss", Axis("loss", "", is_log=True)),
    ("accuracy_top1", Axis("accuracy_top1", "", "%", 100.0, least=0.0, most=1.0)),
)


@notebook_report("runs")
def runs(stored: Stored, options: Options) -> Page:
    """A chart of the loss and one of the accuracy for each recipe and data; logs of trackers by their trainer."""
    say = Words(options.lang)
    if not stored.trainings:
        raise BblabError("no training is stored here", hint="bblab pretrain SPEC, or bblab record SPEC --log train.log")
    groups: dict[tuple[str, str, bool], list[TrainingRow]] = {}
    for row in stored.trainings:
        groups.setdefault((row.recipe, row.data, row.is_from_log), []).append(row)
    charts: list[Chart] = []
    for (recipe, data, _), members in sorted(groups.items()):
        ordered = sorted(members, key=lambda r: r.run_id)
        newest = {r.spec_id: r.run_id for r in ordered}
        bold = set(sorted(newest.values())[-MOST_BOLD:])
        for key, axis in SHOWN:
            curves = [_curve(r, key, r.run_id not in bold, say) for r in ordered]
            curves = [c for c in curves if c.points]
            if not curves:
                continue
            curves.sort(key=lambda c: c.is_faint)
            title = say("curves_title", what=say(key)) + say.t(": ") + ", ".join(t for t in (recipe, data) if t)
            y = Axis(
                key,
                say(key),
                axis.unit,
                axis.factor,
                axis.is_log and all(y > 0 for c in curves for _, y in c.points),
                axis.least,
                axis.most,
            )
            slug = "-".join(
                "".join(c if c.isascii() and c.isalnum() else " " for c in f"{key} {recipe} {data}").split()
            )
            charts.append(LineChart(slug, title, Axis("epoch", say("epoch")), y, tuple(curves)))
    rows = sorted(stored.trainings, key=lambda r: -r.run_id)
    cells, values = [], []
    for r in rows:
        loss, top1 = (_last(r, key) for key in ("loss", "accuracy_top1"))
        low = min((p["loss"] for p in r.curve if "loss" in p), default=None)
        cells.append(
            (
                str(r.run_id), r.created_utc[:16].replace("T", " "), r.name, r.recipe, r.data or "–",
                "–" if r.seed is None else str(r.seed), str(len(r.curve)), _shown(loss), _shown(low),
                "–" if top1 is None else f"{top1:.1%}",
            )
        )  # fmt: skip
        values.append((r.run_id, r.created_utc, r.name, r.recipe, r.data, r.seed, len(r.curve), loss, low, top1))
    return Page(
        "runs", Table(say.columns(COLUMNS), tuple(cells), tuple(values)), (), tuple(charts),
        heading=charts[0].title if charts else say("curves_title", what=say("loss")), about=stored.about,
    )  # fmt: skip


COLUMNS = tables.columns_of(
    ("run", "run", "", "right"), ("when", "created_utc", "UTC", "left"), ("net", "name", "", "left"),
    ("recipe or trainer", "recipe", "", "left"), ("data", "data", "", "left"), ("seed", "seed", "", "right"),
    ("epochs", "epochs", "", "right"), ("last loss", "last_loss", "", "right"), ("lowest", "lowest_loss", "", "right"),
    ("top-1", "accuracy_top1", "last epoch", "right"),
)  # fmt: skip


def _curve(row: TrainingRow, key: str, is_faint: bool, say: Words) -> Curve:
    points = tuple((float(p["epoch"]), float(p[key])) for p in row.curve if p.get(key) is not None)
    seed = "" if row.seed is None else say.t(", seed {seeds}", seeds=row.seed)
    when = row.created_utc[:16].replace("T", " ")
    told = ((say.t("run"), str(row.run_id)), (say.t("spec"), row.spec_id), (say.t("measured"), when))
    return Curve(say.t("{name} (run {run}{seed})", name=row.name, run=row.run_id, seed=seed), points, is_faint, told)


def _last(row: TrainingRow, key: str) -> float | None:
    return next((float(p[key]) for p in reversed(row.curve) if p.get(key) is not None), None)


def _shown(value: float | None) -> str:
    return "–" if value is None else tables.significant(value)
