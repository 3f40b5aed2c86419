"""The llama.cpp driver: one child process for each mounted model, on the CPU or a GPU.

`mount.py` is what the kernel mounts, `driver.py` the kernel's side of an engine, `child.py` its
process, `frames.py` the protocol between them. Only child processes load llama.cpp. They import
this package, so it imports nothing itself.
"""
