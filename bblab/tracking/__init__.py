"""What a tracker's trainer needs of bblab, and what bblab reads of it: freezing, logs, result tables, scores.

Importing this room does not import torch, so that a trainer's script may load it wherever it likes.
"""

from __future__ import annotations

from bblab.tracking.freeze import Freezing, freeze, unfreeze
from bblab.tracking.published import PublishedScore, PublishedSpeed, published

__all__ = ["Freezing", "PublishedScore", "PublishedSpeed", "freeze", "published", "unfreeze"]
