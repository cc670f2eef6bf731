"""The audit of a live namespace: what is looked at, when it counts as wrong, and what of it can be mended."""
