"""One file a trainer: what it asks of a backbone as data, and the functions that its `launch.py` consists of."""
