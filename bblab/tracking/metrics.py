"""Scores of trackers by name, BENCHMARK_QUANTITY (vot2018_eao, got10k_val_ao), and which way each is better.

VOT's robustness turned round: to 2019 it counts failures (Kristan et al. 2016, arXiv:1503.01313), from 2020 on it is
the share of frames before the first failure (Kristan et al. 2020). GOT-10k's validation and test scores are 10 to 19
points apart for the same tracker, so they are two benchmarks here.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from bblab.errors import BblabError, near


@dataclass(frozen=True, slots=True)
class Metric:
    """One score. `higher_is_better` is None where nobody said so; `is_share` lies between 0 and 1."""

    name: str
    benchmark: str
    quantity: str
    higher_is_better: bool | None
    is_share: bool = False
    about: str = ""

    @property
    def split(self) -> str:
        """ "val" or "test": never on one axis. A benchmark without a public split of the two is "test"."""
        return "val" if self.benchmark.endswith("_val") else "test"


@dataclass(frozen=True, slots=True)
class _Quantity:
    higher: bool
    is_share: bool
    about: str


_FAILURES = _Quantity(False, False, "failures, per 100 frames or in all")
_QUANTITIES = {
    "eao": _Quantity(True, True, "expected average overlap"),
    "accuracy": _Quantity(True, True, "mean overlap while tracking"),
    "robustness": _Quantity(True, True, "share of frames before the first failure"),
    "lost_number": _Quantity(False, False, "number of failures"),
    "ao": _Quantity(True, True, "average overlap"),
    "sr50": _Quantity(True, True, "share of frames with an overlap above 0.5"),
    "sr75": _Quantity(True, True, "share of frames with an overlap above 0.75"),
    "auc": _Quantity(True, True, "area under the success curve"),
    "precision": _Quantity(True, True, "share of frames within 20 px; of long-term trackers, precision"),
    "norm_precision": _Quantity(True, True, "share of frames within 0.2 of the target's size"),
    "op50": _Quantity(True, True, "success at an overlap of 0.5"),
    "op75": _Quantity(True, True, "success at an overlap of 0.75"),
    "recall": _Quantity(True, True, "long-term recall"),
    "f1": _Quantity(True, True, "long-term F1"),
}
_VOT_OLD = ("vot2015", "vot2016", "vot2017", "vot2018", "vot2019")
_VOT_NEW = ("vot2020", "vot2021", "vot2022")
_LONG = ("vot2018lt", "vot2019lt", "vot2020lt", "oxuva")
_ONE_PASS = (
    "otb50", "otb100", "otb2013", "lasot", "lasotext", "uav123", "uav20l", "uavdt", "nfs", "dtb70", "trackingnet",
    "tc128", "tnl2k", "visdrone",
)  # fmt: skip
_GOT = ("got10k", "got10k_val")


def _catalogue() -> dict[str, Metric]:
    found = {}

    def enter(benchmarks: tuple[str, ...], quantities: str) -> None:
        for benchmark in benchmarks:
            for quantity in quantities.split():
                metric = _of(benchmark, quantity)
                found[metric.name] = metric

    enter(_VOT_OLD, "eao accuracy robustness lost_number ao")
    enter(_VOT_NEW, "eao accuracy robustness")
    enter(_LONG, "f1 precision recall")
    enter(_ONE_PASS, "auc precision norm_precision op50 op75")
    enter(_GOT, "ao sr50 sr75")
    found["fps"] = Metric("fps", "", "fps", True, about="frames a second; belongs to its device")
    return found


def _of(benchmark: str, quantity: str) -> Metric:
    known = _QUANTITIES[quantity]
    if quantity == "robustness" and benchmark in _VOT_OLD:
        known = _FAILURES
    return Metric(f"{benchmark}_{quantity}", benchmark, quantity, known.higher, known.is_share, known.about)


METRICS = _catalogue()

# As people and papers write them.
_BENCHMARKS = {
    **{f"vot{year}": f"vot20{year}" for year in range(15, 23)},
    **{f"vot{year}lt": f"vot20{year}lt" for year in range(18, 21)},
    "otb": "otb100", "otb2015": "otb100", "otb15": "otb100", "otb13": "otb2013", "uav": "uav123",
    "got10ktest": "got10k", "got10kval": "got10k_val", "got": "got10k", "gotval": "got10k_val",
    "lasotextensionsubset": "lasotext", "nfs30": "nfs",
}  # fmt: skip
_SAME = {
    "success": "auc", "suc": "auc", "succ": "auc", "a": "accuracy", "acc": "accuracy", "r": "robustness",
    "lost": "lost_number", "lostnumber": "lost_number", "failures": "lost_number", "p": "precision",
    "prec": "precision", "normprecision": "norm_precision", "pnorm": "norm_precision", "normprec": "norm_precision",
    "sr": "sr50", "sr05": "sr50", "sr075": "sr75", "op050": "op50", "op075": "op75", "f": "f1", "fscore": "f1",
}  # fmt: skip


def benchmark(text: str) -> str | None:
    """The benchmark of this name in any spelling ("VOT-2018", "OTB2015", "GOT-10k val"); None if none is known."""
    plain = re.sub(r"[^a-z0-9]", "", text.lower())
    plain = _BENCHMARKS.get(plain, plain)
    known = {re.sub("_", "", m.benchmark): m.benchmark for m in METRICS.values() if m.benchmark}
    return known.get(plain.replace("_", ""))


def quantity(text: str) -> str | None:
    """The quantity of a table's column or a name's last part; None if it is not one."""
    plain = re.sub(r"[^a-z0-9]", "", text.lower())
    plain = _SAME.get(plain, plain)
    known = {q.replace("_", ""): q for q in _QUANTITIES}
    return known.get(plain.replace("_", ""))


def find(text: str, higher_is_better: bool | None = None) -> Metric:
    """The metric of this name; a name of one's own is taken with the direction that one states.

    Raises BblabError for a name that looks like a misspelt known one, unless the direction is stated.
    """
    name = re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")
    if not name:
        raise BblabError("a metric without a name", hint="vot2018_eao=0.265")
    known = _known(name)
    if known is not None:
        if higher_is_better is not None and higher_is_better != known.higher_is_better:
            way = "higher" if known.higher_is_better else "lower"
            raise BblabError(f"{known.name} is better {way}", hint=f"leave the direction out, or rename {text!r}")
        return known
    if higher_is_better is None:
        close = difflib.get_close_matches(name, METRICS, n=1, cutoff=0.8)
        if close:
            say = f"if it is a metric of your own, say which way is better: {name}:higher=VALUE or {name}:lower=VALUE"
            raise BblabError(f"no metric {text!r}", hint=f"{near(name, METRICS)}\n  {say}")
        parts = name.split("_")
        own = quantity(parts[-1])  # mydata_auc: the direction is the quantity's
        if own is not None and len(parts) > 1 and own not in ("robustness", "precision"):
            what = _QUANTITIES[own]
            return Metric(name, "_".join(parts[:-1]), own, what.higher, what.is_share, what.about)
    return Metric(name, "", name, higher_is_better)


def _known(name: str) -> Metric | None:
    if name in METRICS:
        return METRICS[name]
    parts = name.split("_")
    for cut in range(len(parts) - 1, 0, -1):
        bench, what = benchmark("".join(parts[:cut])), quantity("".join(parts[cut:]))
        if bench and what and f"{bench}_{what}" in METRICS:
            return METRICS[f"{bench}_{what}"]
    return None


# Words of a metric's name that say what a net costs: no accuracy, whichever way is better.
_COSTS = {
    "fps", "hz", "latency", "delay", "time", "runtime", "speed", "ms", "us", "sec", "secs", "seconds", "params",
    "parameters", "macs", "flops", "gflops", "gmacs", "mmacs", "mflops", "memory", "mb", "bytes", "size", "energy",
    "power", "watts", "joules",
}  # fmt: skip


def is_cost(name: str) -> bool:
    """Whether a metric is a speed or a cost ("fps", "latency_ms", "params"), which belongs to no accuracy axis."""
    return bool(_COSTS & set(re.split(r"[^a-z0-9]+", name.lower())))


def value(metric: Metric, text: str) -> float:
    """A score as written, as a number; "26.5%" is 0.265. Raises BblabError for what is none or cannot be."""
    said = text.strip()
    percent = said.endswith("%")
    try:
        number = float(said.removesuffix("%").strip())
    except ValueError:
        number = float("nan")
    if number != number or number in (float("inf"), float("-inf")):
        raise BblabError(f"{metric.name}={text}: {text!r} is no number", hint=f"{metric.name}=0.265")
    if percent:
        number = round(number / 100, 12)
    if metric.is_share and not 0 <= number <= 1:
        hint = f"{metric.name}={text}% for percent" if 1 < number <= 100 and not percent else f"{metric.name}=0.265"
        raise BblabError(f"{metric.name}={text}: {metric.name} lies between 0 and 1", hint=hint)
    if not metric.is_share and metric.higher_is_better is False and number < 0:
        raise BblabError(f"{metric.name}={text}: {metric.name} is not negative", hint="check the sign")
    return number
