"""The llama.cpp engine: one child process for each mounted model, on the CPU or a GPU.

`mount.py` is what the kernel mounts, `child.py` loads a model for the loop of drivers/local, and
`context.py` wraps its context. Only child processes load llama.cpp. They import this package, so it
imports nothing itself.
"""
