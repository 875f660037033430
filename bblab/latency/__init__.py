"""Latency: what a net costs on a device, as a ratio that can be trusted. See `protocol.py` for how and why.

    timings = measure([candidate, ...], reference, plan=Plan(processes=6, rounds=5))
    for group in rank(timings): ...

Importing this loads neither torch, numpy nor a runtime.
"""

from bblab.latency.agreement import Agreement, agreement, agreement_words
from bblab.latency.explain import explain
from bblab.latency.protocol import Drift, is_tie, rank, ratio_between, settled, spinning_waste, ties
from bblab.latency.session import Progress, measure
from bblab.latency.sessions import DUEL, Outcome, Placed, Race, Verdict, places, verdict
from bblab.latency.sessions import run as run_races
from bblab.latency.stats import Estimate, contest
from bblab.latency.values import Broken, Candidate, Interrupted, Plan, Samples, Timing
from bblab.latency.words import machine_words, ranking, sentence, verdict_words

__all__ = [
    "DUEL",
    "Agreement",
    "Broken",
    "Candidate",
    "Drift",
    "Estimate",
    "Interrupted",
    "Outcome",
    "Placed",
    "Plan",
    "Progress",
    "Race",
    "Samples",
    "Timing",
    "Verdict",
    "agreement",
    "agreement_words",
    "contest",
    "explain",
    "is_tie",
    "machine_words",
    "measure",
    "places",
    "rank",
    "ranking",
    "ratio_between",
    "run_races",
    "sentence",
    "settled",
    "spinning_waste",
    "ties",
    "verdict",
    "verdict_words",
]
