"""bblab: declare a tracker backbone, know its cost and its latency, before training it."""

__version__ = "0.1.0"
