"""Which engine computes a model file, and which quantisation of it is the fastest.

Engines are compared once for a file, and the result is stored: `comparison.py` decides,
`measurement.py` stores comparisons and starts `probe.py`, which makes them. `tuning.py` makes and
measures the quantisations that `candidates.py` lists and chooses from; `loss.py` measures what they
lose. Only these child processes load the engines. They import this package, so it imports nothing
itself.
"""
