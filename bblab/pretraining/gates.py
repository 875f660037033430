"""Gates: conditions that end a run which is not going to be worth its hours.

`loss > 2.5 at epoch 3`, `accuracy < 40 at epoch 5`, or against earlier runs of the same recipe on the same data:
`accuracy below the worst of 5 earlier runs at epoch 3`.
"""

from __future__ import annotations

import operator
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from bblab.errors import BblabError

Metric = Literal["loss", "accuracy"]
_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le,
}  # fmt: skip
_CHOICES: dict[str, Callable[[Sequence[float]], float]] = {
    "worst": min, "median": statistics.median, "best": max,
}  # fmt: skip
EXAMPLES = '"loss > 2.5 at epoch 3", "accuracy < 40 at epoch 5" or "below the worst of 5 earlier runs at epoch 3"'

_VALUE = re.compile(
    r"\s*(?P<metric>loss|accuracy|acc|top1|top-1)\s*(?P<op>>=|<=|>|<|above|below)\s*"
    r"(?P<value>[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?)\s*(?P<percent>%)?\s*(at|@)\s*epoch\s*(?P<epoch>\d+)\s*",
    re.IGNORECASE,
)
_EARLIER = re.compile(
    r"\s*(?P<metric>loss|accuracy|acc|top1|top-1)?\s*(?P<op>above|below|>|<)\s*(the\s+)?(?P<which>worst|median|best)\s+of\s+"
    r"(the\s+last\s+)?(?P<runs>\d+)(\s+earlier)?(\s+runs?)?\s*(at|@)\s*epoch\s*(?P<epoch>\d+)\s*",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Gate:
    """Stop where `metric` `op` `value` at the end of `epoch` (counted from 1). Accuracy is in percent.

    `which` of `runs` earlier runs gave the value; `value` is None until their curves have been looked up.
    """

    text: str
    metric: Metric
    op: str
    epoch: int
    value: float | None = None
    which: str = ""
    runs: int = 0

    def is_hit(self, epoch: int, figures: Mapping[str, float]) -> bool:
        """Whether the run ends here. `figures`: `loss` and `accuracy` of this epoch."""
        if epoch != self.epoch or self.value is None or self.metric not in figures:
            return False
        return _OPERATORS[self.op](figures[self.metric], self.value)

    def because(self, figures: Mapping[str, float]) -> str:
        read = f"{self.metric} {figures[self.metric]:.4g} {self.op} {self.value:.4g} at epoch {self.epoch}"
        return f"{read} (the {self.which} of {self.runs} earlier runs)" if self.which else read


def parse(text: str, epochs: int) -> Gate:
    """A gate from what a person types. Raises BblabError for anything else, or an epoch that the run never reaches."""
    match = _VALUE.fullmatch(text)
    earlier = _EARLIER.fullmatch(text)
    if match is None and earlier is None:
        raise BblabError(f"--stop-if {text!r} is no condition", hint=f"write {EXAMPLES}")
    found = match or earlier
    assert found is not None
    metric: Metric = "loss" if (found["metric"] or "").lower() == "loss" else "accuracy"
    op = {"above": ">", "below": "<"}.get(found["op"].lower(), found["op"])
    epoch = int(found["epoch"])
    if not 1 <= epoch <= epochs:
        raise BblabError(f"--stop-if {text!r}: the run has epochs 1 to {epochs}", hint="name one of them")
    if match is not None:
        if match["percent"] and metric == "loss":
            raise BblabError(f"--stop-if {text!r}: a loss has no per cent", hint=f"write {EXAMPLES}")
        value = float(match["value"])
        if metric == "accuracy" and not match["percent"] and 0 < value < 1:
            raise BblabError(
                f"--stop-if {text!r}: accuracy is in per cent", hint=f"write {100 * value:g}, or {value:g}% if meant"
            )
        return Gate(text.strip(), metric, op, epoch, value)
    assert earlier is not None
    runs = int(earlier["runs"])
    if runs < 1:
        raise BblabError(f"--stop-if {text!r} compares with no run", hint=f"write {EXAMPLES}")
    return Gate(text.strip(), metric, op, epoch, None, earlier["which"].lower(), runs)


def against(gate: Gate, curves: Sequence[Mapping[str, Sequence[float]]]) -> Gate:
    """The gate with its value from earlier runs' curves (newest first; epoch 1 is their first element).

    "Worst" is the lowest accuracy or the highest loss. Raises BblabError where no run reached the epoch.
    """
    reached = [c[gate.metric][gate.epoch - 1] for c in curves if len(c.get(gate.metric, ())) >= gate.epoch]
    taken = reached[: gate.runs]
    if not taken:
        raise BblabError(
            f"--stop-if {gate.text!r}: no earlier run of this recipe on this data reached epoch {gate.epoch}",
            hint='give a number instead, for example "accuracy < 40 at epoch 5"',
        )
    which = gate.which
    if gate.metric == "loss":
        which = {"worst": "best", "best": "worst"}.get(which, which)  # max of losses is the worst
    return replace(gate, value=float(_CHOICES[which](taken)), runs=len(taken))
