"""Hand-over: a spec and its weights as a folder that a tracker trainer takes, or as files for the device."""
