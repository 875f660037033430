"""researchmm/Stark 162e1d3, lib/train/_init_paths.py: the checkout onto the import path."""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../.."))
