"""A rule that ends a training early: "total_loss > 0.25 at epoch 30".

Fifty epochs of a tracker are a night of a GPU; its loss at epoch 30 already says whether the backbone is worth it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from bblab.errors import BblabError, near

Answer = Literal["stop", "go_on", "not_yet", "unknown"]

_OPS = {
    ">": ">", "above": ">", "over": ">", "morethan": ">", "greaterthan": ">", ">=": ">=", "atleast": ">=",
    "<": "<", "below": "<", "under": "<", "lessthan": "<", "<=": "<=", "atmost": "<=",
}  # fmt: skip
_RULE = re.compile(
    r"\s*(?P<what>[A-Za-z_][\w /.-]*?)\s*"
    r"(?P<op>>=|<=|>|<|\b(?:is\s+)?(?:above|over|below|under|more\s+than|greater\s+than|less\s+than|at\s+least|at\s+most)\b)\s*"
    r"(?P<value>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*"
    r"(?P<when>at|@|from|in)\s*(?:epoch\s*)?(?P<epoch>\d+)\s*",
    re.IGNORECASE,
)
_EPOCH_FIRST = re.compile(
    r"\s*(?:at\s+)?epoch\s+(?P<epoch>\d+)\s*(?:and|,|:)?\s*(?P<rule>.+?)\s*(?::\s*stop)?\s*", re.IGNORECASE
)
EXAMPLE = 'write "total_loss > 0.25 at epoch 30" (at: that epoch alone; from: that one and all later)'


@dataclass(frozen=True, slots=True)
class Gate:
    """Stop where `what` stands to `value` as `op` says, at `epoch` or (`onwards`) from there on."""

    what: str
    op: str
    value: float
    epoch: int
    onwards: bool

    def __str__(self) -> str:
        return f"{self.what} {self.op} {self.value:g} {'from' if self.onwards else 'at'} epoch {self.epoch}"

    def is_met(self, value: float) -> bool:
        """True where the training should stop. What is no number any more (a diverged loss) is always met."""
        if value != value:
            return True
        return {
            ">": value > self.value,
            ">=": value >= self.value,
            "<": value < self.value,
            "<=": value <= self.value,
        }[self.op]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a gate says of a curve. `value` is the mean over `epoch`; both None where there is none to judge."""

    gate: Gate
    answer: Answer
    epoch: int | None
    value: float | None
    because: str


def parse(text: str) -> Gate:
    """A gate from words. Raises BblabError with an example."""
    turned = _EPOCH_FIRST.fullmatch(text)
    match = _RULE.fullmatch(f"{turned['rule']} at epoch {turned['epoch']}" if turned else text)
    if match is None:
        raise BblabError(f"{text!r} is no rule to stop by", hint=EXAMPLE)
    op = re.sub(r"^is\s+|\s+", "", match["op"].lower())
    return Gate(
        match["what"].strip(), _OPS[op], float(match["value"]), int(match["epoch"]), match["when"].lower() == "from"
    )


def column(what: str, names: Sequence[str], total: str | None) -> str:
    """The curve that a gate means: by name in any spelling; "total_loss" and "loss" are the log's total.

    Raises BblabError with the names there are.
    """

    def plain(name: str) -> str:
        return re.sub(r"[^a-z0-9]", "", name.lower())

    wanted = plain(what)
    for name in names:
        if plain(name) == wanted:
            return name
    if wanted in ("totalloss", "losstotal", "loss", "total"):
        if total is not None:
            return total
        raise BblabError("this log has no total loss", hint=f"name one of: {', '.join(names)}")
    raise BblabError(f"this log has no {what!r}", hint=near(what, names))


def judge(gate: Gate, curve: Mapping[int, float | None], last_complete: int | None) -> Verdict:
    """A gate's verdict on a curve, epoch -> mean; None as a value is a loss that was no number.

    `last_complete` is the last epoch that was logged to its end; a later one is not judged.
    """
    done = {e: v for e, v in curve.items() if last_complete is not None and e <= last_complete}
    if not done:
        begun = max(curve, default=None)
        return Verdict(gate, "not_yet", None, None, "no epoch is complete" + (f", {begun} has begun" if begun else ""))
    last = max(done)
    asked = [e for e in sorted(done) if e >= gate.epoch] if gate.onwards else [e for e in done if e == gate.epoch]
    for epoch in asked:
        value = done[epoch]
        if value is None:
            return Verdict(gate, "stop", epoch, None, f"{gate.what} is no number any more at epoch {epoch}")
        if gate.is_met(value):
            return Verdict(gate, "stop", epoch, value, f"{gate.what} is {value:.4g} at epoch {epoch}")
    if asked:
        value = done[asked[-1]]
        assert value is not None
        return Verdict(gate, "go_on", asked[-1], value, f"{gate.what} is {value:.4g} at epoch {asked[-1]}")
    if last < gate.epoch:
        return Verdict(gate, "not_yet", last, done[last], f"the log is complete as far as epoch {last}")
    return Verdict(gate, "unknown", None, None, f"the log has no epoch {gate.epoch}: it begins with {min(done)}")
