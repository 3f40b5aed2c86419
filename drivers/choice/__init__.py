"""Which engine computes a model file: compared once by a process of its own, and stored.

`comparison.py` decides, `measurement.py` stores comparisons and starts `probe.py`, which makes
them. Only this child process loads the engines. It imports this package, so it imports nothing
itself.
"""
