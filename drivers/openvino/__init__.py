"""The OpenVINO engine: one child process for each mounted model, with KV blocks of our own.

`mount.py` is what the kernel mounts, `child.py` loads a model for the loop of drivers/local,
`graph.py` converts a GGUF file, `blocks.py` has the block tables, `steps.py` composes the inputs of
a step, `context.py` computes it. Only child processes load OpenVINO. They import this package, so
it imports nothing itself.
"""
