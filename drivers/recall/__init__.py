"""The recall driver: vectors and an embedder in one child process, for all owners of the machine.

`driver.py` is the kernel's side, `child.py` the process, `frames.py` their messages. Only the child
loads numpy and the embedder, and a process of its own loads Chroma. Both import this package, so it
imports nothing itself.
"""
