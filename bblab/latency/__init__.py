"""Latency: what a net costs on a device, as a ratio that can be trusted. See `protocol.py` for how and why.

    timings = measure([candidate, ...], reference, plan=Plan(processes=6, rounds=5))
    for group in rank(timings): ...

Importing this loads neither torch, numpy nor a runtime.
"""

from bblab.latency.measure import Progress, measure
from bblab.latency.protocol import Drift, Estimate, is_tie, rank, ratio_between, spinning_waste, ties
from bblab.latency.values import Broken, Candidate, Interrupted, Plan, Samples, Timing
from bblab.latency.words import ranking, sentence

__all__ = [
    "Broken",
    "Candidate",
    "Drift",
    "Estimate",
    "Interrupted",
    "Plan",
    "Progress",
    "Samples",
    "Timing",
    "is_tie",
    "measure",
    "rank",
    "ranking",
    "ratio_between",
    "sentence",
    "spinning_waste",
    "ties",
]
